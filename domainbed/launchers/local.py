"""A command on this machine, and the GPUs that it can be given."""

import itertools
import os
import subprocess
import sys

from domainbed.lib import misc

DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # Nvidia's, AMD's, WSL's


def run_command(command: str, **environment: str) -> int:
    """The exit status of one command; its `python` is the one that runs this."""
    variables = {**misc.with_own_python(os.environ), **environment}
    return subprocess.run(command, shell=True, env=variables).returncode


def visible_gpus() -> list[str]:
    """The names by which CUDA_VISIBLE_DEVICES can give each visible GPU to a job.

    As for CUDA, the first invalid name, such as -1, hides those after it.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(i) for i in range(device_count())]
    names = (name.strip() for name in named.split(","))
    return [*itertools.takewhile(lambda n: n and not n.startswith("-"), names)]


def device_count() -> int:
    """How many GPUs torch finds, asked in a process that ends with its memory."""
    if not any(map(os.path.exists, DRIVERS)):
        return 0
    code = "import torch; print(torch.cuda.device_count())"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True)
    return int(answer.stdout or 0)
