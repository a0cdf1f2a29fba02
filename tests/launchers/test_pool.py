"""The launcher pool: which GPU a job gets, how many run at once, and memory."""

import threading

import psutil
import pytest

from domainbed.launchers import pool, warm
from domainbed.lib import once


@pytest.fixture
def gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")


def test_a_job_gets_the_gpu_that_is_free(gpus, monkeypatch):
    """While one of two jobs goes on, the others take turns on the other's GPU."""
    given, started, done = {}, threading.Event(), threading.Event()

    def run_command(command, CUDA_VISIBLE_DEVICES):
        given[command] = CUDA_VISIBLE_DEVICES
        if command == "long":
            started.set()
            assert done.wait(10)
        assert started.wait(10)
        if len(given) == 6:
            done.set()
        return 0

    monkeypatch.setattr(pool, "run_command", run_command)
    assert pool.pool_launcher(["long", *"abcde"], jobs=2) == [0] * 6
    own = given.pop("long")
    assert {*given.values()} == {"4", "7"} - {own}


def test_more_jobs_than_gpus_are_spread(gpus, monkeypatch):
    together, seen = threading.Barrier(4, timeout=10), []

    def run_command(command, CUDA_VISIBLE_DEVICES):
        seen.append(CUDA_VISIBLE_DEVICES)
        together.wait()
        return 0

    monkeypatch.setattr(pool, "run_command", run_command)
    pool.pool_launcher([*"abcd"], jobs=4)
    assert sorted(seen) == ["4", "4", "7", "7"]


@pytest.mark.parametrize(
    "gib, cores, threads, n_gpus, jobs",
    [
        (64, 8, "1", 0, 8),
        (64, 8, "4", 0, 2),
        (3.5, 8, "1", 0, 3),
        (0.2, 8, "1", 0, 1),
        (64, 2, "1", 4, 4),
        (2, 64, "1", 4, 2),
        (64, 2, "8", 0, 1),
    ],
)
def test_as_many_run_at_once_as_cores_and_memory_allow(
    gib, cores, threads, n_gpus, jobs, monkeypatch, capsys
):
    memory = psutil.virtual_memory()._replace(available=int(gib * 2**30))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(pool.os, "cpu_count", lambda: cores)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert pool.at_once(n_gpus) == jobs
    assert f"pool: {jobs} runs at once" in capsys.readouterr().out


@pytest.mark.parametrize("for_memory, times", [(True, 2), (False, 1)])
def test_what_was_killed_for_want_of_memory_goes_on_alone_once(
    for_memory, times, monkeypatch, capsys
):
    ran, running, kills = [], set(), [0]

    def run_command(command):
        ran.append(command)
        running.add(command)
        if command == "big":
            again = ran.count("big") > 1
            assert not again or running == {"big"}
            kills[0] += for_memory
            running.remove(command)
            return -9
        running.remove(command)
        return 0

    monkeypatch.setattr(pool, "run_command", run_command)
    monkeypatch.setattr(pool, "out_of_memory_kills", lambda: kills[0])
    assert pool.pool_launcher(["a", "big", "b"], jobs=1) == [0, -9, 0]
    assert ran.count("big") == times
    assert ("killed for want of memory" in capsys.readouterr().out) == for_memory


def test_nothing_is_begun_when_time_is_up(monkeypatch):
    clock = [0.0]

    def run_command(command):
        clock[0] += 4
        return 0

    monkeypatch.setattr(pool, "run_command", run_command)
    monkeypatch.setattr(pool.time, "monotonic", lambda: clock[0])
    assert pool.pool_launcher([*"abcd"], jobs=1, until=8.0) == [0, 0, None, None]


@pytest.mark.parametrize(
    "flags, reads",
    [
        (["--algorithm", "LFA"], ["emoji"]),
        (["--algorithm", "ERM"], []),
        (["--algorithm", "ERM", "--hparams", "input=features"], ["emoji"]),
        (["--algorithm", "LFA", "--hparams", "clip_backbone=mine"], ["mine"]),
    ],
)
def test_the_clip_is_read_once_for_all_runs_that_use_one(flags, reads, monkeypatch):
    read = []
    monkeypatch.setattr(warm, "read_clip", read.append)
    warm.read_tower(["--dataset", "EmojiDG", *flags])
    assert read == reads


def test_a_run_that_cannot_be_says_so_itself(monkeypatch, capsys):
    monkeypatch.setattr(warm.gc, "freeze", lambda: None)
    monkeypatch.setattr(
        once, "MADE", None
    )  # and so it is again for what is tested next
    warm.warm_up("python -m domainbed.scripts.train --algorithm LAF --dataset EmojiDG")
    assert capsys.readouterr().err == ""
