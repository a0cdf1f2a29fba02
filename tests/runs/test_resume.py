"""A run that was interrupted goes on, and ends with the records of one that was not."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers import SMALL, command, lines

from domainbed import algorithms, training
from domainbed.algorithms import ALGORITHMS
from domainbed.backbones import read_clip
from domainbed.lib import misc
from domainbed.names import ORDER
from domainbed.runs import provenance
from domainbed.runs.folder import RunFolder
from domainbed.runs.records import RunRecords
from domainbed.scripts import train

pytestmark = pytest.mark.filterwarnings("ignore:no class names")
# Dropout draws numbers at every step.
DROPOUT = '{"batch_size": 4, "rank": 2, "momentum": 0.2, "lr": 0.1}'


@pytest.mark.parametrize(
    "name, n, after, left",
    [
        ("record", 1, False, 0),  # before the first checkpoint
        ("record", 1, True, 1),  # a record, but no state yet
        ("save_state", 2, False, 2),  # a record that the state does not know
        ("update", 6, False, 2),  # in mid-way between two checkpoints
        ("save_model", 1, False, 3),  # all steps taken
    ],
)
@pytest.mark.parametrize("algorithm, hparams", [("LFA", DROPOUT), ("ERM", SMALL)])
def test_an_interrupted_run_ends_as_one_that_was_not(
    tmp_path, interrupt, name, n, after, left, algorithm, hparams
):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    flags = ["--hparams", hparams]
    train.main(command(whole, *flags, algorithm=algorithm))
    repair = interrupt(name, n, after)
    with pytest.raises(SystemExit):
        train.main(command(broken, *flags, algorithm=algorithm))
    repair()
    assert not (broken / "done").exists()
    results = broken / "results.jsonl"
    assert (len(lines(broken)) if results.exists() else 0) == left
    with open(results, "a") as file:
        file.write('{"step": 4, "los')  # a kill in the middle of a line
    train.main(command(broken, *flags, algorithm=algorithm))
    assert lines(broken) == lines(whole)
    assert not (broken / "state.pt").exists()
    own, other = (
        torch.load(f / "model.pkl", weights_only=True) for f in (broken, whole)
    )
    for key, value in other["model_dict"].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(own["model_dict"][key], value)


# Upstream's own but ERM are interrupted in tests/test_zoo.py.
@pytest.mark.parametrize("algorithm", [n for n in ALGORITHMS if n not in ORDER[1:34]])
def test_any_algorithm_stops_after_any_step(tmp_path, algorithm):
    """Each step in an object of its own, bitwise as all of them in one."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    flags = ["--steps", "6", "--checkpoint_freq", "2", "--no_tensorboard"]
    if algorithm == "QLoRACLIP":  # 4 bits take a CPU ten times as long
        flags += ["--hparams", "batch_size=4", "quant=none"]
    train.main(command(whole, *flags, algorithm=algorithm))
    broken.mkdir()
    for _ in range(6):
        run = training.Run(
            train.parse_args(command(broken, *flags, algorithm=algorithm))
        )
        run.stopping = True  # after the one step that it takes
        run.train()
    train.main(command(broken, *flags, algorithm=algorithm))
    assert lines(broken) == lines(whole)
    own, other = (
        torch.load(f / "model.pkl", weights_only=True)["model_dict"]
        for f in (broken, whole)
    )
    assert own.keys() == other.keys()
    for name, value in other.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(own[name], value), name


def test_sigterm_saves_the_state_and_ends_in_order(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    flags = ["--steps", "60", "--checkpoint_freq", "25", "--hparams", DROPOUT]
    process = subprocess.Popen(
        [sys.executable, "-m", "domainbed.scripts.train", *command(stopped, *flags)],
        stdout=subprocess.DEVNULL,
    )
    while not (stopped / "results.jsonl").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert RunFolder(stopped).state == "waiting"
    assert (stopped / "state.pt").exists()
    assert "the same command goes on" in (stopped / "out.txt").read_text()
    train.main(command(stopped, *flags))
    train.main(command(whole, *flags))
    assert lines(stopped) == lines(whole)


def test_a_model_that_was_read_before_changes_no_number(tmp_path):
    read_clip.cache_clear()
    for name in ("first", "again"):
        train.main(command(tmp_path / name, "--hparams", DROPOUT))
    assert lines(tmp_path / "first") == lines(tmp_path / "again")


def test_a_finished_run_stays_as_it_is(tmp_path, capsys):
    train.main(command(tmp_path))
    before = (tmp_path / "results.jsonl").read_bytes()
    train.main(command(tmp_path, "--skip_model_save"))
    assert (tmp_path / "results.jsonl").read_bytes() == before
    assert "--no_resume starts over" in capsys.readouterr().out
    train.main(command(tmp_path, "--no_resume"))
    assert lines(tmp_path) == lines(tmp_path)
    assert (tmp_path / "results.jsonl").read_bytes() != before  # other timings


def test_other_arguments_are_refused_and_named(tmp_path, capsys):
    train.main(command(tmp_path))
    before = {f.name: f.read_bytes() for f in tmp_path.glob("[!elot]*")}
    with pytest.raises(SystemExit) as ended:
        train.main(command(tmp_path, "--seed", "5", "--test_envs", "1"))
    assert ended.value.code == 2
    sentence = capsys.readouterr().err
    assert "--seed was 0 and is 5" in sentence
    assert "--test_envs was [0] and is [1]" in sentence
    assert {f.name: f.read_bytes() for f in tmp_path.glob("[!elot]*")} == before
    train.main(command(tmp_path, "--seed", "5", "--no_resume"))
    assert json.loads(lines(tmp_path)[0])["args"]["seed"] == 5


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not a state", None])
def test_a_damaged_state_starts_over(tmp_path, interrupt, damage):
    repair = interrupt("save_model", 1)
    with pytest.raises(SystemExit):
        train.main(command(tmp_path))
    repair()
    before = lines(tmp_path)
    if damage is None:  # results.jsonl is shorter than the state knows
        os.truncate(tmp_path / "results.jsonl", 10)
    else:
        (tmp_path / "state.pt").write_bytes(damage)
    train.main(command(tmp_path))
    assert lines(tmp_path) == before


def test_a_state_is_read_without_running_code(tmp_path):
    torch.save({"results_length": 0, "x": Unpickled()}, tmp_path / "state.pt")
    assert RunRecords(tmp_path).load_state() is None
    assert not Unpickled.made


class Unpickled:
    made = False

    def __reduce__(self):
        return (setattr, (Unpickled, "made", True))


def test_a_disk_that_fills_up_loses_nothing(tmp_path):
    """The file-size limit stands for the disk: it ends a write in the same way."""
    whole, full = tmp_path / "whole", tmp_path / "full"
    train.main(command(whole))
    size = len((whole / "results.jsonl").read_text().splitlines()[0])
    for limit in (size // 2, size + size // 2, 20_000):  # a line, the next, the state
        code = (
            "import resource, signal, sys; from domainbed.scripts import train;"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
            "train.main(sys.argv[1:])"
        )
        ended = subprocess.run(
            [sys.executable, "-c", code, *command(full)], capture_output=True, text=True
        )
        assert ended.returncode == 1
        assert "cannot use" in ended.stderr.splitlines()[-1]
        results = full / "results.jsonl"
        for line in results.read_text().splitlines() if results.exists() else []:
            json.loads(line)
        assert not (full / "done").exists()
        assert not list(full.glob("*.part"))
    train.main(command(full))
    assert lines(full) == lines(whole)


def of_gpu():
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


@pytest.mark.parametrize(
    "ask, said",
    [
        (of_gpu, "out of GPU memory (CUDA out"),
        (lambda: torch.empty(2**60), "out of memory ([enforce fail"),
        (lambda: bytearray(2**62), "out of memory ("),
    ],
)
def test_running_out_of_memory_says_what_to_lower(
    ask, said, tmp_path, monkeypatch, capsys
):
    def update(self, minibatches, unlabeled=None):
        ask()

    monkeypatch.setattr("domainbed.algorithms.ERM.update", update)
    with pytest.raises(SystemExit) as ended:
        train.main(command(tmp_path, algorithm="ERM"))
    assert ended.value.code == 1
    folder = RunFolder(tmp_path)
    assert folder.state == "failed"
    assert folder.last_error().startswith(said)
    assert "lower the hyperparameter batch_size" in folder.last_error()
    assert folder.last_error() in capsys.readouterr().err


def test_the_clock_may_go_backwards(tmp_path, monkeypatch):
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    train.main(command(tmp_path))
    for line in (tmp_path / "results.jsonl").read_text().splitlines():
        assert json.loads(line)["step_time"] > 0
    assert RunFolder(tmp_path).state == "done"


def test_run_json_says_what_the_run_is_made_from(tmp_path):
    train.main(command(tmp_path / "a"))
    train.main(command(tmp_path / "b", "--trial_seed", "1"))
    train.main(command(tmp_path / "c", "--seed", "1"))
    a, b, c = (json.loads((tmp_path / n / "run.json").read_text()) for n in "abc")
    assert a["versions"].keys() == {"python", "torch", "domainbed"}
    assert a["versions"]["torch"] == torch.__version__
    assert a["split"] != b["split"]
    assert a["split"] == c["split"]
    assert a["dataset"] == c["dataset"]
    run = training.Run(train.parse_args(command(tmp_path / "d")))
    trainable = [p for p in run.algorithm.parameters() if p.requires_grad]
    assert a["parameters"] == sum(p.numel() for p in trainable)
    assert a["backbone"] == run.algorithm.backbone.fingerprint
    assert misc.plain(a["hparams"]) == run.hparams


def stopped(folder, interrupt, *flags):
    """A run that ends after its first checkpoint."""
    repair = interrupt("save_state", 1, True)
    with pytest.raises(SystemExit):
        train.main(command(folder, *flags))
    repair()


def refused(folder, capsys, *flags):
    """What is said where the run is another one by now; its files stay."""
    before = (folder / "run.json").read_bytes(), (folder / "state.pt").read_bytes()
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        train.main(command(folder, *flags))
    assert ended.value.code == 2
    assert before[0] == (folder / "run.json").read_bytes()
    assert before[1] == (folder / "state.pt").read_bytes()
    return capsys.readouterr().err


def test_another_default_makes_another_run(tmp_path, interrupt, monkeypatch, capsys):
    stopped(tmp_path, interrupt)
    rows = algorithms.get_algorithm_class("LFA").hparam_rows

    def other(dataset):
        return rows(dataset) | {"beta": (0.123, None), "new": (1, None)}

    monkeypatch.setattr(algorithms.get_algorithm_class("LFA"), "hparam_rows", other)
    assert "beta was 0.9 and is 0.123" in refused(tmp_path, capsys)


def test_other_images_make_another_run(pacs, tmp_path, interrupt, capsys):
    flags = ["--dataset", "PACS", "--data_dir", str(pacs), "--no_feature_store"]
    flags += ["--hparams", '{"clip_backbone": "emoji", "batch_size": 2}']
    stopped(tmp_path / "run", interrupt, *flags)
    folder = pacs / "PACS" / "photo" / "dog"
    (folder / "0.png").rename(folder / "new.png")
    assert "the data were other ones" in refused(tmp_path / "run", capsys, *flags)
    shutil.copy(folder / "new.png", folder / "0.png")
    said = refused(tmp_path / "run", capsys, *flags)
    assert "env2_in had 8 images and has 9" in said
    (folder / "new.png").unlink()
    moved = pacs.rename(pacs.with_name("moved"))
    train.main(command(tmp_path / "run", *flags, "--data_dir", str(moved)))


def test_every_attempt_says_what_it_was_made_with(
    tmp_path, interrupt, monkeypatch, capsys
):
    stopped(tmp_path, interrupt)
    versions = provenance.versions()
    monkeypatch.setattr(provenance, "versions", lambda: versions | {"torch": "9.0"})
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
    train.main(command(tmp_path))
    assert f"goes on with torch 9.0; the last attempt had {torch.__version__}" in (
        capsys.readouterr().err
    )
    about = json.loads((tmp_path / "run.json").read_text())
    assert [a["step"] for a in about["attempts"]] == [0, 1]
    assert [a["threads"] for a in about["attempts"]] == [1, 2]
    assert about["attempts"][1]["versions"]["torch"] == "9.0"
    assert about["versions"] == versions  # of the first


def test_a_run_of_an_older_version_is_no_other_run(tmp_path, interrupt):
    stopped(tmp_path, interrupt)
    about = json.loads((tmp_path / "run.json").read_text())
    for name in ("attempts", "images", "split"):
        del about[name]
    del about["args"]["no_feature_store"], about["hparams"]["beta"]
    (tmp_path / "run.json").write_text(json.dumps(about))
    train.main(command(tmp_path))
    assert RunFolder(tmp_path).state == "done"


def test_rows_have_a_header_in_every_process(tmp_path, interrupt, capsys):
    stopped(tmp_path, interrupt)
    capsys.readouterr()
    train.main(command(tmp_path))
    rows = [r.split() for r in capsys.readouterr().out.splitlines() if "env0_in" in r]
    assert [row[0] for row in rows] == ["env0_in_acc"]


def test_no_model_is_saved_where_none_is_wanted(tmp_path):
    train.main(command(tmp_path, "--skip_model_save", "--save_model_every_checkpoint"))
    assert not list(tmp_path.glob("model*"))


def test_a_disk_that_refuses_is_named(tmp_path, monkeypatch, capsys):
    """Also where not even a log can be begun: no inode is left."""

    def full(self, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", f"{tmp_path}/err.txt")

    monkeypatch.setattr(misc.Tee, "__init__", full)
    with pytest.raises(SystemExit) as ended:
        train.main(command(tmp_path))
    assert ended.value.code == 1
    expected = f"error: cannot use {tmp_path}/err.txt: No space left on device.\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_fails_within_a_run_is_one_sentence(
    number, tmp_path, monkeypatch, capsys
):
    def failing(records, record):
        raise OSError(number, os.strerror(number), str(records.results))

    monkeypatch.setattr("domainbed.runs.records.RunRecords.append", failing)
    with pytest.raises(SystemExit) as ended:
        train.main(command(tmp_path))
    assert ended.value.code == 1
    (error,) = capsys.readouterr().err.strip().split("\n")
    assert f"cannot use {tmp_path}/results.jsonl ({os.strerror(number)})" in error
    assert "the same command goes on" in error


def test_a_run_on_stored_features_killed_after_its_last_step_ends(pacs, interrupt):
    """Found by tools/torture: nothing had told the algorithm what it is given."""
    words = ["--dataset", "PACS", "--data_dir", str(pacs), "--algorithm", "LFA"]
    words += ["--hparams", "clip_backbone=emoji", "--steps", "2", "--num_workers", "0"]
    words += ["--output_dir", str(pacs / "run")]
    repair = interrupt("finish", 1)
    with pytest.raises(SystemExit):
        train.main(words)
    repair()
    train.main(words)
    assert (pacs / "run" / "done").exists()
    assert (pacs / "run" / "layer_attention.json").exists()
