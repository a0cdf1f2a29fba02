"""ERM++'s search for a learning rate, then a run on all data at the rates it found.

See `domainbed.autolr`. The flags are train's, and `--auto_lr`, which a sweep gives and
is always meant. In tables, `collect_results --auto_lr` selects by what comes of it.
"""

import argparse
import sys

from domainbed import flags
from domainbed.autolr import AutoLR
from domainbed.scripts import train

USAGE = """python -m domainbed.scripts.train_autolr --algorithm ERMPlusPlus \\
           --dataset PACS --data_dir data --output_dir out"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    words = sys.argv[1:] if argv is None else argv
    own = [word for word in words if word != "--auto_lr"]
    return flags.parse_args(own, USAGE, __doc__)


def main(argv: list[str] | None = None) -> None:
    train.main(argv, AutoLR, parse_args)


if __name__ == "__main__":
    main()
