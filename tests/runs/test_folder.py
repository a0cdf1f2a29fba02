"""The states of a run's folder, and who may work in it."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from domainbed.lib import claim as module
from domainbed.lib.claim import SILENCE
from domainbed.lib.errors import InputError
from domainbed.runs.folder import RunFolder

HOLD = """
import sys, time
from domainbed.runs.folder import RunFolder
with RunFolder(sys.argv[1]).held():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that works in tmp_path."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_folders_life(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert folder.state == "not launched"
    folder.path.mkdir()
    assert folder.state == "waiting"
    with folder.held():
        assert folder.state == "running"
        assert folder.heartbeat()["pid"] == os.getpid()
    assert folder.state == "waiting"
    folder.fail(-9)
    assert folder.state == "failed"
    assert folder.failure()["signal"] == "SIGKILL"
    folder.forget_failure()
    assert folder.state == "waiting"
    (folder.path / "done").touch()
    assert folder.state == "done"


def test_a_killed_process_leaves_a_stale_folder(tmp_path, holder):
    folder = RunFolder(tmp_path)
    assert folder.state == "running"
    refused = pytest.raises(InputError, match=f"process {holder.pid} on ")
    with refused, folder.held():
        pass
    assert folder.state == "running"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert folder.state == "stale"
    with folder.held():
        assert folder.state == "running"


@pytest.mark.parametrize("age, state", [(0, "running"), (2 * SILENCE, "stale")])
@pytest.mark.parametrize("ahead", [False, True])
def test_without_common_locks_another_machines_heartbeat_counts(
    tmp_path, age, state, ahead
):
    """Also where its clock is ahead of ours, or ours went backwards."""
    (tmp_path / "lock").touch()
    beat = tmp_path / "heartbeat"
    beat.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    then = time.time() + (age if ahead else -age)
    os.utime(beat, (then, then))
    assert RunFolder(tmp_path).state == state


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 1}', "\x00"])
def test_damaged_files_are_no_obstacle(tmp_path, text):
    folder = RunFolder(tmp_path)
    (tmp_path / "heartbeat").write_text(text)
    (tmp_path / "failed").write_text(text)
    (tmp_path / "lock").touch()
    assert folder.state == "failed"
    assert folder.heartbeat() is None
    assert folder.last_error() == "ended without a word before its first checkpoint"


def test_the_last_error_is_one_line(tmp_path):
    folder = RunFolder(tmp_path)
    folder.log.write_bytes(b"x" * 50_000 + b"\nTraceback\n\nValueError: no \xff\n\n")
    assert folder.last_error() == "ValueError: no \N{REPLACEMENT CHARACTER}"
    folder.fail(137)
    assert folder.last_error().startswith("killed by SIGKILL: ValueError")
    folder.fail(2, "error: too\nmuch")
    assert folder.last_error() == "much"


def test_what_a_stale_run_printed_last_is_no_reason(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "err.txt").write_text("0.592  0.598\n")
    (tmp_path / "heartbeat").write_text(json.dumps({"host": "gone", "pid": 1}))
    os.utime(tmp_path / "heartbeat", (0, 0))
    assert folder.state == "stale"
    assert folder.last_error() == "ended without a word before its first checkpoint"
    (tmp_path / "results.jsonl").write_text('{"step": 0}\n{"step": 40}\n')
    assert folder.last_error() == "ended without a word after its checkpoint at step 40"


def test_two_observers_do_not_see_each_other(tmp_path):
    """Each holds a shared lock while it looks."""
    with RunFolder(tmp_path).held():
        pass
    with open(tmp_path / "lock", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert RunFolder(tmp_path).state == "waiting"
        fcntl.flock(file, fcntl.LOCK_EX)
        assert RunFolder(tmp_path).state == "running"


@pytest.mark.parametrize("age, state", [(0, "running"), (2 * SILENCE, "stale")])
@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOLCK, errno.EROFS])
def test_where_the_lock_cannot_be_asked_the_heartbeat_decides(
    tmp_path, monkeypatch, number, age, state
):
    """A colleague's folder, a file system without locks, one that is read-only."""

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module.fcntl, "flock", refuse)
    (tmp_path / "lock").touch()
    (tmp_path / "failed").write_text("{}")
    assert RunFolder(tmp_path).state == "failed"
    (tmp_path / "failed").unlink()
    beat(tmp_path, age)
    assert RunFolder(tmp_path).state == state


def beat(folder, age=0, host="elsewhere"):
    (folder / "heartbeat").write_text(json.dumps({"host": host, "pid": 1}))
    os.utime(folder / "heartbeat", (time.time() - age,) * 2)


def test_another_machine_that_goes_on_is_not_disturbed(tmp_path, monkeypatch):
    """Its lock is not seen here; its heartbeat is."""
    monkeypatch.setattr(module, "LOOK", 0.01)
    beat(tmp_path, age=5)
    looks = []

    def renewed(_):
        looks.append(None)
        if len(looks) == 3:
            beat(tmp_path)

    monkeypatch.setattr(module.time, "sleep", renewed)
    refused = pytest.raises(InputError, match="process 1 on elsewhere")
    with refused, RunFolder(tmp_path).held():
        pass
    assert len(looks) == 3
    assert RunFolder(tmp_path).heartbeat()["host"] == "elsewhere"
    assert {f.name for f in tmp_path.iterdir()} <= {"heartbeat", "lock"}


def test_another_machine_that_fell_silent_is_waited_for_and_replaced(
    tmp_path, monkeypatch
):
    beat(tmp_path, age=SILENCE - 5)
    looks = []

    def silent(_):
        looks.append(None)
        beat(tmp_path, age=SILENCE - 5)  # the same time, then too old
        os.utime(tmp_path / "heartbeat", (first, first))
        monkeypatch.setattr(module, "SILENCE", 1)

    first = (tmp_path / "heartbeat").stat().st_mtime
    monkeypatch.setattr(module.time, "sleep", silent)
    with RunFolder(tmp_path).held():
        assert RunFolder(tmp_path).heartbeat()["pid"] == os.getpid()
    assert looks == [None]


def test_of_two_machines_that_begin_at_once_one_does(tmp_path, monkeypatch):
    """Whose heartbeat is there first; the other sees it beat."""

    def link(source, target):
        beat(tmp_path)
        raise FileExistsError

    monkeypatch.setattr(module.os, "link", link)
    monkeypatch.setattr(module.time, "sleep", lambda _: beat(tmp_path))
    refused = pytest.raises(InputError, match="process 1 on elsewhere")
    with refused, RunFolder(tmp_path).held():
        pass


def test_a_disk_that_turned_read_only_ends_a_run_in_order(tmp_path, monkeypatch):
    def unlink(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    with RunFolder(tmp_path).held():
        monkeypatch.setattr(module.Path, "unlink", unlink)


def test_ages_are_by_the_file_systems_clock(tmp_path, monkeypatch):
    (tmp_path / "lock").touch()
    now = time.time()
    beat(tmp_path)
    monkeypatch.setattr(module, "AHEAD", {})
    monkeypatch.setattr(module.time, "time", lambda: now - 7200)  # this machine's
    assert RunFolder(tmp_path).state == "running"
