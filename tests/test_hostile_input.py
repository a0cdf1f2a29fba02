"""Whatever a name, a value or an archive says, it stays data."""

import contextlib
import json
import os
import shlex
import string
import subprocess
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import make_image_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domainbed import datasets, hparams_registry
from domainbed.backbones import load_clip
from domainbed.download.archive import unpack
from domainbed.features import store
from domainbed.lib.errors import InputError
from domainbed.runs import provenance
from domainbed.runs.folder import RunFolder
from domainbed.runs.jobs import Job
from domainbed.scripts import collect_results, report, train

TRICKS = [
    "; rm -rf x",
    "$(touch x)",
    "`touch x`",
    "../../x",
    "a\nb",
    "'",
    '"',
    "-x",
    "",
]
TEXT = st.sampled_from(TRICKS) | st.text(max_size=20).filter(lambda t: "\0" not in t)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=8,
)
quick = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def job_of(dataset, algorithm, hparams, folder="out"):
    return Job({"dataset": dataset, "algorithm": algorithm, "hparams": hparams}, folder)


@quick
@given(dataset=TEXT, algorithm=TEXT, hparams=TEXT, folder=TEXT)
def test_a_jobs_command_says_exactly_its_arguments(dataset, algorithm, hparams, folder):
    job = job_of(dataset, algorithm, hparams, folder)
    words = shlex.split(job.command_str)
    assert words[:3] == ["python", "-m", "domainbed.scripts.train"]
    given = dict(zip(words[3::2], words[4::2], strict=True))
    assert given["--dataset"] == dataset
    assert given["--algorithm"] == algorithm
    assert given["--hparams"] == hparams
    assert set(Path(job.output_dir).name) <= set(string.hexdigits)


def test_a_shell_runs_nothing_but_the_job(tmp_path):
    """The launchers give the command to a shell."""
    for trick in TRICKS:
        words = job_of(trick, trick, trick).command_str.split(" ")
        command = " ".join(["printf '%s\\0'", *words[3:]])
        said = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True)
        assert said.stdout.decode().split("\0")[1::2][:2] == [trick, trick]
    assert not list(tmp_path.iterdir())


@quick
@given(hparams=st.dictionaries(TEXT, JSON, max_size=4))
def test_hparams_are_taken_as_they_are_or_refused_in_a_sentence(hparams):
    text = hparams_registry.as_json([json.dumps(hparams)])
    assert hparams_registry.parse_hparams(text) == hparams
    try:
        hparams_registry.check_hparams("LFA", "EmojiDG", hparams)
    except InputError as error:
        assert any(repr(name) in str(error) for name in hparams)
    else:
        assert hparams.keys() <= {"class_names", *default_names()}


def default_names():
    return hparams_registry.default_hparams("LFA", "EmojiDG")


@quick
@given(words=st.lists(TEXT, min_size=1, max_size=3))
def test_any_words_after_hparams_give_an_object_or_a_sentence(words):
    try:
        text = hparams_registry.as_json(words)
        assert isinstance(hparams_registry.parse_hparams(text), dict)
    except InputError as error:
        assert "--hparams" in str(error)


@quick
@given(
    names=st.lists(
        st.sampled_from(
            ["../x", "/x", "a/../../x", "C:\\x", "..\\x", "a/b", "a", "./c"]
        )
        | st.text(string.ascii_letters + "./\\: ", min_size=1, max_size=12),
        min_size=1,
        max_size=4,
    )
)
def test_an_archive_writes_inside_its_folder_or_not_at_all(names):
    with tempfile.TemporaryDirectory() as place:
        archive, to = Path(place) / "a.zip", Path(place) / "deep" / "to"
        with zipfile.ZipFile(archive, "w") as file:
            for name in dict.fromkeys(names):
                file.writestr(name, b"content")
        before = {p for p in Path(place).rglob("*")}
        # OSError: a file where a folder should be
        with contextlib.suppress(InputError, OSError):
            unpack(archive, to)
        new = {p for p in Path(place).rglob("*")} - before
        assert all(p == to or to in p.parents or p == to.parent for p in new)


@quick
@given(content=st.binary(max_size=200), kind=st.sampled_from(["zip", "tar", "parquet"]))
def test_a_damaged_archive_is_refused_in_a_sentence(content, kind):
    with tempfile.TemporaryDirectory() as place:
        archive = Path(place) / f"a.{kind}"
        magic = {"zip": b"PK\x03\x04", "tar": b"", "parquet": b"PAR1"}[kind]
        archive.write_bytes(magic + content + magic)
        with pytest.raises(InputError, match=f"a.{kind}"):
            unpack(archive, Path(place) / "to")


@pytest.mark.parametrize("trick", ["; rm -rf x", "a\nb", "<b>&", "$(touch x)", "-x y"])
def test_class_and_folder_names_are_data(tmp_path, trick):
    """From the folder's names to prompts, features, records and the saved model."""
    root = make_image_folder(tmp_path / "data", [trick, "other"], [trick, "dog"], n=2)
    command = ["--dataset", f"ImageFolder:{root}", "--algorithm", "LFA", "--steps", "1"]
    command += ["--hparams", '{"clip_backbone": "emoji", "batch_size": 2}']
    command += ["--data_dir", str(tmp_path), "--holdout_fraction", "0.5"]
    train.main([*command, "--output_dir", str(tmp_path / "run")])
    assert RunFolder(tmp_path / "run").state == "done"
    record = json.loads(
        (tmp_path / "run" / "results.jsonl").read_text().splitlines()[0]
    )
    assert record["args"]["dataset"] == f"ImageFolder:{root}"
    attention = json.loads((tmp_path / "run" / "layer_attention.json").read_text())
    assert attention["classes"].keys() == {trick, "dog"}
    assert {f.name for f in tmp_path.iterdir()} == {"data", "features", "run"}


@pytest.fixture(scope="module")
def backbone():
    return load_clip("emoji")


NAMES = st.text(
    st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1
).filter(lambda t: t.strip(".") and len(t.encode()) < 200)


@settings(quick, max_examples=25)
@given(names=st.lists(NAMES, min_size=2, max_size=2, unique=True))
def test_any_two_file_names_have_two_fingerprints(names, backbone):
    """Also where one name holds what separates the names in the digest."""
    keys, prints = set(), set()
    with tempfile.TemporaryDirectory() as place:
        for name in names:
            root = Path(place) / str(len(keys))
            make_image_folder(root, ["e"], ["c"], n=1)
            image = root / "e" / "c" / "0.png"
            image.rename(image.with_name(f"{name}.png"))
            environment = datasets.ImageEnvironment(root / "e", ["c"])
            facts = store.describe(environment, backbone, "float16")
            keys.add(facts["files"])
            prints.add(provenance.dataset_fingerprint([environment]))
    assert len(keys) == len(prints) == 2


def test_a_stored_array_is_read_without_unpickling(tmp_path):
    np.save(tmp_path / "z.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError):
        np.load(tmp_path / "z.npy", mmap_mode="r")


def test_a_domains_name_in_no_utf_8(tmp_path, capsys):
    """As an old archive from Windows leaves it: trained on, tabulated, reported."""
    root = make_image_folder(tmp_path / "data", ["a", "b"], ["cat", "dog"], n=2)
    (root / "a").rename(root / os.fsdecode(b"\xc0lpha"))
    command = ["--dataset", f"ImageFolder:{root}", "--algorithm", "LinearERM"]
    command += ["--steps", "1", "--data_dir", str(tmp_path), "--test_envs", "1"]
    command += ["--hparams", "clip_backbone=emoji", "--holdout_fraction", "0.5"]
    train.main([*command, "--output_dir", str(tmp_path / "sweep" / "run")])
    assert r"target \udcc0lpha:" in capsys.readouterr().out
    for how in ("text", "csv", "json", "markdown", "html"):
        collect_results.main(["--input_dir", str(tmp_path / "sweep"), "--format", how])
        assert "udcc0lpha" in capsys.readouterr().out
    collect_results.main(["--input_dir", str(tmp_path / "sweep"), "--paper"])
    page = tmp_path / "page.html"
    report.main(["--input_dir", str(tmp_path / "sweep"), "--output", str(page)])
    assert "udcc0lpha" in page.read_text()
