"""By which protocol a table's rows came about, and which of them may be ranked.

Accuracies compare where the same images were tested, as many were held out, steps were
counted and chosen in one way, and the towers and texts are the same. What of this a run
says is its protocol; only rows of one protocol, that of most, are ranked, bolded or
told apart.
"""

import functools
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from domainbed import datasets
from domainbed.lib import misc
from domainbed.lib.identity import parsed
from domainbed.lib.query import Q
from domainbed.tables.frames import headings

MARK = " †"  # behind the name of a row that is not ranked
AS_PUBLISHED = " *"  # of one that chose as its release does
REMARK = (
    "* chose as its released code does (as_published): TipAdapter, TipAdapterF and GDA "
    "on the test images."
)
RELEASED = "the released code's"
Runs = list[tuple[Path, Q]]  # as `reporting.load_runs` gives them
Made = dict[Path, dict[str, str] | None]  # as `mixtures.facts_of` does
Record = dict[str, Any]


class Protocol(NamedTuple):
    """Of a run or of all runs of a row, in words; "" for what is not known."""

    data: str
    split: str
    held_out: str
    steps: str
    selection: str
    backbone: str
    prompt: str

    @property
    def digest(self) -> str:
        """16 hex digits that name it."""
        return misc.digest(self)


Rows = dict[Any, dict[str, Protocol]]  # place -> row -> that of its runs


class Apart(NamedTuple):
    """The rows that a table does not rank; {row: its mark}; why, in sentences."""

    names: frozenset[str]
    marks: dict[str, str]
    why: str


TOGETHER = Apart(frozenset(), {}, "")  # all rows are of one protocol


def place_of(record: Record) -> tuple[str, str]:
    """Dataset and algorithm."""
    return record["args"]["dataset"], record["args"]["algorithm"]


def cell_of(record: Record) -> tuple:
    """The runs of one cell have one split."""
    args = record["args"]
    return args["dataset"], args["trial_seed"], tuple(args["test_envs"])


def held_out_of(record: Record) -> str:
    """The share held out, and that seen unlabeled."""
    args = record["args"]
    held_out = f"{args.get('holdout_fraction', 0.2)}"
    if unlabeled := args.get("uda_holdout_fraction"):
        held_out += f", {unlabeled} seen unlabeled"
    return held_out


def steps_of(record: Record) -> str:
    """How many, and at which the run could be chosen."""
    args = record["args"]
    steps, every = args.get("steps"), args.get("checkpoint_freq")
    own = registered(args["dataset"])
    if own is not None:
        steps = own.N_STEPS if steps is None else steps
        every = own.CHECKPOINT_FREQ if every is None else every
    default = "the default number"
    return f"{default if steps is None else steps}, chosen from every " + (
        "default one" if every is None else f"{every}th"
    )


class Reading(NamedTuple):
    """How the records of a task tell their protocol; by default of DomainBed's.

    `place` is where a run stands: among which rows, and in which. `drawn` are the facts
    that are others in each cell.
    """

    place: Callable[[Record], tuple[Hashable, str]] = place_of
    cell: Callable[[Record], Hashable] = cell_of
    drawn: tuple[str, ...] = ("split",)
    held_out: Callable[[Record], str] = held_out_of
    steps: Callable[[Record], str] = steps_of


DOMAINS = Reading()


def of_rows(runs: Runs, made: Made, read: Reading = DOMAINS) -> Rows:
    """Of each place's rows what their runs have, several values joined.

    `made` is of the runs' folders. What is drawn counts where the runs of one cell
    differ in it.
    """
    firsts = [(run[0], made.get(folder) or {}) for folder, run in runs]
    drawn, names, given = defaultdict(set), {}, defaultdict(set)
    for record, facts in firsts:
        for fact in read.drawn:
            drawn[fact, read.cell(record)].add(facts.get(fact, ""))
        name = record["hparams"].get("clip_backbone", "")
        names.setdefault(facts.get("backbone", ""), f"CLIP {name}")
        given[read.place(record)[0]].add(given_prompt(record))
    found: dict[tuple[Hashable, str], set[Protocol]] = defaultdict(set)
    for record, facts in firsts:
        same = (f for f in read.drawn if len(drawn[f, read.cell(record)] - {""}) < 2)
        own = facts | dict.fromkeys(same, "")
        place, row = read.place(record)
        found[place, row].add(of_run(record, own, names, given[place], read))
    rows: Rows = defaultdict(dict)
    for (place, row), protocols in found.items():
        columns = (sorted({*values} - {""}) for values in zip(*protocols, strict=True))
        rows[place][row] = Protocol(*map(" and ".join, columns))
    return rows


def of_run(
    record: Record,
    facts: dict[str, str],
    names: dict[str, str],
    given: set[str],
    read: Reading,
) -> Protocol:
    """Of a run's record and of what it was made from.

    `names` are of fingerprints. A template that a method has by default is part of it
    and has no name, unless it is among those that others were `given`.
    """
    hparams = record["hparams"]
    published = hparams.get("as_published", False)
    prompt = str(hparams.get("prompt") or "")
    return Protocol(
        data=facts.get("fingerprint", ""),
        split=facts.get("split", ""),
        held_out=read.held_out(record),
        steps=read.steps(record),
        selection=RELEASED if published else "the table's",
        backbone=backbone_of(hparams, facts.get("backbone", ""), names),
        prompt=prompt if prompt in given or not prompt else "the method's own",
    )


@functools.lru_cache
def registered(dataset: str) -> type[datasets.MultipleDomainDataset] | None:
    """The dataset's class, None of one that is not registered here."""
    try:
        return datasets.get_dataset_class(dataset)
    except (OSError, ValueError):
        return None


def backbone_of(hparams: dict[str, Any], fingerprint: str, names: dict) -> str:
    """The pre-trained network, CLIP's with its fingerprint where that is known."""
    if "clip_backbone" in hparams and hparams.get("input") != "images":
        if fingerprint:
            return f"{names[fingerprint]} {fingerprint[:8]}"
        return f"CLIP {hparams['clip_backbone']}"
    if name := hparams.get("backbone"):
        return f"{name}{start_of(hparams)}"
    if "resnet18" not in hparams:
        return ""
    if hparams.get("vit"):
        return f"DINOv2 ViT{start_of(hparams)}"
    size = 18 if hparams["resnet18"] else 50
    augmix = size == 50 and hparams.get("resnet50_augmix", True)
    return f"ResNet-{size}{' AugMix' if augmix else ''}{start_of(hparams)}"


def start_of(hparams: dict[str, Any]) -> str:
    """What follows a network's name unless its weights are the usual ones."""
    start = hparams.get("pretrained", True)
    return "" if start is True else f" {start}" if start else " without pre-training"


def given_prompt(record: Record) -> str:
    """The run's template if --hparams gave it, else ""."""
    given = parsed(record["args"].get("hparams"))
    named = isinstance(given, dict) and "prompt" in given
    return str(record["hparams"].get("prompt", "")) if named else ""


def differences(first: Protocol, second: Protocol) -> str:
    """In what two are not the same, in words; what is not known of one is."""
    changes = (
        f"{field.replace('_', ' ')} {x} against {y}"
        for field, x, y in zip(Protocol._fields, first, second, strict=True)
        if x != y and x and y
    )
    return " and ".join(changes)


def apart(rows: Rows, dataset_names: list[str], names: list[str]) -> Apart:
    """As `unlike`; what chose as its release does has that mark, and a remark."""
    found = unlike(rows, dataset_names, names)
    as_released = [
        name
        for name in names
        if any(RELEASED in own[name].selection for own in rows.values() if name in own)
    ]
    if not as_released:
        return found
    marks = found.marks | dict.fromkeys(as_released, AS_PUBLISHED)
    return found._replace(marks=marks, why=f"{REMARK} {found.why}".strip())


def unlike(rows: Rows, dataset_names: list[str], names: list[str]) -> Apart:
    """Which rows, of those `names`, a table over these datasets does not rank.

    Rows are ranked that have what most have, the first of equally many. What is not
    known of a row differs from nothing.
    """
    columns = {}  # (field, dataset) in which rows differ -> {row: its value}
    for field, dataset in itertools.product(Protocol._fields, dataset_names):
        there = rows.get(dataset, {})
        own = {name: getattr(there[name], field) for name in names if name in there}
        if len({*own.values()} - {""}) > 1:
            usual = most(own.values())
            columns[field, dataset] = {name: own.get(name) or usual for name in names}
    kinds = {name: tuple(own[name] for own in columns.values()) for name in names}
    ranked = most(kinds.values(), default=())
    others: dict[str, list[str]] = defaultdict(list)
    for name, kind in kinds.items():
        if kind != ranked:
            differing = zip(columns, kind, ranked, strict=True)
            own = {place: value for place, value, usual in differing if value != usual}
            others[in_words(own, dataset_names)].append(name)
    if not others:
        return TOGETHER
    names_apart = [*itertools.chain(*others.values())]
    usual = in_words(dict(zip(columns, ranked, strict=True)), dataset_names)
    texts = (f"{', '.join(own)} ({words})" for words, own in others.items())
    why = (
        f"{MARK.strip()} not ranked, for it is of another protocol: "
        f"{'; '.join(texts)}; what is ranked has {usual}."
    )
    return Apart(frozenset(names_apart), dict.fromkeys(names_apart, MARK), why)


def in_words(values: dict[tuple[str, str], str], dataset_names: list[str]) -> str:
    """{(field, dataset): value}, a field's values once where they are all the same."""
    fields: dict[str, dict[str, str]] = defaultdict(dict)
    for (field, dataset), value in values.items():
        fields[field.replace("_", " ")][dataset] = value
    titles = dict(zip(dataset_names, headings(dataset_names), strict=True))

    def told(field: str, own: dict[str, str]) -> str:
        if len({*own.values()}) > 1:
            places = (f"{value} on {titles[name]}" for name, value in own.items())
            return f"{field} {', '.join(places)}"
        text = f"{field} {next(iter(own.values()))}"
        if len(own) < len(dataset_names):
            text += f" on {', '.join(titles[name] for name in own)}"
        return text

    return " and ".join(itertools.starmap(told, fields.items()))


def most(values: Iterable[Any], default: Any = "") -> Any:
    """The value that is there most often, the first of equally many; not ""."""
    counts = Counter(value for value in values if value != "")
    return counts.most_common(1)[0][0] if counts else default
