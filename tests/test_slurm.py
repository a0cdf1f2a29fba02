"""The launcher slurm: its scripts and arrays, and a sweep on a real cluster."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from domainbed import slurm
from domainbed.lib.errors import InputError
from domainbed.run_folder import RunFolder
from domainbed.scripts import collect_results, sweep

FAKES = {
    "sbatch": 'cp "$1" "$SCRIPTS/$(ls "$SCRIPTS" | wc -l)"; echo Submitted batch job 7',
    "srun": "exit 1",
    "scontrol": "echo 'MaxArraySize            = 4'",
    "squeue": "exit 0",
}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A folder that gets the scripts which a cluster of arrays below 4 is given."""
    pytest.importorskip("submitit")
    programs, scripts = tmp_path / "bin", tmp_path / "scripts"
    programs.mkdir()
    scripts.mkdir()
    for name, text in FAKES.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("SCRIPTS", str(scripts))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return scripts


def launch(folder, *flags, data="data", command="launch", launcher="slurm", steps=21):
    """Eight jobs: two algorithms on the four domains of EmojiDG."""
    given = ["--datasets", "EmojiDG", "--algorithms", "LFA", "LinearProbeCLIP"]
    given += ["--n_hparams", "1", "--n_trials", "1", "--single_test_envs"]
    given += ["--steps", str(steps), "--hparams", '{"lr": 0.01}']
    given += ["--output_dir", str(folder), "--data_dir", str(data)]
    how = ["--command_launcher", launcher, "--skip_confirmation"]
    sweep.main([command, *given, *how, *flags])


def arrays(scripts: Path) -> list[str]:
    lines = [f.read_text().splitlines() for f in sorted(scripts.iterdir())]
    return [x.split("=")[1] for text in lines for x in text if "--array" in x]


def test_arrays_stay_below_what_the_cluster_takes(cluster, tmp_path, capsys):
    launch(tmp_path / "sweep", "--slurm", "array_parallelism=2")
    assert arrays(cluster) == ["0-2%2", "0-2%2", "0-1%2"]
    assert "Submitted 8 runs in 8 tasks" in capsys.readouterr().out
    for folder in (tmp_path / "sweep").glob("*/slurm"):
        log = json.loads(folder.read_text())["log"]
        assert Path(log).parent == tmp_path / "sweep" / "slurm"


def test_several_runs_share_a_task(cluster, tmp_path):
    launch(tmp_path / "sweep", "--jobs_per_task", "3")
    assert arrays(cluster) == ["0-2%3"]


def test_options_become_slurms(cluster, tmp_path):
    options = ["partition=debug", "time=1-2:30", "gpus=1", "cpus=4", "mem=8G"]
    options += ["account=me", "qos=low", "constraint=a100|h200"]
    launch(tmp_path / "sweep", "--slurm", *options)
    script = (cluster / "0").read_text()
    for line in (
        "--partition=debug",
        "--time=1590",
        "--gpus-per-node=1",
        "--cpus-per-task=4",
        "--mem=8G",
        "--account=me",
        "--qos=low",
        "--constraint='a100|h200'",
        "--signal=USR2@90",
        "--open-mode=append",
    ):
        assert f"#SBATCH {line}\n" in script


def test_a_dry_run_prints_the_script_and_leaves_nothing(cluster, tmp_path, capsys):
    launch(tmp_path / "sweep", "--dry_run", "--slurm", "partition=debug")
    out = capsys.readouterr().out
    assert "#SBATCH --partition=debug" in out
    assert "#SBATCH --array=0-2%3" in out
    assert not list(cluster.iterdir())
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    "option, sentence",
    [
        ("partitions=x", "Did you mean 'partition'"),
        ("time", "'time' gives time no value; write time=VALUE"),
        ("time=soon", "write MINUTES, HOURS:MINUTES:SECONDS"),
        ("time=0", "leaves no time"),
        ("cpus=many", "must be a number of at least 1"),
    ],
)
def test_wrong_options_are_named(option, sentence):
    with pytest.raises(InputError, match=sentence.replace(".", r"\.")):
        slurm.parse_options([option])


@pytest.mark.parametrize(
    "text, expected",
    [("90", 90), ("1:30", 2), ("2:00:00", 120), ("1-0", 1440), ("1-2:30:01", 1591)],
)
def test_times_are_slurms(text, expected):
    assert slurm.minutes(text) == expected


def test_without_slurm_it_says_so(tmp_path, monkeypatch, capsys):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        launch(tmp_path / "sweep")
    assert ended.value.code == 2
    assert "finds no sbatch here" in capsys.readouterr().err
    assert not list((tmp_path / "sweep").glob("*/slurm"))


def test_a_run_that_never_began_shows_slurms_log(tmp_path):
    log = tmp_path / "7_0_0_log.err"
    log.write_text("slurmstepd: error: Detected 1 oom_kill event\n")
    run = tmp_path / "run"
    run.mkdir()
    (run / "slurm").write_text(json.dumps({"job": "7_0", "log": str(log)}))
    assert RunFolder(run).last_error() == log.read_text().strip()


def is_up() -> bool:
    if shutil.which("sinfo") is None:
        return False
    said = subprocess.run(["sinfo", "-h"], capture_output=True, text=True)
    return said.returncode == 0 and "idle" in said.stdout + "mix alloc"


def wait_for(condition, limit: int, what: str) -> None:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < limit, what
        time.sleep(0.2)


@pytest.mark.slurm
@pytest.mark.skipif(not is_up(), reason="no Slurm here: ../shared/tools/slurm_up.sh")
def test_a_sweep_on_a_real_cluster_survives_a_requeue(tmp_path, capsys):
    """A running task is ended and queued again; its run goes on later."""
    folder, data = tmp_path / "cluster", tmp_path / "data"
    one = ["--algorithms", "LFA"]
    launch(folder, *one, "--slurm", "time=60", "cpus=1", data=data, steps=800)
    runs = [RunFolder(f) for f in folder.iterdir() if f.name != "slurm"]
    assert len(runs) == 4

    def halfway():
        return [
            r for r in runs if r.state == "running" and (r.path / "state.pt").exists()
        ]

    wait_for(halfway, 120, "no task reached a checkpoint")
    stopped = halfway()[0]
    job = json.loads((stopped.path / "slurm").read_text())["job"]
    subprocess.run(["scontrol", "requeue", job], check=True)
    wait_for(lambda: stopped.state == "waiting", 60, stopped.state)
    wait_for(lambda: all(r.state == "done" for r in runs), 280, [r.state for r in runs])
    assert "goes on from step" in (stopped.path / "out.txt").read_text()
    launch(tmp_path / "here", *one, data=data, launcher="pool", steps=800)
    capsys.readouterr()
    collect_results.main(["--input_dir", str(folder)])
    on_cluster = capsys.readouterr().out
    collect_results.main(["--input_dir", str(tmp_path / "here")])
    assert capsys.readouterr().out == on_cluster
