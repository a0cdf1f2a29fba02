"""Sweeps that are killed, raced or run otherwise end with the tables of one that was
not.
"""

import json
import multiprocessing
import os
import random
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from domainbed import command_launchers
from domainbed.runs.folder import RunFolder
from domainbed.runs.jobs import Job
from domainbed.scripts import collect_results, sweep, train

pytestmark = pytest.mark.filterwarnings("ignore:no class names")
WARM = multiprocessing.get_context("forkserver")
WARM.set_forkserver_preload(["domainbed.scripts.sweep", "domainbed.algorithms_lfa"])


def launch(folder, data, *flags, command="launch"):
    """12 jobs: three algorithms on the four environments of a tiny PACS."""
    hparams = '{"clip_backbone": "emoji", "batch_size": 4, "lr": 0.1}'
    given = ["--datasets", "PACS", "--data_dir", str(data), "--single_test_envs"]
    given += ["--algorithms", "LFA", "LinearProbeCLIP", "ZeroShotCLIP"]
    given += ["--n_hparams", "1", "--n_trials", "1", "--hparams", hparams]
    given += ["--steps", "12", "--output_dir", str(folder), "--skip_confirmation"]
    sweep.main([command, *given, "--command_launcher", "local", *flags])


def run_here(command, **environment):
    """In place of a child process, so that a kill of this process is one of the job."""
    train.main(shlex.split(command)[3:])
    return 0


def launch_here(folder, data):
    """In a process that has imported all: launch, and go on with what was killed."""
    os.setsid()
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    command_launchers.run_command = run_here
    launch(folder, data, "--retry", "--feature_dir", f"{folder}.features")


def tables(folder, capsys):
    capsys.readouterr()
    collect_results.main(["--input_dir", str(folder)])
    return capsys.readouterr().out


def records(folder: Path) -> list[dict]:
    """Every run's records without timings, by the name of its folder."""
    found = []
    for file in sorted(folder.glob("*/results.jsonl")):
        for line in file.read_text().splitlines():
            record = json.loads(line)
            for name in ("step_time", "mem_gb"):
                record.pop(name, None)
            for name in ("output_dir", "feature_dir"):
                del record["args"][name]
            found.append(record)
    return found


def test_a_sweep_killed_twenty_times_has_the_same_tables(pacs, tmp_path, capsys):
    """In extraction, training, writing: wherever a random moment finds it."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    child = WARM.Process(target=launch_here, args=(whole, pacs))
    started = time.monotonic()
    child.start()
    child.join()
    took, rng, seen = time.monotonic() - started, random.Random(0), set()
    for _ in range(20):
        child = WARM.Process(target=launch_here, args=(killed, pacs))
        child.start()
        child.join(took * rng.uniform(0.04, 0.16))  # a run is a twelfth of all
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
        child.join()
        seen |= {RunFolder(folder).state for folder in killed.glob("*")}
    assert "stale" in seen
    child = WARM.Process(target=launch_here, args=(killed, pacs))
    child.start()
    child.join()
    assert len(records(killed)) == 4 * (1 + 2 + 2)
    assert records(killed) == records(whole)
    assert tables(killed, capsys) == tables(whole, capsys)


def debug_command(folder, *flags, algorithm="LFA"):
    given = ["--dataset", "Debug28", "--algorithm", algorithm, "--num_workers", "0"]
    given += ["--hparams", '{"batch_size": 4}', "--output_dir", str(folder), *flags]
    words = shlex.join(given)
    return f"python -m domainbed.scripts.train {words}"


def test_pool_finds_what_local_finds(tmp_path):
    for name, jobs in (("local", None), ("pool", 1), ("pool", 3)):
        folder = tmp_path / f"{name}{jobs}"
        commands = [
            debug_command(folder / algorithm, "--steps", "3", algorithm=algorithm)
            for algorithm in ("LFA", "ERM", "LinearProbeCLIP")
        ]
        launcher = command_launchers.get_launcher(name, jobs=jobs)
        assert launcher(commands) == [0, 0, 0]
        assert "HParams" in (folder / "LFA" / "out.txt").read_text()
    expected = records(tmp_path / "localNone")
    assert len(expected) == 3 * 2
    assert records(tmp_path / "pool1") == expected
    assert records(tmp_path / "pool3") == expected


def test_a_killed_child_of_the_pool_harms_no_other(tmp_path):
    folders = [RunFolder(tmp_path / name) for name in "abc"]
    steps = {"a": "100000", "b": "3", "c": "3"}
    commands = [
        debug_command(
            f.path, "--steps", steps[f.path.name], "--checkpoint_freq", "1000"
        )
        for f in folders
    ]

    def kill() -> None:  # as the system does when memory runs out
        while not (beat := folders[0].heartbeat()):
            time.sleep(0.05)
        os.kill(beat["pid"], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    statuses = command_launchers.get_launcher("pool", jobs=2)(commands)
    killer.join()
    assert statuses == [-signal.SIGKILL, 0, 0]
    assert [folder.state for folder in folders] == ["stale", "done", "done"]


def children(pid):
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
    return [*map(int, found.stdout.split())]


def until(condition, seconds=30):
    """What the condition gives once it is true; the test fails if it never is."""
    ends = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < ends
        time.sleep(0.05)
    return value


def test_a_killed_job_of_the_pool_leaves_no_loader_behind(tmp_path):
    """A loader's process is its run's child, which it watches."""
    job = RunFolder(tmp_path / "a")
    flags = ("--steps", "100000", "--checkpoint_freq", "100000", "--num_workers", "1")
    loaders = []

    def kill() -> None:
        pid = until(job.heartbeat)["pid"]
        try:
            loaders.extend(until(lambda: children(pid)))
        finally:
            os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    launcher = command_launchers.get_launcher("pool", jobs=1)
    assert launcher([debug_command(job.path, *flags)]) == [-signal.SIGKILL]
    killer.join()
    assert loaders
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in loaders))


def test_jobs_is_refused_where_it_means_nothing():
    with pytest.raises(ValueError, match="--jobs means nothing to the launcher local"):
        command_launchers.get_launcher("local", jobs=2)


@pytest.fixture
def ran(monkeypatch):
    """The commands that `local` was given; they leave a folder that is done."""
    commands = []

    def run(command, **_):
        commands.append(command)
        folder = shlex.split(command)
        folder = Path(folder[folder.index("--output_dir") + 1])
        (folder / "done").write_text("done")
        return 0

    monkeypatch.setattr(command_launchers, "run_command", run)
    return commands


def test_many_launches_at_once_run_each_job_once(pacs, tmp_path, ran):
    start = threading.Barrier(8)

    def one():
        start.wait()
        launch(tmp_path / "sweep", pacs)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ran) == 12
    assert len(set(ran)) == 12


def test_of_64_claims_one_succeeds(tmp_path):
    start, claimed = threading.Barrier(64), []

    def one():
        job = Job({"foo": "bar"}, str(tmp_path / "sweep"))
        start.wait()
        claimed.append(job.claim())

    threads = [threading.Thread(target=one) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(claimed) == 1


def test_status_retry_and_deletion(pacs, tmp_path, ran, capsys):
    folder = tmp_path / "sweep"
    launch(folder, pacs)
    runs = [RunFolder(f) for f in sorted(folder.glob("*"))]
    for run in runs[:5]:
        (run.path / "done").unlink()
    runs[0].fail(1, "RuntimeError: of this run")
    (runs[1].path / "heartbeat").write_text("{}")  # and no process
    runs[2].path.joinpath("done").touch()
    capsys.readouterr()
    with runs[4].held():  # this test is at work in it
        launch(folder, pacs, command="status")
        out = capsys.readouterr().out
        counts = "8 done, 1 running, 1 failed, 1 stale, 1 waiting, 0 not launched"
        assert f"12 jobs: {counts}." in out
        assert f"failed: {runs[0].path} (PACS, " in out
        assert "RuntimeError: of this run" in out
        ran.clear()
        launch(folder, pacs)
        assert ran == []
        launch(folder, pacs, "--retry")
        assert len(ran) == 3
        again = " ".join(ran)
        for run in runs[0], runs[1], runs[3]:
            assert str(run.path) in again
        launch(folder, pacs, command="delete_incomplete")
        assert "1 jobs are running; they stay." in capsys.readouterr().out
        assert runs[4].path.exists()
    launch(folder, pacs, command="delete_incomplete")
    assert not runs[4].path.exists()
    assert len(list(folder.iterdir())) == 11


def test_a_job_that_was_killed_is_recorded(pacs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command_launchers, "run_command", lambda command: -9)
    with pytest.raises(SystemExit) as ended:
        launch(tmp_path / "sweep", pacs)
    assert ended.value.code == 1
    assert capsys.readouterr().err.count("killed by SIGKILL") == 12
    launch(tmp_path / "sweep", pacs, command="status")
    assert "12 failed" in capsys.readouterr().out


def test_flags_that_change_no_number_change_no_folder(pacs, tmp_path, ran):
    flags = ["--feature_dir", "a b", "--no_feature_store"]
    launch(tmp_path / "sweep", pacs, *flags)
    assert "--feature_dir 'a b' " in ran[0]
    assert "--no_feature_store --output_dir" in ran[0]
    named = {f.name for f in (tmp_path / "sweep").iterdir()}
    launch(tmp_path / "other", pacs)
    assert {f.name for f in (tmp_path / "other").iterdir()} == named


def test_launch_needs_a_launcher(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        sweep.main(["launch", "--output_dir", str(tmp_path), "--data_dir", "x"])
    assert ended.value.code == 2
    assert "one of local, dummy, multi_gpu, pool, slurm" in capsys.readouterr().err


def test_a_read_only_output_folder_is_named(tmp_path):
    target = tmp_path / "file"
    target.write_text("in the way")
    command = [sys.executable, "-m", "domainbed.scripts.train", "--dataset", "Debug28"]
    command += ["--algorithm", "ZeroShotCLIP", "--output_dir", str(target / "run")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert f"cannot write to --output_dir {target}" in ended.stderr
