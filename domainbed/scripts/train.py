"""Train and evaluate one algorithm on one dataset: one run, one folder.

The same command again goes on where the run was interrupted. SIGTERM makes it save its
state after the present step and end with status 0.
"""

import argparse
import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator

import torch

from domainbed import flags, training
from domainbed.lib.claim import TakenError
from domainbed.lib.errors import (
    DISK_ERRORS,
    InputError,
    exits_on_input_error,
    one_line,
)
from domainbed.lib.misc import Tee
from domainbed.lib.progress import silenced
from domainbed.runs import provenance
from domainbed.runs.folder import RunFolder
from domainbed.runs.records import OtherRunError

ParseArgs = Callable[[list[str] | None], argparse.Namespace]
MakeRun = Callable[[argparse.Namespace], training.Run]
USAGE = """python -m domainbed.scripts.train --dataset EmojiDG --data_dir data \\
           --test_envs openmoji --algorithm LFA --output_dir out"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    return flags.parse_args(argv, USAGE, __doc__)


@contextlib.contextmanager
def logs(folder: RunFolder) -> Iterator[None]:
    """What is printed inside also goes to out.txt and err.txt, a crash's trace too."""
    out = Tee(folder.path / "out.txt", stream=sys.stdout)
    err = Tee(folder.path / "err.txt", stream=sys.stderr)
    with (
        contextlib.closing(out.file),
        contextlib.closing(err.file),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        yield


def lacked(error: Exception) -> str:
    """Which memory had no room for what the error is of, "" of other errors."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "GPU memory"
    whole = isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)
    return "memory" if whole else ""


@contextlib.contextmanager
def failures_recorded(folder: RunFolder) -> Iterator[None]:
    """What goes wrong inside ends in `failed` and, with the remedy, in an exit."""
    try:
        yield
    except (OtherRunError, TakenError):  # the folder's own run has not failed
        raise
    except InputError as error:
        folder.fail(2, str(error))
        raise
    except OSError as error:
        sentence = f"{type(error).__name__}: {error}"
        if error.errno not in DISK_ERRORS:
            traceback.print_exc()
        else:
            sentence = (
                f"cannot use {error.filename or folder.path} ({error.strerror}); "
                "nothing is lost: once the disk can be used again, with room on it, "
                "the same command goes on from the last checkpoint"
            )
    except Exception as error:
        traceback.print_exc()
        sentence = f"{type(error).__name__}: {error}"
        if memory := lacked(error):
            sentence = f"out of {memory} ({error}); lower the hyperparameter batch_size"
    else:
        return
    sentence = one_line(sentence)
    print(f"error: {sentence}", file=sys.stderr)
    folder.fail(1, sentence)
    raise SystemExit(1)


@contextlib.contextmanager
def stopped_by_sigterm(run: training.Run) -> Iterator[None]:
    """SIGTERM lets the run finish its step and save its state.

    Before the first step, and in a worker process that loads images, it ends at once.
    """
    own = os.getpid()

    def stop(*_: object) -> None:
        if not run.stepping or os.getpid() != own:
            raise SystemExit(0)
        run.stopping = True

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def print_header(run: training.Run) -> None:
    """Versions, arguments and hyperparameters of the run."""
    versions = (" ".join(pair) for pair in provenance.versions().items())
    print(f"{', '.join(versions)}, on {run.device}, ", end="")
    print(f"{torch.get_num_threads()} threads (OMP_NUM_THREADS says how many)")
    for title, values in (("Args", vars(run.args)), ("HParams", run.hparams)):
        print(f"{title}:")
        for name, value in sorted(values.items()):
            print(f"\t{name}: {value}")


def make_folder(folder: RunFolder) -> None:
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        (folder.path / "out.txt").touch()
    except OSError as error:
        raise InputError(
            f"cannot write to --output_dir {folder.path}: {error}"
        ) from None


@exits_on_input_error
def start(
    folder: RunFolder,
    args: argparse.Namespace,
    run: training.Run | None,
    make_run: MakeRun,
) -> None:
    """Train; the folder is there and this process's own.

    What is wrong is said here, not in `main`, so that the run's log has it.
    """
    with failures_recorded(folder):
        run = run or make_run(args)
        run.records.check_own = folder.claim.check
        if args.no_resume:
            run.records.clear()
        run.records.check(run.about)
        folder.forget_failure()
        if run.records.done.exists():
            print(f"{folder.path} holds this run, finished; --no_resume starts over.")
            return
        print_header(run)
        with stopped_by_sigterm(run):
            run.train()


@exits_on_input_error
def main(
    argv: list[str] | None = None,
    make_run: MakeRun = training.Run,
    parse: ParseArgs = parse_args,
) -> None:
    args = parse(argv)
    folder = RunFolder(args.output_dir)
    # Wrong input ends before a folder is made. A folder that is there is a sweep's,
    # which looks for what went wrong in its logs.
    run = None if folder.path.is_dir() else make_run(args)
    make_folder(folder)
    with silenced(args.quiet), folder.held(), logs(folder):
        start(folder, args, run, make_run)


if __name__ == "__main__":
    main()
