"""Build, list, verify, prune and export stored layer features."""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from domainbed import algorithms, flags, training
from domainbed.arguments import resolve_hparams
from domainbed.backbones import load_clip
from domainbed.datasets import ImageEnvironment
from domainbed.features.entries import (
    DamagedError,
    Entry,
    entries,
    key_of,
    shown,
    size_text,
)
from domainbed.features.sharing import TEMPLATES, share
from domainbed.features.store import default_feature_dir, describe
from domainbed.hparams_registry import as_json
from domainbed.lib import feature_file
from domainbed.lib.errors import InputError, check_at_least, exits_on_input_error
from domainbed.lib.paths import user_path
from domainbed.lib.progress import add_quiet, silenced
from domainbed.scripts.sweep import ask_for_confirmation, check_confirmation

MORE = {"build": " --dataset PACS", "export": " --dataset PACS --to pacs.npz"}
TO_HELP = "what to write: its name ends in .npz or .safetensors"
SAMPLE = 16  # images of an environment that `verify` computes again
CLOSE = 0.02  # features are about 1; half precision and other devices differ by less
TITLES = ("key", "images of", "backbone", "dtype", "images", "of each", "size")
TITLES += ("written", "last read", "state")


def readers() -> str:
    """Which algorithms read what is stored here."""
    names = algorithms.ALGORITHMS
    reading = [n for n in names if algorithms.get_algorithm_class(n).TAKES_FEATURES]
    return f"that reads them, one of {', '.join(reading)}; all others read images"


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    example = "python -m domainbed.scripts.features {} --data_dir data"
    parser = argparse.ArgumentParser(
        prog="features", usage=example.format("list"), description=__doc__
    )
    commands = parser.add_subparsers(dest="command", required=True, prog="features")
    for name, function in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=first_line(function),
            usage=example.format(name) + MORE.get(name, ""),
            description=function.__doc__,
        )
        add = command.add_argument
        add(
            "--data_dir",
            type=user_path,
            help="the folder that holds the datasets' folders",
        )
        add(
            "--feature_dir",
            type=user_path,
            help="the store; default: DATA_DIR/features",
        )
        if name in ("build", "verify", "export"):
            add("--dataset", required=name != "verify")
            add("--hparams", nargs="+", help=flags.HPARAMS_HELP)
            add("--allow_missing_classes", action="store_true")
            add("--strict_fingerprint", action="store_true", help="as of train")
        if name in ("build", "verify"):
            add("--algorithm", default="LFA", help=f"{readers()}; default: LFA")
        if name in ("build", "export"):
            add("--num_workers", type=int, help="processes that load images")
        if name == "export":
            add("--to", required=True, type=user_path, metavar="FILE", help=TO_HELP)
            add("--layers", default="all", choices=["all", "last"])
            add(
                "--prompt",
                nargs="+",
                default=TEMPLATES,
                help="of the texts, {name} in each",
            )
            command.set_defaults(algorithm="LFA")  # which reads class tokens
        if name == "prune":
            add(
                "--older_than",
                type=float,
                metavar="DAYS",
                help="also what nobody has read for so long",
            )
            add("--skip_confirmation", action="store_true")
        add_quiet(command)
    return parser.parse_args(argv)


def first_line(function: Callable[..., None]) -> str | None:
    """Of its docstring; None under python -OO, which has none."""
    return function.__doc__ and function.__doc__.splitlines()[0]


def run_of(args: argparse.Namespace) -> training.Run:
    """A run of the algorithm on the dataset, not to train but to see its features.

    InputError if it would not read any from a store.
    """
    own = flags.run_args(args)
    own.hparams = as_json(args.hparams)
    algorithm = algorithms.get_algorithm_class(args.algorithm)
    if algorithms.reads_stored(algorithm, resolve_hparams(own)):
        run = training.Run(own)
        reads = algorithms.reads_stored(run.algorithm, run.hparams)
        if isinstance(run.dataset[0], ImageEnvironment) and reads:
            return run
    raise InputError(
        f"{args.algorithm} on {args.dataset} stores no features: that takes a dataset "
        "of image folders and an algorithm on a frozen CLIP, such as LFA."
    )


def existing_store(args: argparse.Namespace) -> Path:
    """The store's folder; InputError if there is none."""
    folder = Path(args.feature_dir or default_feature_dir(args.data_dir))
    if not folder.is_dir():
        raise InputError(f"there are no stored features at {folder}.")
    return folder


def place(entry: Entry) -> str:
    """The dataset's folder and the environment's; nothing if that is not known."""
    try:
        return shown("/".join(Path(entry.facts["folder"]).parts[-2:]))
    except DamagedError:
        return ""


def shape_text(z: np.ndarray) -> str:
    """What is stored of an image: L x D class tokens, or so many pooled taps."""
    return " x ".join(map(str, z.shape[1:]))


def build(args: argparse.Namespace) -> None:
    """Compute the features of all of a dataset's environments that are not stored."""
    run = run_of(args)
    total = 0
    for items in run.stored:
        stored = getattr(items, "stored", items)  # what vectors are made of
        entry = Entry(Path(stored.z.filename).parent)
        total += entry.size
        print(
            f"{place(entry)}: {len(stored.z)} images, {shape_text(stored.z)} "
            f"{stored.z.dtype}, {size_text(entry.size)} in {entry.path}"
        )
    print(f"{len(run.stored)} environments, {size_text(total)}.")


def export(args: argparse.Namespace) -> None:
    """Write a dataset's features, labels and texts to one file; see docs/features.md.

    It is a dataset for all who have the file, --dataset Features:FILE.
    """
    path = Path(args.to)
    feature_file.check_ending(path)
    if not path.parent.is_dir():
        raise InputError(f"--to {path}: there is no folder {path.parent}.")
    run = run_of(args)
    backbone = load_clip(run.hparams["clip_backbone"])
    last_only = args.layers == "last"
    share(path, run.dataset, run.stored, backbone, last_only, args.prompt)
    file = feature_file.read(path)
    domains, classes = len(file.domain_names), len(file.class_names)
    print(
        f"{path}: {file.content}, of {domains} domains and {classes} classes, "
        f"{size_text(path.stat().st_size)}."
    )


def list_entries(args: argparse.Namespace) -> None:
    """Print a table of what is stored."""
    folder = existing_store(args)
    found = entries(folder)
    rows = [TITLES, *map(cells, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows if found else ():
        line = "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True))
        print(line.rstrip())
    total = size_text(sum(entry.size for entry in found))
    print(f"{len(found)} entries, {total} in {folder}.")


def cells(entry: Entry) -> tuple[str, ...]:
    """An entry's row under TITLES."""
    written, read = (f"{days:.1f} days ago" for days in entry.days)
    rest = (size_text(entry.size), written, read)
    try:
        facts, (z, _) = entry.facts, entry.arrays()
    except DamagedError as error:
        blank = [""] * 4
        return (entry.key, place(entry), *blank, *rest, f"damaged: {error.reason}")
    state = "whole"
    if not entry.whole:
        state = "being written" if entry.is_locked() else "partial"
        state += f", {entry.done} done"
    return (
        entry.key,
        place(entry),
        facts["backbone"],
        facts["dtype"],
        str(facts["images"]),
        shape_text(z),
        *rest,
        state,
    )


def verify(args: argparse.Namespace) -> None:
    """Say which entries are damaged, or stale; exit 1 if any is.

    With --dataset its entries must be there, and some images are computed again.
    """
    folder = existing_store(args)
    run = run_of(args) if args.dataset else None
    wanted = {}
    for environment in run.dataset if run else ():
        dtype, strict = run.hparams["feature_dtype"], args.strict_fingerprint
        facts = describe(environment, run.backbone, dtype, strict, run.kind)
        wanted[key_of(facts)] = environment
    wrong = 0
    for entry in entries(folder):
        if not entry.whole:
            print(f"{entry.key}  {place(entry)}: partial, not checked")
            continue
        problem = problem_of(entry)
        environment = wanted.pop(entry.key, None)
        if not problem and environment is not None and differs(entry, environment, run):
            problem = (
                "its features are not what the backbone makes of its images; delete "
                f"{entry.path}"
            )
        wrong += bool(problem)
        print(f"{entry.key}  {place(entry)}: {problem or 'whole'}")
    for key, environment in wanted.items():
        print(f"{key}  {shown(environment.root)}: not stored")
    if wrong or wanted:
        raise SystemExit(1)


def problem_of(entry: Entry) -> str | None:
    """What is wrong with a whole entry, None if nothing."""
    try:
        entry.check()
        return entry.staleness()
    except DamagedError as error:
        return f"damaged: {error.reason}"


@torch.no_grad()
def differs(entry: Entry, environment: ImageEnvironment, run: training.Run) -> bool:
    """Whether a sample of images, computed again, does not give what is stored."""
    z, y = entry.arrays()
    if y.tolist() != environment.targets:
        return True
    if not len(z):
        return False
    keys = np.unique(np.linspace(0, len(z) - 1, SAMPLE, dtype=int))
    x = torch.stack([environment[key][0] for key in keys])
    again = run.kind.encode(x.to(run.device)).cpu()
    stored = torch.from_numpy(z[keys]).float()
    return not torch.allclose(stored, again, rtol=CLOSE, atol=CLOSE)


def prune(args: argparse.Namespace) -> None:
    """Remove what is stale, damaged or partial, and what nobody has read for long.

    What a process is writing stays.
    """
    check_at_least(args, older_than=0)
    check_confirmation(args)
    folder = existing_store(args)
    found = entries(folder)
    doomed = []
    for entry, reason in reasons(found, args.older_than):
        print(f"{entry.key}  {place(entry)}  {size_text(entry.size)}: {reason}")
        doomed.append(entry)
    total = size_text(sum(entry.size for entry in doomed))
    print(f"About to remove {len(doomed)} of {len(found)} entries, {total}.")
    if not doomed:
        return
    if not args.skip_confirmation:
        ask_for_confirmation()
    for entry in doomed:
        try:
            if not entry.remove():
                print(f"{entry.key} stays: a process writes it now")
        except OSError as error:
            raise InputError(f"cannot remove {entry.path}: {error}.") from error


def reasons(
    found: list[Entry], older_than: float | None
) -> Iterator[tuple[Entry, str]]:
    """The entries that can go, and why."""
    for entry in found:
        if entry.is_locked():
            continue
        if not entry.whole:
            yield entry, "partial"
        elif problem := problem_of(entry):
            yield entry, problem
        elif older_than is not None and entry.days[1] > older_than:
            yield entry, f"last read {entry.days[1]:.1f} days ago"


COMMANDS = {"build": build, "list": list_entries, "verify": verify, "prune": prune}
COMMANDS |= {"export": export}


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with silenced(args.quiet, result=args.command in ("list", "verify")):
        COMMANDS[args.command](args)


if __name__ == "__main__":
    main()
