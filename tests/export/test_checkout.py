"""The CLIP algorithms in somebody else's DomainBed, for which tests/fork stands.

That checkout is called `domainbed` too, so what runs there runs in another process.
"""

import ast
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from domainbed import algorithms, hparams_registry
from domainbed.export import checkout
from domainbed.lib.errors import InputError
from domainbed.scripts import collect_results
from domainbed.scripts.export import main

FORK = Path(__file__).parents[1] / "fork"
NAMES = ["ZeroShotCLIP", "LinearProbeCLIP", "LFA", "DPLCLIP", "QLoRACLIP"]
QLORA = all(
    importlib.util.find_spec(name) for name in ("transformers", "peft", "bitsandbytes")
)


@pytest.fixture
def fork(tmp_path):
    """A checkout of somebody else's."""
    ignored = shutil.ignore_patterns("__pycache__")
    return shutil.copytree(FORK, tmp_path / "fork", ignore=ignored)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))


def python(fork, *arguments, **env):
    """What Python, run in the checkout, prints on standard output."""
    command = [sys.executable, *arguments]
    env = {"PATH": "", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"} | env
    ended = subprocess.run(command, cwd=fork, capture_output=True, text=True, env=env)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def refusal(fork, capsys, *arguments):
    """The sentence with which an export ends that changed nothing."""
    before = contents(fork)
    with pytest.raises(SystemExit) as ended:
        main(["--to", str(fork), *arguments])
    assert ended.value.code == 2
    assert contents(fork) == before
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("ending", ["as it is", "no newline", "CRLF"])
def test_a_second_run_changes_nothing_and_remove_all_back(fork, ending, capsys):
    path = fork / "domainbed" / "hparams_registry.py"
    if ending == "no newline":
        path.write_bytes(path.read_bytes().rstrip())
    if ending == "CRLF":
        edit(path, b"\n", b"\r\n")
    before, folders = contents(fork), sorted(fork.rglob("*"))
    main(["--to", str(fork)])
    assert "wrote" in capsys.readouterr().out
    after = contents(fork)
    assert path.read_bytes().startswith(before[path])
    assert ending != "CRLF" or after[path].count(b"\n") == after[path].count(b"\r\n")
    assert len(after) == len(before) + len(checkout.COPIED)
    main(["--to", str(fork)])
    assert "already" in capsys.readouterr().out
    assert contents(fork) == after
    for _ in range(2):
        main(["--to", str(fork), "--remove"])
        assert contents(fork) == before
        assert sorted(fork.rglob("*")) == folders


def test_lines_that_came_behind_the_marked_ones_stay_lines(fork):
    path = fork / "domainbed" / "algorithms.py"
    path.write_bytes(path.read_bytes().rstrip())
    own = path.read_bytes()
    main(["--to", str(fork)])
    path.write_bytes(path.read_bytes() + b"mine = 1\n")
    main(["--to", str(fork), "--remove"])
    assert path.read_bytes() == own + b"\nmine = 1\n"


def test_an_older_export_is_brought_up_to_date(fork):
    main(["--to", str(fork)])
    new = contents(fork)
    copy, marks = fork / "domainbed/backbones/clip.py", fork / "domainbed/algorithms.py"
    old = b"# as it was once\n"
    edit(
        marks,
        checkout.digest(copy.read_bytes()).encode(),
        checkout.digest(old).encode(),
    )
    edit(marks, b"\nclass ERM", b"\n# of the checkout\nclass ERM")
    copy.write_bytes(old)
    main(["--to", str(fork)])
    edit(marks, b"# of the checkout\n", b"")
    assert contents(fork) == new


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("algorithms.py", b"ALGORITHMS = [", b"NAMES = [", "'ALGORITHMS = [...]'"),
        ("algorithms.py", b"def get_algorithm_class", b"def get", "get_algorithm_cl"),
        ("algorithms.py", b"num_domains, hparams", b"hparams", "Algorithm.__init__("),
        ("algorithms.py", b"class ERM", b"class LFA", "has its own LFA"),
        ("algorithms.py", b'"ERM",', b'"ERM", "DPLCLIP",', "has its own DPLCLIP"),
        ("algorithms.py", b"class ERM", b"class ERM ERM", "is no Python"),
        ("hparams_registry.py", b"random_seed)", b"state)", "random_seed)' there"),
        ("hparams_registry.py", b" _hparams(algorithm, dataset, 0)", b" {}", "calls"),
        ("networks.py", b"n_inputs", b"n", "MLP.__init__(self, n_inputs"),
        ("lib/misc.py", b"seed_hash", b"hash", "seed_hash(*args)"),
        ("algorithms.py", b"import torch\n", b"# >>> domainbed-lfa\n", "by hand"),
    ],
)
def test_what_is_not_as_upstream_is_refused(fork, capsys, name, old, new, said):
    edit(fork / "domainbed" / name, old, new)
    sentence = refusal(fork, capsys)
    assert name in sentence
    assert said in sentence


def test_what_is_no_domainbed_of_others_is_refused(fork, capsys, tmp_path):
    assert "--to names the folder" in refusal(tmp_path, capsys)
    assert "--to names the folder" in refusal(fork / "domainbed", capsys, "--remove")
    ours = Path(__file__).parents[2]
    with pytest.raises(SystemExit):
        main(["--to", str(ours)])
    assert "is not as in DomainBed" in capsys.readouterr().err


def test_somebodys_own_work_is_neither_overwritten_nor_deleted(fork, capsys):
    path = fork / "domainbed" / "backbones" / "clip.py"
    path.parent.mkdir()
    path.write_text("# mine\n")
    assert "clip.py exists already" in refusal(fork, capsys)
    path.unlink()
    main(["--to", str(fork)])
    capsys.readouterr()
    path.write_text(path.read_text() + "# mine\n")
    assert "clip.py was changed" in refusal(fork, capsys)
    assert "clip.py was changed" in refusal(fork, capsys, "--remove")


def test_copies_import_nothing_that_the_checkout_lacks(fork):
    main(["--to", str(fork)])
    names = [name for name in checkout.COPIED if name.endswith(".py")]
    for name in names:
        for node in ast.walk(ast.parse((fork / "domainbed" / name).read_text())):
            if isinstance(node, ast.ImportFrom) and "domainbed" in node.module:
                path = fork / node.module.replace(".", "/")
                found = path.is_dir() or path.with_suffix(".py").is_file()
                assert found, f"{name} imports {node.module}"
            assert not isinstance(node, ast.Import) or not any(
                "domainbed" in alias.name for alias in node.names
            )


def test_a_run_there_warns_once_and_is_tabulated(fork, capsys):
    main(["--to", str(fork)])
    command = "-m domainbed.scripts.train --dataset Debug28 --algorithm LFA --steps 2"
    python(fork, *command.split(), "--output_dir", "runs/lfa")
    run = fork / "runs" / "lfa"
    warned = (run / "err.txt").read_text()
    assert warned.count("no class names; prompts say 'class 0'") == 1
    assert (run / "done").exists()
    hparams = json.loads((run / "results.jsonl").read_text().splitlines()[-1])[
        "hparams"
    ]
    assert hparams["clip_transform"] is False
    assert hparams["clip_backbone"] == "emoji"
    capsys.readouterr()
    collect_results.main(["--input_dir", str(fork / "runs")])
    assert "LFA                   " in capsys.readouterr().out


EVERY_ALGORITHM = """
import json, sys, warnings
import domainbed.algorithms_dpl  # a family goes first
import torch
from domainbed import algorithms, hparams_registry
warnings.simplefilter("error")
hparams_of = {}
for name in ["ERM", *sys.argv[1:]]:
    assert name in algorithms.ALGORITHMS
    defaults = hparams_registry.default_hparams(name, "Debug28")
    hparams = defaults | {"class_names": ["dog", "sea_animal"]}
    torch.manual_seed(0)
    method = algorithms.get_algorithm_class(name)((3, 28, 28), 2, 2, hparams)
    x, y = torch.randn(2, 4, 3, 28, 28), torch.tensor([0, 1, 1, 0])
    method.update([(x[0], y), (x[1], y)], None)
    assert method.predict(x[0]).shape == (4, 2)
    hparams_of[name] = [
        hparams_registry.random_hparams(name, dataset, seed)
        for dataset in ("Debug28", "PACS") for seed in (0, 5)
    ] + [defaults, hparams_registry.default_hparams(name, "PACS")]
print(json.dumps(hparams_of))
"""


def test_every_algorithm_learns_there_with_the_hparams_of_here(fork):
    main(["--to", str(fork)])
    names = NAMES if QLORA else NAMES[:-1]
    hparams_of = json.loads(python(fork, "-c", EVERY_ALGORITHM, *names))
    assert "clip_backbone" not in hparams_of["ERM"][0]
    for name in names:
        assert hparams_of[name][-1]["clip_backbone"] == "ViT-B/16"
        here = [
            hparams_registry.random_hparams(name, dataset, seed)
            for dataset in ("Debug28", "PACS")
            for seed in (0, 5)
        ]
        here += [hparams_registry.default_hparams(name, d) for d in ("Debug28", "PACS")]
        rows = algorithms.get_algorithm_class(name).hparam_rows("PACS")
        own = set(rows) - {"feature_dtype"}
        for there, values in zip(hparams_of[name], here, strict=True):
            expected = {row: values[row] for row in own} | {"clip_transform": False}
            assert {row: there[row] for row in own} == expected
            assert set(there) - own == set(hparams_of["ERM"][0]) - own


def test_without_clip_the_checkouts_own_algorithms_still_run(fork, tmp_path):
    main(["--to", str(fork)])
    (tmp_path / "clip.py").write_text("raise ModuleNotFoundError('no clip')")
    command = "-m domainbed.scripts.train --dataset Debug28 --algorithm ERM --steps 1"
    python(fork, *command.split(), PYTHONPATH=str(tmp_path))
    assert (fork / "train_output" / "done").exists()


def test_class_names_of_another_number_are_refused():
    """There they are typed by hand, so they are counted."""
    hparams = hparams_registry.default_hparams("LFA", "Debug28")
    hparams["class_names"] = ["dog", "house"]
    with pytest.raises(InputError, match=r"has 2 names; there are 3 classes\."):
        algorithms.get_algorithm_class("LFA")((3, 28, 28), 3, 2, hparams)
