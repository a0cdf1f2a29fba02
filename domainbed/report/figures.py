"""The report's pictures: frames in, SVG out."""

from collections.abc import Container

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from domainbed.lib.optional import require
from domainbed.report.data import dominated_by, is_place
from domainbed.report.parts import signed
from domainbed.report.svg import (
    LIGHT,
    RIGHT,
    WIDTH,
    axes,
    canvas,
    dots,
    drawn,
    grid,
    label,
    left_of,
    padded,
    rings,
    scale,
    short,
    spread,
    tiles,
    write,
)
from domainbed.tables.ranks import LEVEL, Ranks

ROW = 22  # height of a row of labels


@drawn
def heat_map(form: pd.DataFrame, away: pd.DataFrame, text: str = "{:.1f}") -> Figure:
    """A tile for each number of the form, its colour as strong as it is `away`."""
    most = np.nanmax(np.abs(away.to_numpy(float)), initial=0)
    left = left_of(form.index)
    width = min(90 * len(form.columns), WIDTH - left - 4)
    figure = canvas(28 + 26 * len(form), left + width + 4)
    ax = axes(figure, left, 24, width, 26 * len(form))
    strength = away.to_numpy(float) / max(most, 0.5)
    tiles(ax, form.to_numpy(float), strength, form.index, form.columns, text)
    return figure


@drawn
def confusions(shares: dict[str, np.ndarray], classes: list[str]) -> Figure:
    """A panel per algorithm: of each class (row) what share was taken for which."""
    left, gap, n = left_of(classes), 22, len(classes)
    below = 38 + 7 * max(len(short(name, 14)) for name in [*classes, "no answer"])
    columns = max(1, min(len(shares), int((WIDTH - left + gap) // (18 * n + gap))))
    rows = -(-len(shares) // columns)
    side = min((WIDTH - left - gap * (columns - 1)) / columns, 34 * n)
    figure = canvas(rows * (side + below), left + columns * (side + gap))
    for k, (name, own) in enumerate(shares.items()):
        x, y = left + k % columns * (side + gap), 24 + k // columns * (side + below)
        ax = axes(figure, x, y, side, side)
        own = own if own[:, n].any() else own[:, :n]
        names = [*classes, "no answer"][: own.shape[1]]
        tiles(ax, 100 * own, own, classes, names, "{:.0f}", least=(1, 5))
        below_it = {"labelbottom": True, "labelrotation": 90}
        ax.tick_params(axis="x", top=False, labeltop=False, **below_it)
        ax.tick_params(labelleft=k % columns == 0)
        ax.set_title(short(name, 28))
    return figure


@drawn
def trial_points(
    accs: pd.DataFrame, algorithms: list[str], domains: list[str]
) -> Figure:
    """A panel per domain: each trial's accuracy as a point, their mean as a bar."""
    left, gap, per_row = left_of(algorithms), 24, 5
    columns = min(len(domains), per_row)
    rows = -(-len(domains) // columns)
    width = min((WIDTH - left - RIGHT - (columns - 1) * gap) / columns, 260)
    height = ROW * len(algorithms)
    figure = canvas(rows * (height + 52))
    for k, domain in enumerate(domains):
        x, y = left + (k % columns) * (width + gap), 24 + k // columns * (height + 52)
        ax = axes(figure, x, y, width, height)
        ax.set_title(short(domain))
        for i, name in enumerate(algorithms):
            here = (accs["environment"] == domain) & (accs["algorithm"] == name)
            values = 100 * accs["acc"][here].to_numpy()
            dots(ax, values, np.full(len(values), i), size=5.4)
            if len(values):
                mean = values.mean()
                ends = [i - 0.36, i + 0.36]
                ax.plot([mean, mean], ends, color=LIGHT["ink"], lw=1.6, zorder=1)
        ax.set_ylim(len(algorithms) - 0.5, -0.5)
        labels = [short(a) for a in algorithms] if k % columns == 0 else []
        ax.set_yticks(range(len(algorithms)), labels or [""] * len(algorithms))
        ax.tick_params(axis="y", labelcolor=LIGHT["ink"])
        ax.xaxis.set_major_locator(MaxNLocator(4, min_n_ticks=2))
        ax.margins(x=0.12)
        ax.spines["left"].set_visible(False)
    return figure


@drawn
def selection(draws: pd.DataFrame, algorithms: list[str]) -> Figure:
    """A panel per algorithm: validation against test accuracy of every draw.

    The colour is the test domain's, a ring marks the draws that were chosen.
    """
    figure, panels = grid(len(algorithms), 170)
    for ax, name in zip(panels, algorithms, strict=True):
        own = draws[draws["algorithm"] == name]
        for env, points in own.groupby("test_env"):
            dots(ax, points["val"], points["test"], f"c{env % 10}")
        chosen = own[own["chosen"]]
        rings(ax, chosen["val"], chosen["test"])
        ax.set_title(short(name, 28))
        ax.set_xlim(*padded(own["val"].min(), own["val"].max()))
        ax.set_ylim(*padded(own["test"].min(), own["test"].max()))
        ax.xaxis.set_major_locator(MaxNLocator(4))
    label(panels, "validation accuracy, %", "test accuracy, %")
    return figure


@drawn
def curves(curves: pd.DataFrame, algorithms: list[str]) -> Figure:
    """A panel per algorithm: accuracy against the step.

    Thin: each test domain. Thick: their mean. Dashed: validation.
    """
    figure, panels = grid(len(algorithms), 150)
    for ax, name in zip(panels, algorithms, strict=True):
        own = curves[curves["algorithm"] == name]
        for env, line in own.groupby("test_env"):
            ax.plot(line["step"], line["test"], lw=1, color=LIGHT[f"c{env % 10}"])
        means = own.groupby("step")[["val", "test"]].mean()
        one = {"marker": "o", "ms": 4} if len(means) == 1 else {}
        ax.plot(means.index, means["val"], "--", color=LIGHT["muted"], **one)
        ax.plot(means.index, means["test"], lw=2.2, color=LIGHT["ink"], **one)
        ax.set_title(short(name, 28))
        values = own[["val", "test"]]
        ax.set_ylim(*padded(values.min().min(), values.max().max()))
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        if one:
            ax.set(xlim=(-1, 1), xticks=[*means.index])
    label(panels, "step", "accuracy, %")
    return figure


COSTS = {
    "parameters": "trainable parameters",
    "step_time": "step time, ms",
    "mem_gb": "peak memory, GB",
}


def known_costs(costs: pd.DataFrame) -> list[str]:
    """The costs of which there is some number, where there is an accuracy."""
    return [name for name in COSTS if costs[name].notna().any()]


@drawn
def efficiency(costs: pd.DataFrame, known: list[str]) -> Figure:
    """Accuracy against each cost of `known`; a method is one height in all.

    A line joins what nothing beats in both, what is beaten is grey, and a ring is a
    method that is not ranked.
    """
    right, left, gap = left_of(costs["algorithm"]) + 14, 44, 26
    width = min((WIDTH - left - right) / len(known) - gap, 330)
    height = max(200, 15 * len(costs))
    figure = canvas(height + 56)
    ranked = costs[costs["ranked"]]
    for k, name in enumerate(known):
        ax = axes(figure, left + k * (width + gap), 12, width, height)
        for y in costs["accuracy"]:
            ax.axhline(y, color=LIGHT["line"], lw=0.6, zorder=0)
        beaten = dominated_by(ranked, [name]) != ""
        best = ranked[~beaten & ranked[name].notna()].sort_values([name, "accuracy"])
        ax.plot(best[name], best["accuracy"], color=LIGHT["c0"], lw=1, alpha=0.5)
        for colour, rows in (("muted", ranked[beaten]), ("c0", best)):
            dots(ax, rows[name], rows["accuracy"], colour, size=7)
        others = costs[~costs["ranked"]]
        rings(ax, others[name], others["accuracy"], "muted", size=6)
        ax.set_xlabel(COSTS[name], loc="left")
        ax.set_ylim(*padded(costs["accuracy"].min(), costs["accuracy"].max()))
        ax.grid(False, axis="y")
        scale(ax, costs[name].dropna().to_numpy(float))
        if k == 0:
            ax.set_ylabel("accuracy, %", loc="bottom")
        else:
            ax.tick_params(labelleft=False)
    grey = costs[~costs["ranked"] | (costs["dominated by"] != "")]
    name_heights(
        ax,
        costs.set_index("algorithm")["accuracy"],
        greyed={*grey["algorithm"]},
    )
    return figure


def name_heights(
    ax: Axes,
    heights: pd.Series,
    colours: dict[str, str] | None = None,
    greyed: Container[str] = (),
) -> None:
    """Write each method's name to the right of its height, none over another."""
    low, high = ax.get_ylim()
    pixels = ax.get_position().height * ax.figure.get_size_inches()[1] * 72
    rows = heights.sort_values()
    gap = 14 * (high - low) / pixels
    places = spread(rows.to_numpy(), gap)
    places = np.minimum(places, high - gap * np.arange(len(rows))[::-1])
    for (name, y), place in zip(rows.items(), places, strict=True):
        colour = LIGHT[(colours or {}).get(name, "line")]
        line = {"arrowstyle": "-", "color": colour, "relpos": (0, 0.5)}
        ax.annotate(
            short(name),
            xy=(1, y),
            xytext=(1.06, place),
            textcoords=ax.get_yaxis_transform(),
            xycoords=ax.get_yaxis_transform(),
            va="center",
            annotation_clip=False,
            color=LIGHT["muted" if name in greyed else "ink"],
            arrowprops=line | {"shrinkA": 1, "shrinkB": 0},
        )


@drawn
def over_shots(
    accs: pd.DataFrame, algorithms: list[str], reference: str | None = None
) -> Figure:
    """A panel per test: a method's mean accuracy over the number of shots as a line,
    at each number a bar from its lowest trial to its highest.

    With a reference they are differences to it, which is at 0.
    """
    names, shots = [*dict.fromkeys(accs["environment"])], sorted(accs["shots"].unique())
    colours = {name: f"c{i % 10}" for i, name in enumerate(algorithms)}
    columns = min(len(names), 2)
    left, right = 44, left_of(algorithms) + 20
    height = max(300 if columns == 1 else 220, 15 * len(algorithms))
    width = WIDTH / columns - left - right
    figure = canvas(-(-len(names) // columns) * (height + 62))
    for k, name in enumerate(names):
        x = left + k % columns * WIDTH / columns
        ax = axes(figure, x, 24 + k // columns * (height + 62), width, height)
        here = accs[accs["environment"] == name]
        means = here.groupby(["algorithm", "shots"])["acc"].mean().unstack("algorithm")
        for i, algorithm in enumerate(algorithms):
            own = here[here["algorithm"] == algorithm]
            own = 100 * own.groupby("shots")["acc"].agg(["mean", "min", "max"])
            # Side by side, or bars would hide each other.
            places = np.log2(own.index) + 0.05 * (i - (len(algorithms) - 1) / 2)
            colour = LIGHT[colours[algorithm]]
            ax.plot(places, own["mean"], color=colour, marker="o", ms=3.5, mew=0)
            ax.vlines(places, own["min"], own["max"], color=colour, lw=1)
        ax.set_title(short(name, 28))
        ax.set_xticks(np.log2(shots), [str(n) for n in shots])
        low, high = 100 * here["acc"].min(), 100 * here["acc"].max()
        what = "accuracy, %"
        if reference is not None:
            ax.axhline(0, color=LIGHT["muted"], lw=1, zorder=1)
            low, high = min(low, 0), max(high, 0)
            what = f"less {short(reference)}, points"
        ax.set_ylim(*padded(low, high))
        label([ax], "shots of each class", what)
        name_heights(ax, 100 * means.ffill().iloc[-1].dropna(), colours)
    return figure


@drawn
def critical_difference(ranks: Ranks) -> Figure:
    """The average ranks on an axis; a bar joins rows that cannot be told apart."""
    posthocs = require("scikit_posthocs", "report")
    figure = canvas(70 + 15 * len(ranks.means))
    side = left_of(ranks.means.index) + 40
    ax = axes(figure, side, 24, WIDTH - 2 * side, 40 + 15 * len(ranks.means))
    posthocs.critical_difference_diagram(
        ranks.means,
        ranks.pairs,
        alpha=LEVEL,
        ax=ax,
        label_fmt_left="{label} {rank:.2f}",
        label_fmt_right="{rank:.2f} {label}",
        marker_props={"color": LIGHT["c0"], "s": 20},
        elbow_props={"color": LIGHT["ink"], "linewidth": 0.8},
        crossbar_props={"color": LIGHT["ink"], "linewidth": 3},
    )
    ax.spines["top"].set_visible(True)
    ax.grid(False)
    return figure


@drawn
def intervals(means: pd.DataFrame) -> Figure:
    """A row per algorithm: its interquartile mean as a point on its interval."""
    left, height = left_of(means.index), ROW * len(means)
    figure = canvas(height + 44, 620)
    ax = axes(figure, left, 8, 620 - left - RIGHT, height)
    places = np.arange(len(means))
    ax.hlines(places, means["low"], means["high"], color=LIGHT["c0"], lw=2, alpha=0.6)
    dots(ax, means["iqm"], places, size=7)
    ax.set_ylim(len(means) - 0.5, -0.5)
    ax.set_yticks(places, [short(name) for name in means.index])
    ax.tick_params(axis="y", labelcolor=LIGHT["ink"])
    ax.set_xlabel("interquartile mean, %", loc="left")
    ax.xaxis.set_major_locator(MaxNLocator(5, min_n_ticks=2))
    ax.margins(x=0.12)
    return figure


@drawn
def sensitivity(
    draws: pd.DataFrame,
    algorithms: list[str],
    hparams: list[str],
    correlations: pd.Series,
) -> Figure:
    """A row per algorithm, a column per hyperparameter: the gain of each draw."""
    left, gap, height, step = left_of(algorithms) + 34, 16, 80, 106
    width = min((WIDTH - left) / len(hparams) - gap, 260)
    figure = canvas(len(algorithms) * step + 44)
    lowest: dict[str, Axes] = {}  # of each column
    for i, algorithm in enumerate(algorithms):
        own = draws[draws["algorithm"] == algorithm]
        limits = padded(own["gain"].min(), own["gain"].max())
        first = True
        for j, hparam in enumerate(hparams):
            points = own[own["hparam"] == hparam]
            if points.empty:
                continue
            ax = axes(figure, left + j * (width + gap), 32 + i * step, width, height)
            draw_gains(ax, draws[draws["hparam"] == hparam]["value"], points)
            rho = correlations[algorithm, hparam]
            ax.set_title(
                "ρ = " + signed(f"{rho:.1f}"), color=LIGHT["muted"], loc="right", pad=2
            )
            ax.set_ylim(*limits)
            ax.yaxis.set_major_locator(MaxNLocator(3))
            ax.tick_params(labelleft=first, labelbottom=False)
            first, lowest[hparam] = False, ax
        write(figure, left - 40, 32 + i * step + height / 2, short(algorithm), "right")
    for j, hparam in enumerate(hparams):
        write(figure, left + j * (width + gap), 8, short(hparam, 20))
        lowest[hparam].tick_params(labelbottom=True)
    return figure


def draw_gains(ax: Axes, every: pd.Series, points: pd.DataFrame) -> None:
    """Gains against the value; values that are no numbers stand side by side."""
    if every.map(is_place).all():
        dots(ax, points["value"].astype(float), points["gain"])
        scale(ax, every.to_numpy(float))
        return
    names = sorted({*every.map(str)})
    dots(ax, points["value"].map(lambda value: names.index(str(value))), points["gain"])
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set_xticks(range(len(names)), [short(name, 12) for name in names])


@drawn
def layers(
    panels: dict[str, dict[str, np.ndarray]], names: list[str], from_zero: bool
) -> Figure:
    """Side by side, for each title: a row per name with a tile for each layer."""
    left, gap = left_of(names), 22
    sizes = [len(next(iter(rows.values()))) for rows in panels.values()]
    gaps = gap * (len(panels) - 1)
    tile = min((WIDTH - left - gaps) / sum(sizes), 34)
    height = 20 * len(names)
    figure = canvas(height + 48, left + tile * sum(sizes) + gaps)
    x = left
    for (title, rows), n in zip(panels.items(), sizes, strict=True):
        ax = axes(figure, x, 44, tile * n, height)
        nothing = np.full(n, np.nan)
        values = 100 * np.array([rows.get(name, nothing) for name in names])
        numbers = [str(layer + (not from_zero)) for layer in range(n)]
        tiles(ax, values, values / np.nanmax(values), names, numbers, "{:.0f}")
        ax.set_title(title, pad=22)
        ax.tick_params(labelleft=x == left)
        x += tile * n + gap
    return figure
