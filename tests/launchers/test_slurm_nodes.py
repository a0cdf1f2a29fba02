"""A sweep on a cluster of three nodes that is preempted, loses a node, its controller
and some tasks: ../shared/tools/slurm_up.sh start 3 brings one up. It takes minutes, two
of them because Slurm lets wait what it has requeued.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from domainbed.runs.folder import RunFolder

SPOOL = Path(os.environ.get("SLURM_TEST_DIR", "/tmp/slurm-test"))
UP = Path(__file__).parents[3] / "shared" / "tools" / "slurm_up.sh"
SWEEP = [sys.executable, "-m", "domainbed.scripts.sweep"]
FLAGS = ["--datasets", "EmojiDG", "--algorithms", "LFA", "LinearProbeCLIP"]
FLAGS += ["--n_hparams", "3", "--n_trials", "1", "--single_test_envs"]
FLAGS += ["--steps", "401", "--checkpoint_freq", "50"]
ON_SLURM = ["--command_launcher", "slurm", "--jobs_per_task", "3", "--slurm"]
ON_SLURM += ["time=60", "cpus=1", "partition=debug"]


def has_nodes() -> bool:
    try:
        words = ["sinfo", "-h", "-N", "-p", "high", "-o", "%N"]
        said = subprocess.run(words, capture_output=True, text=True)
    except OSError:
        return False
    return len(set(said.stdout.split())) >= 3 and UP.exists()


def say(*words: str) -> str:
    """What a command prints."""
    return subprocess.run(words, capture_output=True, text=True).stdout


def until(condition, seconds: int, what: str):
    """What the condition gives once it is true; the test fails if it never is."""
    ends = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < ends, what
        time.sleep(0.5)
    return value


class Cluster:
    """A sweep of 24 runs on Slurm."""

    def __init__(self, folder: Path):
        self.folder, self.data = folder / "cluster", folder / "data"
        own = ["--output_dir", str(self.folder), "--data_dir", str(self.data)]
        self.flags = [*FLAGS, *own, "--skip_confirmation"]

    def launch(self, *flags: str) -> subprocess.Popen:
        words = [*SWEEP, "launch", *self.flags, *ON_SLURM, *flags]
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

    def status(self) -> Counter:
        """How many runs `status` says are in which state."""
        said = say(*SWEEP, "status", *self.flags)
        counts = re.findall(r"(\d+) ([a-z ]+)[,.]", said.split(": ", 1)[1])
        return Counter({state: int(n) for n, state in counts})

    @property
    def runs(self) -> list[RunFolder]:
        return [RunFolder(f.parent) for f in self.folder.glob("*/slurm")]

    def working(self) -> list[RunFolder]:
        """Those whose process is there, by its number: all nodes are this machine."""
        return [run for run in self.runs if self.pid(run)]

    def pid(self, run: RunFolder) -> int | None:
        beat = run.heartbeat()
        with contextlib.suppress(OSError, TypeError):
            os.kill(beat["pid"], 0)
            return beat["pid"]
        return None

    def halfway(self) -> list[RunFolder]:
        """Runs at work that have passed a checkpoint."""
        return [run for run in self.working() if (run.path / "state.pt").exists()]

    def is_done(self) -> bool:
        return len(self.runs) == 24 and all(r.state == "done" for r in self.runs)


def node_processes(name: str) -> list[int]:
    """What runs on that node, its daemon too: all that has its host name."""
    daemon = int((SPOOL / f"slurmd-{name}.pid").read_text())
    space = os.readlink(f"/proc/{daemon}/ns/uts")
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(process / "ns" / "uts") == space:
                found.append(int(process.name))
    return found


def kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slurm
@pytest.mark.skipif(not has_nodes(), reason="no three nodes: slurm_up.sh start 3")
def test_a_sweep_survives_what_a_cluster_does(tmp_path):
    """With no hand but launch --retry; its table is pool's."""
    cluster = Cluster(tmp_path)
    both = [cluster.launch(), cluster.launch()]
    submitted = [
        int(re.search(r"Launched (\d+) jobs", p.communicate()[0])[1]) for p in both
    ]
    assert sum(submitted) == 24  # each once
    until(lambda: len(cluster.halfway()) >= 3, 300, "nothing reached a checkpoint")
    truth = len(cluster.working())
    said = cluster.status()
    assert abs(said["running"] - truth) <= 1 and sum(said.values()) == 24, said

    # A partition of higher priority takes all nodes.
    say(
        "sbatch",
        "-p",
        "high",
        "-N",
        "3",
        "--exclusive",
        "-o",
        "/dev/null",
        "--wrap",
        "sleep 5",
    )
    until(lambda: not cluster.working(), 60, "it was not preempted")
    said = cluster.status()
    assert said["running"] == 0 and said["failed"] == 0, said
    assert said["queued"] + said["done"] == 24, said

    # Two minutes later Slurm starts what it has requeued.
    until(lambda: len(cluster.halfway()) >= 2, 300, "it was not requeued")

    # A node loses its power.
    lost = next(run.heartbeat()["host"] for run in cluster.halfway())
    kill(node_processes(lost))

    # Then the controller dies, and tasks go on without.
    kill([int((SPOOL / "slurmctld.pid").read_text())])
    said = cluster.status()
    assert sum(said.values()) == 24 and said["failed"] == 0, said
    refused = cluster.launch("--retry")
    assert refused.wait() == 2
    say("slurmctld")
    until(lambda: "UP" in say("scontrol", "ping"), 60, "no controller")

    # Somebody cancels what runs now.
    until(cluster.halfway, 300, "nothing goes on")
    cancelled = {
        say("cat", str(r.path / "slurm")).split('"')[3] for r in cluster.working()
    }
    say("scancel", *cancelled)
    until(lambda: cluster.status()["cancelled"], 90, "status does not know of it")
    say("bash", str(UP), "node", lost[-1])

    def ended():
        if cluster.is_done():
            return True
        cluster.launch("--retry").communicate()
        time.sleep(20)

    until(ended, 900, cluster.status())
    assert cluster.status() == {"done": 24} | dict.fromkeys(said.keys() - {"done"}, 0)
    pool = [
        *FLAGS,
        "--output_dir",
        str(tmp_path / "pool"),
        "--data_dir",
        str(cluster.data),
    ]
    say(*SWEEP, "launch", *pool, "--skip_confirmation", "--command_launcher", "pool")
    table = [sys.executable, "-m", "domainbed.scripts.collect_results", "--input_dir"]
    expected = say(*table, str(tmp_path / "pool"))
    assert "Avg" in expected
    assert say(*table, str(cluster.folder)) == expected
