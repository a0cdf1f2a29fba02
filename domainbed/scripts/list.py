"""List what there is: algorithms, datasets, an algorithm's hyperparameters."""

import argparse
import inspect
import re
import warnings
from collections.abc import Iterator
from typing import Any

from domainbed import algorithms, datasets, hparams_registry
from domainbed.lib.errors import InputError, exits_on_input_error
from domainbed.lib.paths import user_path
from domainbed.lib.progress import add_quiet

TO_SHOW = "EmojiDG"  # its images ship, and so does the CLIP that is its default
N_CLASSES = 17  # that it has
N_DRAWS = 3
KINDS = {"all": "class tokens"}  # of stored features, by what a reader calls them


def sentence(cls: type) -> str:
    """The first of its docstring, or of the nearest class's that has one."""
    words = " ".join((inspect.getdoc(cls) or "").split())
    return re.split(r"(?<=[.:;]) ", words)[0].rstrip(".:;")


def papers(cls: type) -> str:
    """The addresses that its docstring cites, or its module's under its name; of a
    class that cites none, those of the nearest that it derives from and that does.
    """
    found = (re.findall(r"https?://[^\s,)]+[^\s,).]", cites(c)) for c in cls.__mro__)
    return " ".join(next(filter(None, found), []))


def cites(cls: type) -> str:
    """Its docstring, and what stands in its module's behind "Name: ": the class's
    name or the beginning of it, as "ARC: " for ARC_att, or how it calls itself.
    """
    own = vars(cls).get("__doc__") or ""
    entries = re.split(r"\n\n|\n(?=\S+: )", inspect.getmodule(cls).__doc__ or "")
    for title, _, text in (entry.partition(": ") for entry in entries):
        if cls.__name__.startswith(title.replace("-", "")) or own.startswith(
            f"{title}:"
        ):
            own += text
    return own


def example(cls: type, backbone: str) -> algorithms.Algorithm:
    """One made for EmojiDG with its defaults; InputError if it cannot be."""
    dataset = datasets.get_dataset_class(TO_SHOW)
    hparams = hparams_registry.default_hparams(cls.__name__, TO_SHOW)
    # Weights that would be fetched have as many numbers as drawn ones.
    known = {"clip_backbone": backbone, "pretrained": False, "qlora_run": "none"}
    hparams |= {name: known[name] for name in known.keys() & hparams.keys()}
    domains = len(dataset.ENVIRONMENTS) - 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # class names do not matter here
        return cls(dataset.INPUT_SHAPE, N_CLASSES, domains, hparams)


def facts_of(cls: type, backbone: str) -> dict[str, str]:
    """What a reader wants to know of an algorithm before it is run."""
    facts = {"what": sentence(cls), "paper": papers(cls)}
    takes = ["images"]
    if "input" in hparams_registry.default_hparams(cls.__name__, TO_SHOW):
        takes.append("vectors (input=features or layers)")
    try:
        algorithm = example(cls, backbone)
    except InputError as error:
        facts["trains"] = f"unknown here: {error}"
    else:
        trains = [p.numel() for p in algorithm.parameters() if p.requires_grad]
        facts["trains"] = f"{sum(trains):,} parameters" if trains else "nothing"
        if cls.TAKES_FEATURES:
            kind = algorithm.stored_kind.name
            takes.append(f"stored {KINDS.get(kind, kind)}")
    facts["takes"] = ", ".join(takes)
    facts["aliases"] = ", ".join(vars(cls).get("ALIASES", ()))
    facts["after"] = ", ".join(cls.AFTER)
    facts["needs"] = cls.EXTRA and f"pip install domainbed-lfa[{cls.EXTRA}]"
    return {name: value for name, value in facts.items() if value}


def list_algorithms(args: argparse.Namespace) -> Iterator[str]:
    """A block of lines for each algorithm: what, paper, takes, parameters, needs."""
    for name in args.names or algorithms.ALGORITHMS:
        cls = algorithms.get_algorithm_class(name)
        yield cls.__name__
        for title, value in facts_of(cls, args.clip_backbone).items():
            yield f"    {title:8}{value}"


def algorithms_as_markdown(args: argparse.Namespace) -> Iterator[str]:
    """A table of the algorithms: what, whether it reads stored features, needs, paper.

    Of their classes alone, so that it is the same on every backbone and made at once.
    """
    yield "| name | what | stored features | extra | paper |"
    yield "|---|---|---|---|---|"
    for name in args.names or algorithms.ALGORITHMS:
        cls = algorithms.get_algorithm_class(name)
        stored = "yes" if cls.TAKES_FEATURES else ""
        links = " ".join(f"<{paper}>" for paper in papers(cls).split())
        what = sentence(cls).replace("|", "\\|")
        yield f"| {cls.__name__} | {what} | {stored} | {cls.EXTRA or ''} | {links} |"


def list_datasets(args: argparse.Namespace) -> Iterator[str]:
    """A line for each dataset: its environments, and whether it is in --data_dir."""
    names = args.names or datasets.DATASETS
    width = max(map(len, names))
    for name in names:
        cls = datasets.get_dataset_class(name)
        environments = ", ".join(map(str, cls.ENVIRONMENTS))
        yield f"{name:{width}}  {state_of(name, cls, args.data_dir)}  {environments}"


def state_of(name: str, cls: type, data_dir: str | None) -> str:
    """there, not there or, without a folder to look in, nothing."""
    if data_dir is None:
        return ""
    hparams = hparams_registry.default_hparams("ERM", name)
    try:
        cls(data_dir, [], hparams)
    except (InputError, OSError):
        return "not there"
    return "there    "


def list_hparams(args: argparse.Namespace) -> Iterator[str]:
    """A line for each hyperparameter: its default and, if it is drawn, some draws."""
    if not args.names:
        raise InputError("list hparams needs an algorithm: list hparams LFA.")
    for algorithm in args.names:
        rows = hparams_registry.hparam_rows(algorithm, args.dataset)
        draws = [
            hparams_registry.random_hparams(algorithm, args.dataset, seed)
            for seed in range(1, N_DRAWS + 1)
        ]
        width = max(map(len, rows))
        yield f"{algorithm} on {args.dataset}"
        for name, (default, draw) in sorted(rows.items()):
            line = f"    {name:{width}}  {default!r}"
            if draw is not None:
                line += f"    drawn: {', '.join(shown(d[name]) for d in draws)}, ..."
            yield line


def shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else repr(value)


FORMATS = ("text", "markdown")
LISTS = {
    "algorithms": list_algorithms,
    "datasets": list_datasets,
    "hparams": list_hparams,
}


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="list",
        usage="python -m domainbed.scripts.list hparams LFA",
        description=__doc__,
    )
    parser.add_argument("what", choices=[*LISTS])
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--clip_backbone", default="emoji", help="to count on")
    parser.add_argument("--dataset", default=TO_SHOW, help="of the hyperparameters")
    parser.add_argument(
        "--data_dir", type=user_path, help="where datasets are looked for"
    )
    parser.add_argument(
        "--format", default="text", choices=FORMATS, help="markdown: of algorithms only"
    )
    add_quiet(parser)
    args = parser.parse_args(argv)
    lines = LISTS[args.what]
    if args.format == "markdown":
        if args.what != "algorithms":
            raise InputError(f"list {args.what} has no --format markdown, only text.")
        lines = algorithms_as_markdown
    for line in lines(args):
        print(line.rstrip(), flush=True)


if __name__ == "__main__":
    main()
