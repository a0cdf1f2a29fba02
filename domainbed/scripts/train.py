"""Train and evaluate one algorithm on one dataset: one run, one folder."""

import argparse
import contextlib
import platform
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from domainbed import __version__, training
from domainbed.hparams_registry import as_json
from domainbed.lib.errors import InputError, exits_on_input_error
from domainbed.lib.misc import Tee

HPARAMS_HELP = "overrides: a JSON object, @FILE with one, or name=value ..."


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="train", description=__doc__)
    add = parser.add_argument
    add("--data_dir", help="the folder that holds the datasets' folders")
    add("--dataset", default="RotatedMNIST")
    add("--algorithm", default="ERM")
    add(
        "--task",
        default="domain_generalization",
        choices=["domain_generalization", "domain_adaptation"],
    )
    add("--hparams", nargs="+", help=HPARAMS_HELP)
    add("--hparams_seed", type=int, default=0, help="0: defaults, else a random draw")
    add("--trial_seed", type=int, default=0, help="seeds the splits")
    add("--seed", type=int, default=0, help="seeds everything else")
    add("--steps", type=int, help="default: the dataset's")
    add("--checkpoint_freq", type=int, help="steps between evaluations")
    add("--test_envs", nargs="+", default=[0], help="by number or by name")
    add("--output_dir", default="train_output")
    add("--holdout_fraction", type=float, default=0.2)
    add("--uda_holdout_fraction", type=float, default=0)
    add("--num_workers", type=int, help="processes that load images; default: by cores")
    add(
        "--allow_missing_classes",
        action="store_true",
        help="environments may lack a class that others have",
    )
    add("--feature_dir", help="stored layer features; default: DATA_DIR/features")
    add("--no_feature_store", action="store_true", help="compute features every time")
    add("--skip_model_save", action="store_true")
    add("--save_model_every_checkpoint", action="store_true")
    args = parser.parse_args(argv)
    args.hparams = as_json(args.hparams)
    return args


@contextlib.contextmanager
def logs(output_dir: Path) -> Iterator[None]:
    """What is printed inside also goes to out.txt and err.txt, a crash's trace too."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        out = Tee(output_dir / "out.txt", stream=sys.stdout)
        err = Tee(output_dir / "err.txt", stream=sys.stderr)
    except OSError as error:
        raise InputError(
            f"cannot write to --output_dir {output_dir}: {error}"
        ) from None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            yield
        except InputError:
            raise
        except Exception:
            traceback.print_exc()
            raise SystemExit(1) from None


def print_header(run: training.Run) -> None:
    """Versions, arguments and hyperparameters of the run."""
    print(f"domainbed {__version__}, python {platform.python_version()}, ", end="")
    print(f"torch {torch.__version__}, on {run.device}")
    for title, values in (("Args", vars(run.args)), ("HParams", run.hparams)):
        print(f"{title}:")
        for name, value in sorted(values.items()):
            print(f"\t{name}: {value}")


def start(args: argparse.Namespace, run: training.Run | None) -> None:
    run = run or training.Run(args)
    print_header(run)
    run.train()


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    folder = Path(args.output_dir)
    # Wrong input ends before a folder is made. A folder that is there is a sweep's,
    # which looks for what went wrong in its logs.
    run = None if folder.is_dir() else training.Run(args)
    with logs(folder):
        exits_on_input_error(start)(args, run)


if __name__ == "__main__":
    main()
