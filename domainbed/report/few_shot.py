"""What the report shows of few-shot runs: accuracy over the number of shots."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from domainbed.model_selection import SelectionMethod
from domainbed.report import figures
from domainbed.report.chosen import absent
from domainbed.report.coverage import coverage_block
from domainbed.report.parts import (
    Block,
    Part,
    Picture,
    Summary,
    plural,
    summary,
    table,
)
from domainbed.tables import few_shot
from domainbed.tables.frames import AVERAGES

Chosen = dict[type[SelectionMethod], pd.DataFrame]  # few_shot.accuracies of each method
GROUP = [name for name in few_shot.BLOCK if name != "shots"]
LAST = {
    few_shot.H: "H, the harmonic mean of base and new accuracy, of their means.",
    few_shot.OF_TARGETS: "The mean over the datasets that are transferred to.",
}


def section(
    dataset: str, chosen: Chosen, runs: pd.DataFrame, root: Path
) -> list[Block]:
    """The blocks of one dataset."""
    own = {method: accs[accs["dataset"] == dataset] for method, accs in chosen.items()}
    parts: dict[str, list[Part]] = {}
    for title, method, accs in groups(own):
        part = absent(method) if accs.empty else shots_part(method, accs)
        parts.setdefault(f"Accuracy over shots, {title}", []).append(part)
    runs = runs[runs["dataset"] == dataset].infer_objects()
    blocks = [Block(title, options) for title, options in parts.items()]
    return [*blocks, coverage_block(runs, [], root)]


def groups(
    chosen: Chosen,
) -> Iterator[tuple[str, type[SelectionMethod], pd.DataFrame]]:
    """(title, method, its accuracies) of each choice of classes, source and targets."""
    every = pd.concat(chosen.values())
    for group in every[GROUP].drop_duplicates().itertuples(index=False):
        title = f"{group.classes} classes"
        title += f", from {group.drawn_from}" if group.drawn_from else ""
        title += f", to {group.transfer_to}" if group.transfer_to else ""
        for method, accs in chosen.items():
            yield title, method, accs[(accs[GROUP] == [*group]).all(axis=1)]


def shots_part(method: type[SelectionMethod], accs: pd.DataFrame) -> Part:
    """The table of one dataset, methods x numbers of shots, and its picture."""
    names = few_shot.in_table_order(accs["algorithm"])
    numbers = accs.assign(test=100 * accs["acc"])
    picture = Picture(
        "A line is a method's mean over trials, a bar reaches from its lowest trial to "
        "its highest. Where bars overlap, trials do not tell methods apart.",
        figures.over_shots(accs, names),
        table(numbers[["algorithm", "environment", "shots", "trial_seed", "test"]]),
    )
    own, last = over_shots(accs, accs["dataset"].iloc[0])
    words = [LAST.get(last, ""), *few_shot.about(accs)]
    return Part(method.name, [*filter(None, words)], [own], [picture])


def overview(chosen: Chosen) -> list[Part]:
    """The averages over datasets, of each choice of classes, source and targets."""
    return [
        Part(method.name, [f"Averages, {title}."], [over_shots(accs, AVERAGES)[0]])
        for title, method, accs in groups(chosen)
        if accs["dataset"].nunique() > 1
    ]


def over_shots(accs: pd.DataFrame, dataset: str) -> tuple[Summary, str]:
    """The last column of the dataset's tables, methods x numbers of shots; its name."""
    tables = (own for own in few_shot.tables(accs) if own.dataset == dataset)
    forms = {plural(own.block["shots"], "shot"): own.form for own in tables}
    last = next(iter(forms.values()))["mean"].columns[-1]
    names = few_shot.in_table_order(accs["algorithm"])
    mean, err = (
        pd.DataFrame({k: form[part, last] for k, form in forms.items()})
        .droplevel(["source", "protocol"])
        .reindex(names)
        for part in ("mean", "err")
    )
    return summary(mean, err, few_shot.apart(accs)), last
