"""The launcher ray: what --ray says, and runs as tasks of a small cluster."""

import os
import shlex
import signal
import subprocess
import sys
import time

import psutil
import pytest

from domainbed.command_launchers import get_launcher
from domainbed.launchers import ray
from domainbed.lib.errors import InputError


@pytest.mark.parametrize(
    "pair, options",
    [
        ("gpus=0.25", {"num_gpus": 0.25}),
        ("gpus=2", {"num_gpus": 2}),
        ("cpus=4", {"num_cpus": 4}),
        ("mem=16G", {"memory": 16 * 2**30}),
        ("mem=1.5g", {"memory": 3 * 2**29}),
        ("mem=512MB", {"memory": 2**29}),
        ("mem=1000", {"memory": 1000}),
        ("address=ray://a:1", {"address": "ray://a:1"}),
    ],
)
def test_options_become_rays(pair, options):
    assert ray.parse_options([pair]) == options


def test_an_option_is_given_once():
    with pytest.raises(InputError, match="--ray gives gpus twice; give one value"):
        ray.parse_options(["gpus=1", "gpus=2"])


@pytest.mark.parametrize(
    "pair, sentence",
    [
        ("gpu=1", "Unknown key of --ray 'gpu'.* Did you mean 'gpus'"),
        ("gpus", "'gpus' gives gpus no value; write gpus=VALUE"),
        ("gpus=0", "gpus=0 must be a whole number of at least 1 or a part of one"),
        ("gpus=1.5", "gpus=1.5 must be a whole number"),
        ("cpus=-1", "cpus=-1 must be"),
        ("cpus=nan", "cpus=nan must be"),
        ("mem=lots", "mem=lots is no size; write one such as 16G"),
        ("mem=0G", "mem=0G is no size"),
    ],
)
def test_wrong_options_are_named(pair, sentence):
    with pytest.raises(InputError, match=sentence):
        ray.parse_options([pair])


class Cluster:
    """Of Ray's module what the launcher uses; its tasks are run when they are asked."""

    class exceptions:
        class RayError(Exception):
            pass

    def __init__(self, nodes):
        self.answers, self.asked = nodes, []

    def is_initialized(self):
        return True

    def remote(self, function):
        self.function = function
        return self

    def options(self, **options):
        self.asked.append(options)
        return type("task", (), {"remote": staticmethod(lambda *args: args)})

    def wait(self, tasks, num_returns, timeout):
        return [], []

    def nodes(self):
        return self.answers

    def get_runtime_context(self):
        return type("context", (), {"get_node_id": staticmethod(lambda: "own")})

    def get(self, task):
        if task[0] == "lost":
            raise self.exceptions.RayError("its node died\nand so on")
        return self.function(*task)


ALIVE = [{"NodeID": "own", "Alive": True}, {"NodeID": "b", "Alive": False}]


@pytest.fixture
def cluster(monkeypatch):
    fake = Cluster(ALIVE)
    monkeypatch.setattr(ray, "require", lambda module, extra: fake)
    return fake


def test_a_failed_run_is_not_tried_again_a_lost_task_is(cluster, tmp_path, capsys):
    launcher = get_launcher("ray", ray=["gpus=0.25", "mem=1G"])
    count = f"echo >> {tmp_path}/times; exit 3"
    commands = [f"sh -c {shlex.quote(count)}", "true", "lost"]
    assert launcher(commands) == [3, 0, ray.LOST]
    assert (tmp_path / "times").read_text() == "\n"
    assert "Ray gave a run up: its node died\n" in capsys.readouterr().err
    (options,) = cluster.asked
    assert options.pop("max_retries") > 0 and options.pop("retry_exceptions") is False
    assert options == {"num_gpus": 0.25, "memory": 2**30}


@pytest.mark.parametrize("nodes", [ALIVE[1:], [ALIVE[0] | {"Alive": False}], None])
def test_a_launcher_whose_node_is_lost_says_what_goes_on(nodes, cluster):
    cluster.answers = nodes
    with pytest.raises(InputError, match="launch --retry goes on with what is not"):
        get_launcher("ray")(["true"])


def test_a_cluster_that_does_not_answer_is_not_waited_for():
    started = time.monotonic()
    assert ray.within(0.1, lambda: time.sleep(5)) is None
    assert time.monotonic() - started < 4
    assert ray.within(5, lambda: 1 / 0) is None
    assert ray.within(5, lambda: "answer") == "answer"


def test_a_run_has_the_launchers_threads(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # as Ray sets it for cpus=7
    command = f"sh -c {shlex.quote(f'echo ${{OMP_NUM_THREADS-none}} >> {tmp_path}/n')}"
    assert [ray.run_task(command, threads) for threads in ("2", None)] == [0, 0]
    assert (tmp_path / "n").read_text() == "2\nnone\n"


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
def test_a_run_dies_with_its_task(tmp_path):
    code = "from domainbed.launchers.ray import run_task as t; t('sleep 60', None)"
    task = subprocess.Popen([sys.executable, "-c", code])
    children = []
    while not children:
        time.sleep(0.05)
        children = [
            c for c in psutil.Process(task.pid).children() if c.name() == "sleep"
        ]
    os.kill(task.pid, signal.SIGKILL)
    task.wait()
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert gone and not alive


@pytest.mark.ray
def test_runs_on_a_cluster_of_this_machine(tmp_path):
    """In a process of its own: Ray asks the network which machine this is."""
    pytest.importorskip("ray")
    commands = [f"sh -c 'echo >> {tmp_path}/{i}; exit {i}'" for i in (0, 3)]
    code = (
        "from domainbed.command_launchers import get_launcher\n"
        f"print(get_launcher('ray', ray=['cpus=0.5'])({commands}))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.stdout.endswith("[0, 3]\n"), ended.stderr
    assert [(tmp_path / name).read_text() for name in "03"] == ["\n", "\n"]
