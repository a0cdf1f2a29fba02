"""Download datasets, or unpack them from local archives, into a data folder."""

import argparse
import sys
from pathlib import Path
from types import ModuleType

import torchvision

from domainbed.download import few_shot, steps
from domainbed.lib.errors import (
    InputError,
    UnknownNameError,
    exits_on_input_error,
)
from domainbed.lib.paths import as_path, user_path
from domainbed.lib.progress import add_quiet, silenced

MNIST = ("MNIST", "RotatedMNIST", "ColoredMNIST")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="download",
        usage="python -m domainbed.scripts.download --data_dir data --dataset PACS",
        description=__doc__,
    )
    parser.add_argument("--data_dir", required=True, type=as_path)
    parser.add_argument(
        "--dataset",
        nargs="+",
        default=list(steps.CARDS),
        help=f"default: {', '.join(steps.CARDS)}; further: MNIST, and of few shots "
        f"{', '.join(few_shot.CARDS)}",
    )
    parser.add_argument(
        "--source",
        type=user_path,
        default="auto",
        help="auto (the mirrors in order), hf, url, gdrive, or a local archive "
        "(a folder, if the dataset has several)",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="count the pictures of each domain, of few shots those of each class",
    )
    add_quiet(parser)
    return parser.parse_args(argv)


def download_mnist(data_dir: Path) -> None:
    """The digits where RotatedMNIST and ColoredMNIST read them, by torchvision."""
    try:
        torchvision.datasets.MNIST(data_dir, download=True)
    except (OSError, RuntimeError) as error:
        raise InputError(f"MNIST could not be downloaded: {error}") from error
    print(f"MNIST is at {data_dir / 'MNIST'}")


def makers_of(name: str) -> ModuleType:
    """The module that has the dataset's card; UnknownNameError if none has."""
    for module in (steps, few_shot):
        if name in module.CARDS:
            return module
    known = (*steps.CARDS, *few_shot.CARDS, *MNIST)
    raise UnknownNameError("dataset to download", name, known)


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.source not in steps.SOURCES and len(args.dataset) > 1:
        raise InputError(
            f"--source {args.source} can hold one dataset, but --dataset names "
            f"{len(args.dataset)}; give one at a time."
        )
    names = [name for name in args.dataset if name not in MNIST]
    for name in names:  # all wrong input before any download
        makers_of(name).sources_of(name, args.source)
    with silenced(args.quiet):
        obtain(names, args)


def obtain(names: list[str], args: argparse.Namespace) -> None:
    """Download or unpack them, MNIST first if it is wanted too."""
    if len(names) < len(args.dataset):
        download_mnist(args.data_dir)
    for name in names:
        makers_of(name).obtain(name, args.data_dir, args.source, report=print)
        if args.verify:
            sentence, agrees = makers_of(name).verify(name, args.data_dir)
            print(
                sentence if agrees else f"warning: {sentence}",
                file=sys.stdout if agrees else sys.stderr,
            )


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None
