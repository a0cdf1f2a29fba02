import os
import sys
import threading

import pytest

from domainbed import command_launchers
from domainbed.lib.errors import InputError, UnknownNameError


def test_commands_run_with_this_python_and_their_status_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # as where no environment is activated
    out = tmp_path / "out"
    command = f"(python -c 'import sys; print(sys.prefix)'; echo $X) > {out}; exit 3"
    assert command_launchers.run_command(command, X="given") == 3
    assert out.read_text() == f"{sys.prefix}\ngiven\n"
    statuses = command_launchers.REGISTRY["local"](["exit 4", "true"])
    assert statuses == [4, 0]


def test_multi_gpu_gives_each_gpu_one_job_at_a_time(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-a")
    busy, ran, lock = set(), [], threading.Lock()
    both = threading.Barrier(2, timeout=10)

    def run_command(command, CUDA_VISIBLE_DEVICES):
        with lock:
            assert CUDA_VISIBLE_DEVICES not in busy
            busy.add(CUDA_VISIBLE_DEVICES)
        both.wait()  # passes only when both GPUs work at once
        with lock:
            busy.remove(CUDA_VISIBLE_DEVICES)
            ran.append((command, CUDA_VISIBLE_DEVICES))
        return int(command)

    monkeypatch.setattr(command_launchers, "run_command", run_command)
    commands = [str(i) for i in range(6)]
    launcher = command_launchers.get_launcher("multi_gpu")
    assert launcher(commands) == [0, 1, 2, 3, 4, 5]
    assert sorted(command for command, _ in ran) == commands
    assert {gpu for _, gpu in ran} == {"3", "GPU-a"}


@pytest.mark.parametrize("named", ["", "-1", "-1,0"])
def test_multi_gpu_without_a_gpu_says_so(named, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    with pytest.raises(InputError, match="finds no GPU here"):
        command_launchers.get_launcher("multi_gpu")
    with pytest.raises(InputError, match="finds no GPU here"):
        command_launchers.REGISTRY["multi_gpu"](["true"])


def test_a_negative_gpu_hides_those_after_it(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0,-1,1")
    assert command_launchers.visible_gpus() == ["2", "0"]


def test_an_unknown_launcher_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'local'"):
        command_launchers.get_launcher("Local")


def test_a_commands_environment_is_otherwise_ours():
    os.environ["DOMAINBED_TEST"] = "seen"
    try:
        assert command_launchers.run_command('test "$DOMAINBED_TEST" = seen') == 0
    finally:
        del os.environ["DOMAINBED_TEST"]
