"""Runs as job arrays of a Slurm cluster (https://slurm.schedmd.com), by submitit.

Slurm's log of a job, with all that its runs print, is SWEEP_OUTPUT_DIR/slurm/
JOB_0_log.out, where submitit keeps its own files too. The file `slurm` in a run's
folder (JSON) names the job that runs it and that log. How far a run is stands in its
folder and is never asked of Slurm's accounting, which many clusters do not have.
"""

import contextlib
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from domainbed.launchers import forks, task
from domainbed.lib import misc
from domainbed.lib.errors import InputError, UnknownNameError
from domainbed.lib.optional import require
from domainbed.runs.folder import RunFolder, end_of

# What --slurm takes, and submitit's name for it.
KEYS = {
    "partition": "partition",
    "time": "time",
    "gpus": "gpus_per_node",
    "cpus": "cpus_per_task",
    "mem": "mem",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
    "array_parallelism": "array_parallelism",
    "setup": "setup",  # a shell command before the task's program, or several
}
# What it hands to sbatch as it is.
PASSED = tuple(
    """
    begin chdir clusters comment contiguous core_spec deadline cores_per_socket
    cpu_freq exclude exclusive export gpu_bind gpu_freq gres gres_flags hint
    licenses mail_type mail_user mem_bind mem_per_cpu mem_per_gpu mincpus network
    nice nodefile nodelist oversubscribe power prefer priority reservation
    sockets_per_node switches thread_spec tmp
    """.split()  # noqa: SIM905
)
NUMBER = "[1-9][0-9]*"
COUNTS = {
    "gpus": f"{NUMBER}|[a-zA-Z][\\w.-]*(:{NUMBER})?",  # 2, a100 or a100:2
    "cpus": NUMBER,
    "array_parallelism": NUMBER,
}
SIZE = re.compile(r"\d+([KMGT]B?)?", re.IGNORECASE)  # 0 is all of a node's memory
IN_QUEUE = ("queued", "held", "cancelled", "lost")
ENDED = ("CANCELLED", "COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
ENDED += ("BOOT_FAIL", "DEADLINE", "REVOKED")
TIME_LIMIT = 60  # minutes; what is not done by then is requeued
LEAST_TIME = 5  # minutes: to import, to train and, warned 90 s before, to save
TIMEOUTS = 100  # times that a task meets its limit and is requeued, no more
# As sbatch writes a time: minutes[:seconds], hours:minutes:seconds or
# days-hours[:minutes[:seconds]].
TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


class SlurmLauncher:
    """Submits commands as job arrays and returns at once.

    Gives 0 for each that is submitted, None for one that is in the queue already.

    `slurm` holds key=value pairs, see KEYS. A task of an array runs `jobs_per_task`
    commands, one after another. What a later call submits starts when all jobs of the
    earlier ones have ended. `dry_run` prints the batch scripts and submits nothing.
    """

    def __init__(
        self, slurm: Iterable[str] = (), jobs_per_task: int = 1, dry_run: bool = False
    ):
        require("submitit", "slurm")
        for program in ("sbatch", "srun", "scontrol", "squeue"):
            if not shutil.which(program):
                raise InputError(
                    f"the launcher slurm finds no {program} here; start it where Slurm "
                    "is installed, or use local or pool."
                )
        self.parameters = parse_options(slurm)
        self.jobs_per_task = jobs_per_task
        self.dry_run = dry_run
        self.earlier: list[str] = []  # jobs submitted by earlier calls

    def __call__(self, commands: list[str]) -> list[int]:
        new = not_queued(commands)
        if queued := len(commands) - len(new):
            print(f"{queued} runs are in Slurm's queue already.")
        starts = range(0, len(new), self.jobs_per_task)
        tasks = [Task(new[i : i + self.jobs_per_task]) for i in starts]
        size = max(1, max_array_size() - 1) if tasks else 1
        chunks = [tasks[i : i + size] for i in range(0, len(tasks), size)]
        ids = [self.submit(chunk) for chunk in chunks]
        if chunks and not self.dry_run:
            jobs = f"{len(tasks)} tasks of Slurm's jobs {', '.join(ids)}"
            print(f"Submitted {len(new)} runs in {jobs}; ask `sweep status`.")
        self.earlier += ids
        submitted = {*new} if not self.dry_run else set()
        return [0 if command in submitted else None for command in commands]

    def submit(self, tasks: list["Task"]) -> str:
        """Submit an array, or print its script; gives its job id."""
        submitit = require("submitit", "slurm")
        folder = Path(output_dir(tasks[0].commands[0])).absolute().parent / "slurm"
        if "%" in str(folder) or not str(folder).isprintable():
            raise InputError(
                f"Slurm takes % and control characters in {str(folder)!r} for its own; "
                "name another --output_dir."
            )
        python = shlex.join([sys.executable, task.__file__])
        executor = submitit.SlurmExecutor(folder, TIMEOUTS, python=python)
        executor.update_parameters(**self.parameters)
        if self.earlier:
            executor.update_parameters(dependency=":".join(["afterany", *self.earlier]))
        if self.dry_run:
            print(batch_script(executor, len(tasks)))
            return "JOB"
        try:
            jobs = executor.submit_array(tasks)
        except RuntimeError as error:  # submitit's, with what sbatch said
            last = str(error).strip().split("\n")[-1].removeprefix("sbatch: error: ")
            raise InputError(
                f"sbatch refused {len(tasks)} tasks: {last}; launch --retry submits "
                "what is not in the queue."
            ) from None
        for job, own in zip(jobs, tasks, strict=True):
            about = json.dumps({"job": job.job_id, "log": str(job.paths.stdout)})
            for command in own.commands:
                misc.write_whole(Path(output_dir(command)) / "slurm", about)
        return jobs[0].job_id.split("_")[0]


class Task:
    """What a task of an array does: its commands, one after another, each in a process
    that begins with all ready (`warm`).

    Shortly before its time limit, or preempted, it lets the run it is at save its state
    and has itself requeued. Started again it passes over the runs that are done.
    """

    def __init__(self, commands: list[str]):
        self.commands = commands
        self.child: BaseProcess | None = None
        self.stopping = False

    def __call__(self) -> list[int]:
        """The commands' exit statuses; 0 for what is not run."""
        signal.signal(signal.SIGTERM, self.preempted)
        # The server begins while signals wait, and never hears any. What begins before
        # it would let SIGTERM through.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, task.WAITING)
        forks.start_server(c for c in self.commands if not is_done(c))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, task.WAITING)
        return [self.run(command) for command in self.commands]

    def run(self, command: str) -> int:
        if self.stopping or is_done(command):
            return 0
        self.child = forks.start(run_here, command, limit_signal())
        status = forks.wait(self.child)
        folder = RunFolder(output_dir(command))
        if status and not self.stopping and folder.state in ("stale", "waiting"):
            folder.fail(status)
        return status

    def checkpoint(self) -> Any:
        """What submitit requeues at the time limit: the same commands."""
        self.stop()
        return require("submitit", "slurm").helpers.DelayedSubmission(
            Task(self.commands)
        )

    def preempted(self, number: int, frame: FrameType | None) -> None:
        """What SIGTERM means: Slurm ends this job.

        It is running still when it was preempted with a time of grace; then nobody but
        itself would requeue it. Otherwise it was cancelled, or is requeued already.
        """
        self.stop()
        if job_state() == "RUNNING":
            signal.raise_signal(limit_signal())

    def stop(self) -> None:
        """Let the present run save its state and end; start no other."""
        self.stopping = True
        if self.child is None or connection.wait([self.child.sentinel], 0):
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child.pid, signal.SIGTERM)
        # Not forks.wait, which this may have interrupted: a status is read once.
        connection.wait([self.child.sentinel])


def run_here(command: str, limit: signal.Signals) -> None:
    """One command in this process, a child of a task's.

    Slurm sends its signals to all processes of a task. That of the time limit is for
    submitit, in the task's own, and would kill a run that does not ignore it.
    """
    signal.signal(limit, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, task.WAITING)
    if forks.is_train(command):
        forks.train(command)
    else:
        shell = ["sh", "-c", f"exec {command}"]
        os.execvpe(shell[0], shell, misc.with_own_python(os.environ))


def is_done(command: str) -> bool:
    return RunFolder(output_dir(command)).state == "done"


def parse_options(pairs: Iterable[str]) -> dict[str, Any]:
    """submitit's parameters for what --slurm says; InputError for what it may not."""
    parameters: dict[str, Any] = {
        "job_name": "domainbed",
        "time": TIME_LIMIT,
        "stderr_to_stdout": True,
        "wckey": None,
        "additional_parameters": {"requeue": True},
    }
    seen: set[str] = set()
    for pair in pairs:
        key, _, value = pair.partition("=")
        key = key.replace("-", "_")
        if key in seen and key != "setup":
            raise InputError(f"--slurm gives {key} twice; give one value.")
        seen.add(key)
        if key not in KEYS and key not in PASSED:
            raise UnknownNameError("key of --slurm", key, [*KEYS, *PASSED])
        if not value or not value.isprintable():
            raise InputError(
                f"--slurm {pair!r} gives {key} no value; write {key}=VALUE."
            )
        if key in COUNTS and not re.fullmatch(COUNTS[key], value):
            raise InputError(f"--slurm {pair} must be a number of at least 1.")
        if key.startswith("mem") and key != "mem_bind" and not SIZE.fullmatch(value):
            raise InputError(f"--slurm {pair} is no size; write one such as 16G.")
        if key in PASSED:
            parameters["additional_parameters"][key] = value == "true" or value
            continue
        if key == "setup":
            parameters.setdefault("setup", []).append(value)
            continue
        convert = {"time": minutes, "array_parallelism": int}.get(key, str)
        parameters[KEYS[key]] = convert(value)
    if "cpus_per_task" in parameters:  # since Slurm 22.05 srun does not ask sbatch
        parameters["srun_args"] = [f"--cpus-per-task={parameters['cpus_per_task']}"]
    return parameters


def minutes(time: str) -> int:
    """The minutes of a time as sbatch takes it, rounded up."""
    match = TIME.fullmatch(time)
    if not match:
        raise InputError(
            f"--slurm time={time} is no time; write MINUTES, HOURS:MINUTES:SECONDS or "
            "DAYS-HOURS."
        )
    days, *parts = match.groups()
    values = [int(part) for part in parts if part is not None]
    if days is None:
        values = [0] * (len(values) < 3) + values
    hours, mins, seconds = [*values, 0, 0][:3]
    total = math.ceil(int(days or 0) * 1440 + hours * 60 + mins + seconds / 60)
    if total < LEAST_TIME:
        raise InputError(
            f"--slurm time={time} leaves no time to train and to save; give at least "
            f"{LEAST_TIME} minutes."
        )
    return total


def batch_script(executor: Any, n_tasks: int) -> str:
    """What submitit would give sbatch for that many tasks."""
    if n_tasks > 1:
        executor.parameters["map_count"] = n_tasks
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def output_dir(command: str) -> str:
    """The run's folder, which its command names."""
    words = shlex.split(command)
    return words[words.index("--output_dir") + 1]


def limit_signal() -> signal.Signals:
    """What submitit has Slurm send before the time limit: SIGUSR2, unless told."""
    return signal.Signals[f"SIG{require('submitit', 'slurm').JobEnvironment.USR_SIG}"]


def ask(*words: str) -> str:
    """What a command of Slurm's prints; InputError with what it complains of."""
    answer = subprocess.run(words, capture_output=True, text=True)
    if answer.returncode:
        raise InputError(f"{words[0]} does not answer: {answer.stderr.strip()}.")
    return answer.stdout


def max_array_size() -> int:
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"))
    return int(match[1]) if match else 1001  # Slurm's default


def job_state() -> str:
    """The present job's state in Slurm's queue, "" if it cannot be had."""
    words = [
        "squeue",
        "--noheader",
        "--format=%T",
        "--jobs",
        os.environ["SLURM_JOB_ID"],
    ]
    return subprocess.run(words, capture_output=True, text=True).stdout.strip()


def not_queued(commands: list[str]) -> list[str]:
    """The commands that no job in Slurm's queue is still to run."""
    jobs = {command: job_of(RunFolder(output_dir(command))) for command in commands}
    if not any(jobs.values()):
        return commands
    user = f"--user={os.getuid()}"
    queue = {*ask("squeue", "--noheader", "--array", "--format=%i", user).split()}
    return [command for command, job in jobs.items() if job not in queue]


def in_queue(folders: Iterable[RunFolder]) -> dict[RunFolder, tuple[str, str]]:
    """What Slurm knows of runs that it is to run: one of IN_QUEUE, and why.

    Lost is what no job is to run any more. Slurm forgets a cancelled job after some
    minutes; if it ran, its log still says so.
    """
    jobs = {folder: job for folder in folders if (job := job_of(folder))}
    if not jobs or not shutil.which("squeue"):
        return {}
    arrays = ",".join(sorted({job.split("_")[0] for job in jobs.values()}))
    words = ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T %r"]
    answer = subprocess.run([*words, "--jobs", arrays], capture_output=True, text=True)
    if answer.returncode and "Invalid job id" not in answer.stderr:
        return {}  # the controller is down
    lines = (line.split(maxsplit=2) for line in answer.stdout.splitlines())
    queue = {job: (state, reason) for job, state, reason in lines}
    return {
        folder: place_in_queue(folder, *queue.get(job, ("", "")))
        for folder, job in jobs.items()
    }


def place_in_queue(folder: RunFolder, state: str, reason: str) -> tuple[str, str]:
    """One of IN_QUEUE for a job's state and reason in squeue, and why."""
    if state == "PENDING" and re.search("[Hh][eo]ld", reason):
        return "held", f"{reason}; scontrol release lets it go"
    if state and state not in ENDED:
        return "queued", reason
    # A node that fails or a requeue is "CANCELLED AT ... DUE TO ...".
    log = end_of(folder.slurm.get("log", ""))
    ends = re.findall(r"CANCELLED AT [^\n]*", log)
    if state == "CANCELLED" or (ends and "DUE TO" not in ends[-1]):
        return "cancelled", "launch --retry submits it again"
    return "lost", f"no job is to run it ({state or 'cancelled, or lost'})"


def job_of(folder: RunFolder) -> str | None:
    """The job that is to run it; None if none is or the run has failed in it."""
    return None if folder.failure() is not None else folder.slurm.get("job")
