"""ERM++'s search for a learning rate, then a run on all data at the rates it found.

See `domainbed.autolr`. The flags are train's, and `--auto_lr`, which a sweep gives and
is always meant. In tables, `collect_results --auto_lr` selects by what comes of it.
"""

import sys

from domainbed.autolr import AutoLR
from domainbed.scripts import train


def main(argv: list[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else argv
    train.main([word for word in words if word != "--auto_lr"], AutoLR)


if __name__ == "__main__":
    main()
