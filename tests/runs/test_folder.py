"""The states of a run's folder, and who may work in it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from domainbed.lib.errors import InputError
from domainbed.runs.folder import SILENCE, RunFolder

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
    assert folder.last_error() == "no log"


def test_the_last_error_is_one_line(tmp_path):
    folder = RunFolder(tmp_path)
    folder.log.write_bytes(b"x" * 50_000 + b"\nTraceback\n\nValueError: no \xff\n\n")
    assert folder.last_error() == "ValueError: no \N{REPLACEMENT CHARACTER}"
    folder.fail(137)
    assert folder.last_error().startswith("killed by SIGKILL: ValueError")
    folder.fail(2, "error: too\nmuch")
    assert folder.last_error() == "much"
