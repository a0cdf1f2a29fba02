"""Write a sweep's report: tables and pictures in one HTML file, without network."""

import argparse

from domainbed.lib.errors import InputError, exits_on_input_error
from domainbed.lib.misc import write_whole
from domainbed.lib.optional import require
from domainbed.lib.paths import as_path
from domainbed.lib.progress import add_quiet, silenced
from domainbed.scripts.collect_results import REFERENCE, SELECTION_METHODS


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="report",
        usage="python -m domainbed.scripts.report --input_dir demo",
        description=__doc__,
    )
    add = parser.add_argument
    add("--input_dir", type=as_path, required=True, help="the sweep's folder")
    add("--output", type=as_path, default="report.html", help="the file to write")
    add("--reference", help=REFERENCE)
    add_quiet(parser)
    return parser.parse_args(argv)


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    for module in ("jinja2", "matplotlib"):
        require(module, "report")
    from domainbed.report.page import make_report  # it imports both

    output = args.output
    with silenced(args.quiet):
        page = make_report(args.input_dir, output, SELECTION_METHODS, args.reference)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, page)
    except OSError as error:
        raise InputError(f"cannot write --output {output}: {error}.") from None
    if not args.quiet:
        print(f"wrote {output} ({len(page.encode()) / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
