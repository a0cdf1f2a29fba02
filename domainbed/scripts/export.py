"""Copy the CLIP algorithms into somebody else's DomainBed checkout, or out of it.

Its own scripts then know ZeroShotCLIP, LinearProbeCLIP, LFA, DPLCLIP and QLoRACLIP. Run
this outside of that checkout, where `domainbed` means this package.
"""

import argparse

from domainbed.export import checkout
from domainbed.lib.errors import exits_on_input_error
from domainbed.lib.paths import as_path
from domainbed.lib.progress import add_quiet, silenced

NEEDS = """\
Python there must be 3.10 or later and have clip-anytorch and "setuptools<81"; for
QLoRACLIP also "transformers>=5", "peft>=0.17" and "bitsandbytes>=0.48".
Class names: --hparams '{"class_names": ["dog", "elephant", ...]}', in label order."""


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="export",
        usage="python -m domainbed.scripts.export --to CHECKOUT",
        description=__doc__,
    )
    parser.add_argument(
        "--to", type=as_path, required=True, help="the checkout's folder"
    )
    parser.add_argument("--remove", action="store_true", help="take it out again")
    add_quiet(parser)
    args = parser.parse_args(argv)
    plan = checkout.removed if args.remove else checkout.exported
    changes = plan(args.to)
    changed = checkout.write(changes)
    with silenced(args.quiet):
        for path in changed:
            print("removed" if changes[path] is None else "wrote", path)
        if not changed:
            print(f"{args.to} is already as it should be.")
        if not args.remove:
            print(NEEDS)


if __name__ == "__main__":
    main()
