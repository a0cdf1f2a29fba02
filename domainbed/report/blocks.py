"""The blocks of a dataset's section: tables, pictures and what to see in them."""

from collections.abc import Callable, Iterator

import pandas as pd

from domainbed.model_selection import OracleSelectionMethod, SelectionMethod
from domainbed.names import algorithm_names
from domainbed.report import data, figures
from domainbed.report.chosen import MOST_CLASSES, Chosen, absent
from domainbed.report.hidden import hidden_part
from domainbed.report.parts import (
    Block,
    Part,
    Picture,
    differences,
    digits,
    summary,
    table,
)
from domainbed.tables import frames
from domainbed.tables.ties import ties

MOST_HPARAMS = 6  # columns of a picture
BRANCHES = {"image": "image", "self": "text self", "cross": "text cross"}
BRANCHES["states"] = "image, 0: before the first layer"
ATTENTION = {
    "domains": (
        "the images of a domain that the run did not train on. Where the rows differ, "
        "the domains are told apart by other layers"
    ),
    "classes": (
        "the images of a class in all domains. Text self is asked by the class's own "
        "text, text cross by the image"
    ),
    "used": (
        "the chosen runs, the same for all images: a row for each part of what the "
        "method reads, and all tiles together are 100 %"
    ),
}


def method_blocks(options: list[Chosen]) -> Iterator[Block]:
    """The blocks whose parts differ by selection method, of which each is an option."""
    makers: dict[str, Callable[[Chosen], Part | None]] = {
        "Accuracy on unseen domains": accuracy_part,
        "What accuracy hides": hidden_part,
        "What selection costs": selection_part,
        "Learning curves": curves_part,
        "Efficiency": efficiency_part,
        "Hyperparameters": sensitivity_part,
    }
    for title, make in makers.items():
        parts = [
            absent(own.method) if own.draws.empty else make(own) for own in options
        ]
        if any(part is not None and (part.pictures or part.tables) for part in parts):
            yield Block(title, [part for part in parts if part is not None])


def accuracy_part(own: Chosen) -> Part:
    accs = own.accuracies
    mean, err = own.wide(accs)
    heat = Picture(
        "Means over trials. Blue is above the average of all methods on that domain, "
        "orange below; the stronger, the farther.",
        figures.heat_map(mean, mean - mean.mean()),
        table(mean.reset_index(names="algorithm")),
    )
    trials = Picture(
        "A point is a trial, the bar their mean. Methods whose points mix differ by "
        "less than their trials do.",
        figures.trial_points(accs, own.algorithms, own.names),
        table(accs[["algorithm", "environment", "trial_seed", "test"]]),
    )
    pictures = [heat, trials] if len(mean) > 1 else [trials]
    words = [ties(accs, own.apart).in_words] if len(mean) > 1 else []
    summaries = [summary(mean, err, own.apart)]
    if own.reference in own.algorithms:
        mean, err = own.wide(frames.less(accs, own.reference))
        summaries.append(differences(mean, err, own.apart, own.reference))
        mean = mean.drop(index=own.reference)
        if len(mean):
            picture = Picture(
                f"Differences to {own.reference} in points; blue is above it.",
                figures.heat_map(mean, mean, "{:+.1f}"),
                table(mean.reset_index(names="algorithm")),
            )
            pictures.insert(1, picture)
    return Part(own.method.name, words, summaries, pictures)


def selection_part(own: Chosen) -> Part:
    losses = data.selection_losses(own.draws, own.oracle)
    losses = losses.reindex(own.algorithms).reset_index()
    draws = own.named(own.draws)
    draws["chosen"] = draws["chosen"].map({True: "yes", False: ""})
    columns = ["algorithm", "environment", "trial_seed", "hparams_seed", "val", "test"]
    picture = Picture(
        "A point is a hyperparameter draw of one trial, in the colour of its test "
        "domain; a ring marks the one that was chosen. Selection works where the rings "
        "sit at the top of their colour's cloud.",
        figures.selection(own.draws, own.algorithms),
        table(draws[[*columns, "chosen"]]),
        own.legend,
    )
    words = [selection_in_words(own.method, losses)]
    return Part(own.method.name, words, pictures=[picture], tables=[table(losses)])


def selection_in_words(method: type[SelectionMethod], losses: pd.DataFrame) -> str:
    """What selection loses, on average and where most."""
    means = losses.drop(columns="algorithm").mean()
    if means.isna().any():
        return "The oracle chose nothing here, so what selection loses is not known."
    reached = f"Chosen by {method.name}, the methods reach {means['chosen %']:.1f} %"
    best = (
        f"the best draw of every trial would reach {means['best draw %']:.1f} %, "
        f"{means['lost to the best']:.1f} points more"
    )
    if method is OracleSelectionMethod:
        return f"{reached} on average; {best}."
    lost = losses.set_index("algorithm")["lost to the oracle"]
    change = f"{'loses' if lost.mean() > 0 else 'gains'} {abs(lost.mean()):.1f} points"
    if abs(lost.mean()) < 0.05:
        change = "loses nothing"
    most = ""
    if len(lost) > 1 and lost.max() >= 0.05:
        most = f"; it loses most with {lost.idxmax()}, {lost.max():.1f} points"
    return (
        f"{reached} on average; chosen by the oracle, which looks at the test domain, "
        f"{means['oracle %']:.1f} %. So selection {change} on average{most}. "
        f"{best[0].upper()}{best[1:]}."
    )


def curves_part(own: Chosen) -> Part | None:
    curves = data.curves(own.steps, own.best)
    if curves.empty:
        return None
    columns = ["algorithm", "environment", "step", "val", "test"]
    picture = Picture(
        "The chosen runs, averaged over trials. A thin line is test accuracy on an "
        "unseen domain, the thick line their mean, the dashed one validation accuracy "
        "on the training domains. Where the thick line falls while the dashed one "
        "rises, the method learns its domains at the others' expense.",
        figures.curves(curves, own.algorithms),
        table(own.named(curves)[columns]),
        own.legend,
    )
    return Part(own.method.name, pictures=[picture])


def efficiency_part(own: Chosen) -> Part | None:
    mean, _ = data.wide(frames.summary(own.accuracies), own.names)
    costs = data.costs(own.steps, own.runs, mean)
    known = figures.known_costs(costs)
    if not known:
        return None
    costs["ranked"] = ~costs["algorithm"].isin(own.apart.names)
    beaten = data.dominated_by(costs[costs["ranked"]], known)
    costs["dominated by"] = beaten.reindex(costs.index, fill_value="")
    devices = sorted(own.runs["device"].dropna().unique())
    where = f" Measured on {', '.join(devices)}." if devices else ""
    texts = {name: digits(costs[name]) for name in known}
    numbers = costs[["algorithm", "accuracy", *known, "dominated by"]]
    picture = Picture(
        "Up is more accurate, left is cheaper; a method has one height in every panel "
        "and its name at the right. The line joins what no method beats in both, grey "
        "is what one does; a grey name is beaten in all costs at once. Rings are of "
        "another protocol. Accuracy is the mean over the domains that all have run, "
        f"step time the median and memory the peak over all runs.{where}",
        figures.efficiency(costs, known),
        table(numbers.assign(**texts), accuracy="accuracy %", **figures.COSTS),
    )
    return Part(own.method.name, pictures=[picture])


def sensitivity_part(own: Chosen) -> Part | None:
    draws = data.sensitivity(own.draws)
    if draws.empty:
        return None
    correlations = data.rank_correlations(draws)
    strength = correlations.abs().groupby("hparam").max()
    hparams = [*strength.sort_values(ascending=False).index[:MOST_HPARAMS]]
    rows = frames.in_order(draws["algorithm"], algorithm_names())
    numbers = draws.assign(value=draws["value"].map(value_text))
    numbers = numbers.pivot_table(
        index=["algorithm", "trial_seed", "hparams_seed", "val", "test"],
        columns="hparam",
        values="value",
        aggfunc="first",
        sort=False,
    )
    picture = Picture(
        "A point is a draw of one trial: its test accuracy, averaged over the test "
        "domains, less the mean of the trial's draws. ρ is the rank correlation; the "
        "hyperparameters with the strongest come first. A flat cloud: it does not "
        "matter. A peak at an edge: its range is too narrow.",
        figures.sensitivity(draws, rows, hparams, correlations),
        table(numbers.reset_index()),
    )
    return Part(own.method.name, pictures=[picture])


def value_text(value: object) -> str:
    """A hyperparameter's value, a fraction with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def attention_block(own: Chosen) -> Block | None:
    """Layer attention of the chosen runs, for each algorithm that has it."""
    found = data.attention(own.best, own.names)
    pictures = [
        attention_picture(algorithm, kind, weights)
        for algorithm, kinds in found.items()
        for kind, weights in kinds.items()
        if weights
    ]
    text = (
        "The share of each layer in percent, from the first layer to the last, in the "
        f"runs chosen by {own.method.name}."
    )
    return (
        Block("Layer attention", [Part(None, [text], pictures=pictures)])
        if pictures
        else None
    )


def attention_picture(algorithm: str, kind: str, weights: data.Weights) -> Picture:
    shown, note = weights, ""
    if len(weights) > MOST_CLASSES:
        shown = data.most_unusual(weights, MOST_CLASSES)
        note = f" Of {len(weights)}, the {len(shown)} that depart most from the mean."
    panels = {
        title: {name: own[branch] for name, own in shown.items() if branch in own}
        for branch, title in BRANCHES.items()
    }
    panels = {title: rows for title, rows in panels.items() if rows}
    rows = [
        {kind: name, "branch": BRANCHES[branch]}
        | {
            str(i): f"{100 * weight:.1f}"
            for i, weight in enumerate(layers, start=branch != "states")
        }
        for name, own in weights.items()
        for branch, layers in own.items()
    ]
    return Picture(
        f"{algorithm}, mean over {ATTENTION[kind]}.{note}",
        figures.layers(panels, [*shown], from_zero=BRANCHES["states"] in panels),
        table(pd.DataFrame(rows)),
    )
