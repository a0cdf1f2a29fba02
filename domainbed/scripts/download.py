"""Download datasets, or unpack them from local archives, into a data folder."""

import argparse
import sys
from pathlib import Path

from domainbed import download
from domainbed.lib.errors import InputError, exits_on_input_error


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="download", description=__doc__)
    parser.add_argument("--data_dir", required=True, type=Path)
    parser.add_argument(
        "--dataset", required=True, nargs="+", help=", ".join(download.CARDS)
    )
    parser.add_argument(
        "--source",
        default="auto",
        help="auto (the mirrors in order), hf, url, gdrive, or a local archive "
        "(a folder, if the dataset has several)",
    )
    parser.add_argument(
        "--verify", action="store_true", help="count the pictures of each domain"
    )
    return parser.parse_args(argv)


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.source not in download.SOURCES and len(args.dataset) > 1:
        raise InputError(
            f"--source {args.source} can hold one dataset, but --dataset names "
            f"{len(args.dataset)}; give one at a time."
        )
    for name in args.dataset:
        download.sources_of(name, args.source)  # all wrong input before any download
    for name in args.dataset:
        download.obtain(name, args.data_dir, args.source, report=print)
        if args.verify:
            sentence, agrees = download.verify(name, args.data_dir)
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
