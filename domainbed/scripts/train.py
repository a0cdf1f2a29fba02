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

from domainbed import training
from domainbed.hparams_registry import as_json
from domainbed.lib.claim import TakenError
from domainbed.lib.errors import DISK_ERRORS, InputError, exits_on_input_error
from domainbed.lib.misc import Tee
from domainbed.lib.paths import user_path
from domainbed.lib.precision import PRECISIONS
from domainbed.lib.progress import add_quiet, silenced
from domainbed.runs import provenance
from domainbed.runs.folder import RunFolder
from domainbed.runs.records import OtherRunError
from domainbed.tasks import TASKS

MakeRun = Callable[[argparse.Namespace], training.Run]
EVAL_HELP = (
    "chosen: at a checkpoint only what training-domain validation and the oracle need; "
    "leave-one-domain-out needs all"
)
HPARAMS_HELP = "overrides: a JSON object, @FILE with one, or name=value ..."


def run_flags() -> argparse.ArgumentParser:
    """What a sweep takes, too, and passes on to each of its runs."""
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument
    add("--checkpoint_freq", type=int, help="steps between evaluations")
    add("--uda_holdout_fraction", type=float, default=0)
    add("--num_workers", type=int, help="processes that load images; default: by cores")
    add(
        "--allow_missing_classes",
        action="store_true",
        help="environments may lack a class that others have",
    )
    add(
        "--feature_dir",
        type=user_path,
        help="stored layer features; default: DATA_DIR/features",
    )
    add("--no_feature_store", action="store_true", help="compute features every time")
    add(
        "--strict_fingerprint",
        action="store_true",
        help="know images by their content, not by their size and time of change",
    )
    add("--precision", default="float32", choices=PRECISIONS, help="of the towers")
    add("--eval", default="all", choices=["all", "chosen"], help=EVAL_HELP)
    add("--no_tensorboard", action="store_true", help="write no curves")
    add("--no_predictions", action="store_true", help="store no answers to images")
    add("--no_resume", action="store_true", help="start over, forget what is there")
    add("--skip_model_save", action="store_true")
    add("--save_model_every_checkpoint", action="store_true")
    return parser


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="train", description=__doc__, parents=[run_flags()]
    )
    add = parser.add_argument
    add(
        "--data_dir", type=user_path, help="the folder that holds the datasets' folders"
    )
    add("--dataset", default="RotatedMNIST")
    add("--algorithm", default="ERM")
    add("--task", default="domain_generalization", choices=[*TASKS])
    add("--hparams", nargs="+", help=HPARAMS_HELP)
    add("--hparams_seed", type=int, default=0, help="0: defaults, else a random draw")
    add("--trial_seed", type=int, default=0, help="seeds the splits")
    add("--seed", type=int, default=0, help="seeds everything else")
    add("--steps", type=int, help="default: the dataset's")
    add("--test_envs", nargs="+", default=[0], help="by number or by name")
    few_shot = {"default": argparse.SUPPRESS}  # these arguments are of that task alone
    add("--shots", type=int, help="few_shot: K of each class", **few_shot)
    add("--classes", choices=["all", "base"], help="few_shot: that train", **few_shot)
    add("--source", help="few_shot: the domain of the shots", **few_shot)
    add("--transfer_to", nargs="+", help="few_shot: further datasets", **few_shot)
    add("--output_dir", type=user_path, default="train_output")
    add("--holdout_fraction", type=float, default=0.2)
    add_quiet(parser)
    args = parser.parse_args(argv)
    args.hparams = as_json(args.hparams)
    return args


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
    except torch.cuda.OutOfMemoryError as error:
        traceback.print_exc()
        sentence = f"out of GPU memory ({error}); lower the hyperparameter batch_size"
    except OSError as error:
        traceback.print_exc()
        sentence = f"{type(error).__name__}: {error}"
        if error.errno in DISK_ERRORS:
            sentence = (
                f"cannot write in {folder.path} ({error}); nothing is lost: with room "
                "on the disk the same command goes on from the last checkpoint"
            )
    except Exception as error:
        traceback.print_exc()
        sentence = f"{type(error).__name__}: {error}"
    else:
        return
    sentence = " ".join(sentence.split())
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
def start(folder, args, run, make_run) -> None:
    """Train; the folder is there and this process's own."""
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
def main(argv: list[str] | None = None, make_run: MakeRun = training.Run) -> None:
    args = parse_args(argv)
    folder = RunFolder(args.output_dir)
    # Wrong input ends before a folder is made. A folder that is there is a sweep's,
    # which looks for what went wrong in its logs.
    run = None if folder.path.is_dir() else make_run(args)
    make_folder(folder)
    with silenced(args.quiet), folder.held(), logs(folder):
        start(folder, args, run, make_run)


if __name__ == "__main__":
    main()
