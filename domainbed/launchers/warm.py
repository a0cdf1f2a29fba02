"""Imported by the process whose children runs are (`forks`): what all begin with.

The modules, the commit, the frozen CLIP, what a look at all images of a dataset finds:
read for one run of each kind and kept by `lib/once.py`. None of it uses the GPU or
several threads: what a process has started of these, its children have not.
"""

import contextlib
import gc
import importlib
import os
import pkgutil
import shlex

import torch

import domainbed
from domainbed import flags
from domainbed.arguments import resolve_hparams
from domainbed.backbones import read_clip
from domainbed.inputs import RunInputs
from domainbed.launchers.forks import FIRST, TRAIN
from domainbed.lib import once
from domainbed.runs import provenance
from domainbed.tasks import get_task


def warm_up(*commands: str) -> None:
    """Make ready for runs such as these; what is wrong with one, it says itself."""
    torch.set_num_threads(1)
    for late in (TRAIN[-1], "torch.utils.tensorboard"):
        importlib.import_module(late)
    for module in pkgutil.iter_modules(domainbed.__path__):
        if module.name.startswith(("algorithms", "datasets")):
            importlib.import_module(f"domainbed.{module.name}")
    provenance.git_state()
    once.remember()
    for command in commands:
        words = shlex.split(command)[len(TRAIN) :]
        for read in (read_tower, read_data):
            with (
                open(os.devnull, "w") as nowhere,
                contextlib.redirect_stdout(nowhere),
                contextlib.redirect_stderr(nowhere),
                contextlib.suppress(Exception, SystemExit),
            ):
                read(words)
    gc.freeze()  # or the first collection in each child would write to all of it


def read_tower(words: list[str]) -> None:
    """Read the frozen CLIP that a run of these arguments takes its features from."""
    args = flags.parse_args(words)
    hparams = resolve_hparams(args, get_task(args.task).hparam_rows(args))
    if hparams.get("clip_transform") or hparams["input"] != "images":
        read_clip(hparams["clip_backbone"])


def read_data(words: list[str]) -> None:
    """Read the folders and files of such a run's dataset, as far as runs share them."""
    RunInputs(flags.parse_args(words)).share()


if FIRST in os.environ:
    warm_up(*os.environ[FIRST].splitlines())
