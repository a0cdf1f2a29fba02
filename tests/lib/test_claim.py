"""Who works at a place where locks are refused, unknown or granted to everybody."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from domainbed.lib import claim as module
from domainbed.lib.claim import SILENCE, Claim, TakenError
from domainbed.runs.records import RunRecords

WITHOUT_LOCKS = Path(__file__).parents[2] / "tools" / "torture" / "locks"
FAILURES = (errno.ENOLCK, errno.ENOSYS, 0)  # 0: granted to everybody
HOLD = """
import sys, time
from pathlib import Path
from domainbed.lib.claim import Claim
with Claim.beside(Path(sys.argv[1])).held():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=FAILURES)
def no_locks(request, monkeypatch):
    """The environment in which other processes have no locks; nor does this one."""

    def flock(fd, operation):
        if request.param:
            raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr("fcntl.flock", flock)
    path = os.pathsep.join([str(WITHOUT_LOCKS), *filter(None, sys.path)])
    return {**os.environ, "PYTHONPATH": path, "TORTURE_FLOCK": str(request.param)}


@pytest.fixture
def holder(tmp_path, no_locks):
    """Another process of this machine that works at tmp_path/place."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "place")]
    process = subprocess.Popen(command, env=no_locks, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_without_locks_a_process_of_this_machine_is_known_by_its_number(
    tmp_path, holder
):
    claim = Claim.beside(tmp_path / "place")
    old = time.time() - 2 * SILENCE  # it is stopped, say
    os.utime(claim.beat, (old, old))
    assert claim.is_alive()
    refused = pytest.raises(TakenError, match=f"process {holder.pid} on ")
    with refused, claim.held(patience=0):
        pass
    assert claim.is_alive()
    assert not claim.remove(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert not claim.is_alive()
    with claim.held(patience=0):
        assert claim.is_alive()


def test_a_process_that_got_a_dead_ones_number_is_another(tmp_path):
    claim = Claim.beside(tmp_path / "place")
    with claim.held():
        beat = json.loads(claim.beat.read_text())
    own = beat | {"pid": os.getppid()}
    for began, alive in ((None, True), (beat["began"] - 1000, False)):
        claim.beat.write_text(json.dumps(own | {"began": began}))
        assert claim.is_alive() == alive


def test_a_zombie_is_dead(tmp_path):
    claim = Claim.beside(tmp_path / "place")
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    beat = {"host": module.socket.gethostname(), "pid": child.pid}
    claim.beat.write_text(json.dumps(beat))
    assert not claim.is_alive()
    child.wait()


def test_who_was_silent_for_too_long_finds_the_place_taken(tmp_path, monkeypatch):
    """It was stopped while another machine, which saw no lock, took its place."""
    monkeypatch.setattr(module, "BEAT", 0.01)
    claim, records = Claim.beside(tmp_path / "place"), RunRecords(tmp_path)
    records.check_own = claim.check
    with claim.held():
        records.append({"step": 0})
        claim.beat.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
        os.utime(claim.beat, (1, 1))
        for write in (
            lambda: records.append({"step": 1}),
            lambda: records.save_state({"step": 2}),
            lambda: records.begin({}, 0),
            lambda: records.write("predictions.npz", b""),
            lambda: records.save("model.pkl", {}),
            records.finish,
        ):
            with pytest.raises(TakenError, match="process 1 on elsewhere"):
                write()
        time.sleep(0.1)
    assert claim.beat.stat().st_mtime == 1  # neither kept alive nor taken away
    assert [r["step"] for r in records.read()] == [0]
    assert {f.name for f in tmp_path.iterdir()} <= {
        "results.jsonl",
        "place.lock",
        "place.heartbeat",
    }
    claim.beat.unlink()
    claim.check()  # holds nothing any more


def test_a_place_that_another_has_left_again_is_not_ones_own(tmp_path):
    claim = Claim.beside(tmp_path / "place")
    with claim.held():
        claim.check()
        claim.beat.unlink()
        with pytest.raises(TakenError):
            claim.check()


def test_a_full_disk_is_no_obstacle_to_removing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.setattr(module.misc, "write_whole", full)
    assert Claim.beside(folder).remove(folder)
    assert not folder.exists()
