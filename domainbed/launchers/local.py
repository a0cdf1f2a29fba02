"""A command on this machine, and the GPUs that it can be given."""

import itertools
import os
import subprocess

import torch

from domainbed.lib import misc


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
        return [str(i) for i in range(torch.cuda.device_count())]
    names = (name.strip() for name in named.split(","))
    return [*itertools.takewhile(lambda n: n and not n.startswith("-"), names)]
