"""The launcher slurm: its scripts and arrays, and a sweep on a real cluster."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from domainbed.command_launchers import get_launcher
from domainbed.launchers import slurm, task
from domainbed.lib.errors import InputError
from domainbed.runs.folder import RunFolder
from domainbed.scripts import collect_results, sweep

FAKES = {
    "sbatch": 'cp "$1" "$SCRIPTS/$(ls "$SCRIPTS" | wc -l)"; echo Submitted batch job 7',
    "srun": "exit 1",
    "scontrol": 'echo "MaxArraySize            = ${MAX_ARRAY_SIZE-4}"',
    "squeue": "echo $QUEUE",
}
SCRIPT = """\
#!/bin/bash

# Parameters
#SBATCH --array=0-2%3
#SBATCH --cpus-per-task=4
#SBATCH --job-name=domainbed
#SBATCH --nodes=1
#SBATCH --open-mode=append
#SBATCH --output=FOLDER/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@90
#SBATCH --time=120

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output FOLDER/%A_%a_%t_log.out --cpus-per-task=4 \
PYTHON TASK -u -m submitit.core._submit FOLDER
"""


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


def folders(tmp_path: Path) -> list[Path]:
    return [*(tmp_path / "sweep").glob("*/slurm")]


def arrays(scripts: Path) -> list[str]:
    lines = [f.read_text().splitlines() for f in sorted(scripts.iterdir())]
    return [x.split("=")[1] for text in lines for x in text if "--array" in x]


def test_arrays_stay_below_what_the_cluster_takes(cluster, tmp_path, capsys):
    launch(tmp_path / "sweep", "--slurm", "array_parallelism=2")
    assert arrays(cluster) == ["0-2%2", "0-2%2", "0-1%2"]
    assert "Submitted 8 runs in 8 tasks" in capsys.readouterr().out
    for folder in folders(tmp_path):
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


def test_further_options_are_handed_to_sbatch(cluster, tmp_path):
    options = ["exclude=n[1-3]", "gres=gpu:a100:2", "mail-type=END,FAIL", "gpus=a100"]
    options += ["exclusive=true", "setup=module load cuda", "setup=ulimit -n 4096"]
    launch(tmp_path / "sweep", "--slurm", *options)
    script = (cluster / "0").read_text()
    for line in (
        "--exclude='n[1-3]'",
        "--gres=gpu:a100:2",
        "--mail-type=END,FAIL",
        "--gpus-per-node=a100",
        "--exclusive",
        "--requeue",
    ):
        assert f"#SBATCH {line}\n" in script
    assert "module load cuda\nulimit -n 4096\n" in script


def test_a_dry_run_prints_what_would_be_submitted_and_leaves_nothing(
    cluster, tmp_path, capsys
):
    flags = ["--jobs_per_task", "3", "--slurm", "partition=gpu", "time=2:00:00"]
    launch(tmp_path / "sweep", "--dry_run", *flags, "cpus=4")
    folder = str(tmp_path / "sweep" / "slurm")
    script = SCRIPT.replace("FOLDER", folder).replace("PYTHON", sys.executable)
    script = script.replace("TASK", task.__file__)
    assert script in capsys.readouterr().out
    assert not list(cluster.iterdir())
    assert not (tmp_path / "sweep").exists()
    launch(tmp_path / "sweep", *flags, "cpus=4")
    assert (cluster / "0").read_text() == script


@pytest.mark.parametrize("size", ["0", "1"])
def test_a_cluster_without_arrays_gets_single_jobs(
    size, cluster, tmp_path, monkeypatch
):
    monkeypatch.setenv("MAX_ARRAY_SIZE", size)
    launch(tmp_path / "sweep", "--jobs_per_task", "3")
    assert len(list(cluster.iterdir())) == 3
    assert arrays(cluster) == []


def test_what_builds_on_other_runs_waits_for_their_jobs(cluster, tmp_path):
    launcher = get_launcher("slurm")
    folders = [tmp_path / "sweep" / name for name in "ab"]
    for folder in folders:
        folder.mkdir(parents=True)
        assert launcher([f"true --output_dir {folder}"]) == [0]
    first, second = ((cluster / str(i)).read_text() for i in range(2))
    assert "--dependency" not in first
    assert "#SBATCH --dependency=afterany:7\n" in second


def test_what_is_in_the_queue_is_not_submitted_again(
    cluster, tmp_path, monkeypatch, capsys
):
    launch(tmp_path / "sweep", "--jobs_per_task", "3")
    jobs = {f.parent: json.loads(f.read_text())["job"] for f in folders(tmp_path)}
    assert sorted(jobs.values()) == 3 * ["7_0"] + 3 * ["7_1"] + 2 * ["7_2"]
    monkeypatch.setenv("QUEUE", "7_0\n7_1")
    failed = next(run for run, job in jobs.items() if job == "7_0")
    RunFolder(failed).fail(1, "it went wrong")
    capsys.readouterr()
    launch(tmp_path / "sweep", "--retry", "--jobs_per_task", "3")
    out = capsys.readouterr().out
    assert "5 runs are in Slurm's queue already." in out
    assert "Submitted 3 runs in 1 tasks" in out


def test_what_sbatch_refuses_is_one_sentence(cluster, tmp_path, capsys):
    sbatch = cluster.parent / "bin" / "sbatch"
    sbatch.write_text("#!/bin/sh\necho 'invalid partition: x' >&2\nexit 1\n")
    with pytest.raises(SystemExit) as ended:
        launch(tmp_path / "sweep", "--slurm", "partition=x")
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert error.startswith("error: sbatch refused 3 tasks: invalid partition: x;")


@pytest.mark.parametrize("name", ["50%", "a\nrm -rf b"])
def test_a_folder_that_slurm_would_misread_is_refused(name, cluster, tmp_path):
    with pytest.raises(SystemExit) as ended:
        launch(tmp_path / name, "--dry_run")
    assert ended.value.code == 2
    assert not list(cluster.iterdir())


def down(cluster, name):
    """A program of Slurm's that finds no controller."""
    program = cluster.parent / "bin" / name
    text = program.read_text()
    program.write_text("#!/bin/sh\necho 'Unable to contact slurm' >&2\nexit 1\n")
    return lambda: program.write_text(text)


@pytest.mark.parametrize("name", ["scontrol", "sbatch"])
def test_what_was_not_submitted_is_not_claimed(name, cluster, tmp_path, capsys):
    up = down(cluster, name)
    with pytest.raises(SystemExit) as ended:
        launch(tmp_path / "sweep", "--jobs_per_task", "3")
    assert ended.value.code == 2
    assert not [f for f in (tmp_path / "sweep").glob("*") if f.name != "slurm"]
    up()
    capsys.readouterr()
    launch(tmp_path / "sweep", "--jobs_per_task", "3")
    assert "Launched 8 jobs!" in capsys.readouterr().out
    assert len(folders(tmp_path)) == 8


def test_the_last_line_counts_what_was_submitted(
    cluster, tmp_path, monkeypatch, capsys
):
    launch(tmp_path / "sweep")
    jobs = [json.loads(f.read_text())["job"] for f in folders(tmp_path)]
    monkeypatch.setenv("QUEUE", "\n".join(jobs[:6]))
    capsys.readouterr()
    launch(tmp_path / "sweep", "--retry")
    queued = sum(job in jobs[:6] for job in jobs)
    out = capsys.readouterr().out
    assert f"{queued} runs are in Slurm's queue already." in out
    assert out.endswith(f"Launched {8 - queued} jobs!\n")


def test_status_says_what_slurm_does_with_each_run(cluster, tmp_path, capsys):
    launch(tmp_path / "sweep", "--jobs_per_task", "2")
    by_job = {}
    for file in folders(tmp_path):
        # The fake cluster gives every array the same number.
        number = f"7_{len(by_job)}"
        about = json.loads(file.read_text()) | {"job": number}
        about["log"] = str(tmp_path / f"{number}.out")
        file.write_text(json.dumps(about))
        by_job[number] = RunFolder(file.parent)
    beat = by_job["7_5"].path / "heartbeat"  # died with its node, and is requeued
    beat.write_text('{"host": "gone", "pid": 1}')
    os.utime(beat, (0, 0))
    said = "slurmstepd: error: *** JOB 7 ON node1 CANCELLED AT 2026-11-27T02:56:45"
    (tmp_path / "7_4.out").write_text(f"{said} DUE TO NODE FAILURE ***\n")
    (tmp_path / "7_6.out").write_text(f"{said} ***\n")
    lines = ["7_0 PENDING Priority", "7_1 PENDING JobHeldUser", "7_2 CANCELLED None"]
    lines += ["7_3 FAILED NonZeroExitCode", "7_5 PENDING BeginTime", "7_7 RUNNING None"]
    said = "".join(f"echo {line}\n" for line in lines)
    (cluster.parent / "bin" / "squeue").write_text(f"#!/bin/sh\n{said}")
    capsys.readouterr()
    launch(tmp_path / "sweep", command="status")
    out = capsys.readouterr().out
    assert (
        "0 stale, 0 waiting, 0 not launched, 3 queued, 1 held, 2 cancelled, 2 lost"
        in out
    )
    name = by_job["7_1"].path.name
    assert f"{name} (EmojiDG" in out
    assert "JobHeldUser; scontrol release lets it go" in out
    assert "no job is to run it (FAILED)" in out
    assert "no job is to run it (cancelled, or lost)" in out
    down(cluster, "squeue")
    launch(tmp_path / "sweep", command="status")
    assert "1 stale, 7 waiting, 0 not launched.\n" in capsys.readouterr().out


def test_a_signal_that_comes_before_a_task_can_answer_waits(tmp_path):
    """It is sent while modules are imported; the handler that comes later has it."""
    code = (
        "import os, signal\n"
        "os.kill(os.getpid(), signal.SIGUSR2)\n"  # would end it at once
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "from domainbed.launchers import slurm\n"
        "heard = []\n"
        "signal.signal(signal.SIGUSR2, lambda *_: heard.append('limit'))\n"
        "slurm.Task.preempted = lambda *_: heard.append('preempted')\n"
        "slurm.Task([])()\n"
        "print(sorted(heard), signal.pthread_sigmask(signal.SIG_BLOCK, []))\n"
    )
    words = [sys.executable, task.__file__, "-c", code]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.stdout == "['limit', 'preempted'] set()\n", ended.stderr


def command(folder: Path, code: str) -> str:
    folder.mkdir()
    return f"python -c {shlex.quote(code)} --output_dir {folder}"


@pytest.fixture
def signals():
    """Handlers as they were, afterwards."""
    numbers = (signal.SIGTERM, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_a_task_goes_on_after_a_failure(tmp_path, signals):
    pytest.importorskip("submitit")
    done, killed, wrong, fine = (tmp_path / name for name in "abcd")
    commands = [
        command(done, "raise SystemExit(9)"),
        command(killed, "import os; os.kill(os.getpid(), 9)"),
        command(wrong, "raise SystemExit(3)"),
        command(fine, "pass"),
    ]
    (done / "done").write_text("done")
    assert slurm.Task(commands)() == [0, -9, 3, 0]
    assert RunFolder(killed).failure()["signal"] == "SIGKILL"
    assert RunFolder(wrong).failure()["exit_status"] == 3
    assert not (fine / "failed").exists()


@pytest.mark.parametrize("state, requeues", [("RUNNING", 1), ("CANCELLED", 0)])
def test_a_preempted_task_lets_its_run_save(
    state, requeues, cluster, tmp_path, monkeypatch, signals
):
    """Slurm's signals meet the run as well; that of the limit does not end it."""
    monkeypatch.setenv("QUEUE", state)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    run, further = tmp_path / "run", tmp_path / "further"
    code = (
        "import os, pathlib, signal, time\n"
        f"run = pathlib.Path({str(run)!r})\n"
        "def stop(*_):\n"
        "    time.sleep(0.1)\n"
        "    (run / 'saved').touch()\n"
        "    raise SystemExit(0)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "os.kill(os.getpid(), signal.SIGUSR2)\n"
        "(run / 'begun').touch()\n"
        "time.sleep(60)\n"
    )
    commands = [command(run, code), command(further, "raise SystemExit(1)")]
    task, queued = slurm.Task(commands), []

    def requeue(*_):  # what submitit does
        queued.append(task.checkpoint().function.commands)
        assert (run / "saved").exists()

    signal.signal(signal.SIGUSR2, requeue)

    def preempt():
        wait_for((run / "begun").exists, 30, "the run did not begin")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=preempt).start()
    assert task() == [0, 0]
    assert (run / "saved").exists()
    assert queued == requeues * [commands]
    assert not (further / "failed").exists()


@pytest.mark.parametrize(
    "option, sentence",
    [
        ("partitions=x", "Did you mean 'partition'"),
        ("time", "'time' gives time no value; write time=VALUE"),
        ("time=soon", "write MINUTES, HOURS:MINUTES:SECONDS"),
        ("time=0", "leaves no time to train and to save; give at least 5 minutes"),
        ("time=4", "give at least 5 minutes"),
        ("exlude=n1", "Did you mean 'exclude'"),
        ("gpus=0", "must be a number of at least 1"),
        ("cpus=many", "must be a number of at least 1"),
        ("mem=lots", "mem=lots is no size; write one such as 16G"),
        ("mem_per_cpu=4 GB", "mem_per_cpu=4 GB is no size"),
        ("partition=a partition=b", "gives partition twice; give one value"),
    ],
)
def test_wrong_options_are_named(option, sentence):
    options = option.split() if "twice" in sentence else [option]
    with pytest.raises(InputError, match=sentence.replace(".", r"\.")):
        slurm.parse_options(options)
    slurm.parse_options(["mem=0", "mem_per_gpu=16g", "setup=a", "setup=b"])


@pytest.mark.parametrize(
    "text, expected",
    [("90", 90), ("5:30", 6), ("2:00:00", 120), ("1-0", 1440), ("1-2:30:01", 1591)],
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
    said = subprocess.run(["sinfo", "-h", "-o", "%t"], capture_output=True, text=True)
    return any(state in said.stdout for state in ("idle", "mix", "alloc"))


def wait_for(condition, limit: int, what: str) -> None:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < limit, what
        time.sleep(0.2)


def interrupt(words: list[str], runs: list[RunFolder]) -> RunFolder:
    """One of the runs, of whose job the command made an end in the middle."""

    def halfway():
        begun = [run for run in runs if (run.path / "state.pt").exists()]
        return [run for run in begun if run.state == "running"]

    while True:
        wait_for(halfway, 120, "no task reached a checkpoint")
        for run in halfway():
            about = json.loads((run.path / "slurm").read_text())
            assert Path(about["log"]).exists()
            subprocess.run([*words, about["job"]])  # fails if it was at its end
            wait_for(lambda r=run: r.state != "running", 60, "it goes on")
            if run.state == "waiting":
                return run


@pytest.mark.slurm
@pytest.mark.skipif(not is_up(), reason="no Slurm here: ../shared/tools/slurm_up.sh")
def test_a_sweep_on_a_real_cluster_survives_its_interruptions(tmp_path, capsys):
    """One task is requeued from outside, one meets its limit; their runs go on."""
    folder, data = tmp_path / "cluster", tmp_path / "data"
    launch(folder, "--slurm", "time=60", "cpus=1", data=data, steps=1500)
    runs = [RunFolder(f) for f in folder.iterdir() if f.name != "slurm"]
    assert len(runs) == 8
    interrupted = []
    for words in (["scontrol", "requeue"], ["scancel", "--signal=USR2"]):
        fresh = [run for run in runs if run not in interrupted]
        interrupted.append(interrupt(words, fresh))
    # Slurm lets a task that was requeued wait for two minutes.
    wait_for(lambda: all(r.state == "done" for r in runs), 300, [r.state for r in runs])
    for run in interrupted:
        assert "goes on from step" in (run.path / "out.txt").read_text()
    launch(tmp_path / "here", data=data, launcher="pool", steps=1500)
    capsys.readouterr()
    collect_results.main(["--input_dir", str(folder)])
    on_cluster = capsys.readouterr().out
    collect_results.main(["--input_dir", str(tmp_path / "here")])
    assert capsys.readouterr().out == on_cluster
