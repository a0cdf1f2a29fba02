"""The sweep that is tortured, and the hosts that launch it again until it is done."""

import contextlib
import ctypes
import faulthandler
import multiprocessing
import os
import runpy
import shlex
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

from domainbed import command_launchers
from domainbed.datasets_emoji import EmojiDG
from domainbed.scripts import sweep, train

# Two on stored features, and one on pictures, which processes of its own load.
ALGORITHMS = ("LFA", "LinearProbeCLIP", "VQT")
LOCKS = Path(__file__).parent / "locks"
NEW_UTS = 0x04000000  # Linux's CLONE_NEWUTS: a host name of one's own
WARM = multiprocessing.get_context("forkserver")
WARM.set_forkserver_preload(["domainbed.scripts.sweep", "domainbed.algorithms_side"])


def make_pictures(folder: Path, n: int) -> Path:
    """A data set of the first n of EmojiDG's pictures of each house and class."""
    taken: dict[Path, int] = {}
    with zipfile.ZipFile(EmojiDG.ARCHIVE) as archive:
        for name in sorted(archive.namelist()):
            group = Path(name).parent
            if len(group.parts) == 2 and taken.setdefault(group, 0) < n:
                taken[group] += 1
                archive.extract(name, folder)
    return folder


class Sweep:
    """A run for each algorithm and house, with its output and features in a folder."""

    def __init__(self, folder: Path, pictures: Path):
        self.folder, self.output = folder, folder / "sweep"
        self.features = folder / "features"
        given = f"""
            --datasets ImageFolder:{pictures} --data_dir {pictures}
            --algorithms {" ".join(ALGORITHMS)} --single_test_envs --n_hparams 1
            --n_trials 1 --steps 9 --checkpoint_freq 4 --num_workers 1
            --hparams clip_backbone=emoji batch_size=8 lr=0.01
            --output_dir {self.output} --feature_dir {self.features}
        """
        self.flags = shlex.split(given)
        jobs = sweep.jobs_of(sweep.parse_args(["status", *self.flags]))
        self.folders = [Path(job.output_dir) for job in jobs]
        self.name = {Path(job.output_dir): job.name for job in jobs}

    @property
    def is_done(self) -> bool:
        return all((folder / "done").exists() for folder in self.folders)

    @property
    def has_features(self) -> bool:
        """Whether those of all houses are extracted."""
        return len([*self.features.glob("?" * 16)]) == len(EmojiDG.ENVIRONMENTS)

    def progress(self, folder: Path | None = None) -> int:
        """Checkpoints so far, of one run or of all; what is done has one more."""
        if folder is None:
            return sum(map(self.progress, self.folders))
        with contextlib.suppress(OSError):
            lines = (folder / "results.jsonl").read_bytes().count(b"\n")
            return lines + (folder / "done").exists()
        return 0


class Host(threading.Thread):
    """A machine with a name of its own, which launches the sweep until it is done.

    Its launcher is `pool` in a process of its own or, `warm`, `local` in a process that
    has imported all. `flock` is what TORTURE_FLOCK says, None for locks that work.
    """

    def __init__(self, name: str, sweep: Sweep, warm: bool, flock: int | None):
        super().__init__(daemon=True)
        self.host, self.sweep, self.warm, self.flock = name, sweep, warm, flock
        self.launcher: Any = None
        self.launched: list[int] = []  # process ids of its launchers so far
        self.over = False

    def run(self) -> None:
        while not (self.over or self.sweep.is_done):
            self.launcher = self.start_warm() if self.warm else self.start_cold()
            self.launched.append(self.launcher.pid)
            self.launcher.join() if self.warm else self.launcher.wait()
            time.sleep(0.5)  # what is not done is perhaps at work elsewhere

    def start_cold(self) -> subprocess.Popen:
        words = [sys.executable, "-m", "domainbed.scripts.sweep", "launch"]
        words += [*self.sweep.flags, "--retry", "--skip_confirmation"]
        words += ["--command_launcher", "pool", "--jobs", "1"]
        environment = {**os.environ, **self.variables(), "PYTHONFAULTHANDLER": "1"}
        path = filter(None, [str(LOCKS), os.environ.get("PYTHONPATH")])
        environment["PYTHONPATH"] = os.pathsep.join(path)
        named = f"hostname {self.host} && exec {shlex.join(words)}"
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                ["unshare", "--uts", "sh", "-c", named],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_warm(self) -> Any:
        args = (self.host, self.sweep.flags, self.variables(), self.log)
        process = WARM.Process(target=launch_here, args=args)
        process.start()
        return process

    @property
    def log(self) -> Path:
        """Where a process was that had to be ended, after what cold launchers said."""
        return self.sweep.folder / f"{self.host}.txt"

    def variables(self) -> dict[str, str]:
        return {} if self.flock is None else {"TORTURE_FLOCK": str(self.flock)}


def launch_here(
    host: str, flags: list[str], variables: dict[str, str], log: Path
) -> None:
    """In a process that has imported all: launch, each run in a child of it."""
    os.setsid()
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    faulthandler.enable(open(log, "a"))  # noqa: SIM115
    if ctypes.CDLL(None, use_errno=True).unshare(NEW_UTS):
        raise OSError(ctypes.get_errno(), "unshare")
    socket.sethostname(host)
    os.environ.update(variables)
    runpy.run_path(str(LOCKS / "sitecustomize.py"))
    command_launchers.run_command = run_forked
    how = ["--retry", "--skip_confirmation", "--quiet", "--command_launcher", "local"]
    sweep.main(["launch", *flags, *how])


def run_forked(command: str, **_: str) -> int:
    """The exit status of a run in a child of this process."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        train.main(shlex.split(command)[3:])
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    finally:
        os._exit(status)
