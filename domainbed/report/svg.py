"""The report's page and SVG for it: its palette, axes, figures as small SVG elements.

One unit is one pixel. Colours stand in the SVG as CSS variables, so that the page's
light and dark schemes hold in the pictures too.
"""

import functools
import hashlib
import io
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator

ASSETS = Path(__file__).parents[1] / "assets"
# Name -> its colour in the light scheme, in the dark one.
PALETTE = {
    "paper": ("#fdfdfc", "#17191b"),
    "ink": ("#1e2124", "#e7e5e1"),
    "muted": ("#646a70", "#9da3a9"),
    "line": ("#dcdddb", "#373b3f"),
    "better": ("#3a6ea5", "#7aaee0"),
    "worse": ("#c0652b", "#e59a68"),
    "c0": ("#3b6eb0", "#7bb0e6"),
    "c1": ("#c4682f", "#e79d6c"),
    "c2": ("#46875a", "#7fc294"),
    "c3": ("#7a5fa6", "#b39bdc"),
    "c4": ("#a8474e", "#e0868c"),
    "c5": ("#2c878d", "#68c4c9"),
    "c6": ("#8a7f2c", "#c9bd68"),
    "c7": ("#a85c8d", "#de9cc5"),
    "c8": ("#80624b", "#c0a083"),
    "c9": ("#5c6670", "#a9b2bb"),
}
LIGHT = {name: light for name, (light, _) in PALETTE.items()}
WIDTH = 920
RIGHT = 12  # half a number may stand out there
STYLE = {
    "font.size": 11,
    "svg.fonttype": "none",  # text stays text: small, and set in the page's font
    "svg.hashsalt": "domainbed",
    "text.parse_math": False,  # a class may be called $5
    "text.color": LIGHT["ink"],
    "axes.edgecolor": LIGHT["line"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.titlecolor": LIGHT["ink"],
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 6,
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT["line"],
    "grid.linewidth": 0.6,
    "xtick.color": LIGHT["line"],
    "ytick.color": LIGHT["line"],
    "xtick.labelcolor": LIGHT["muted"],
    "ytick.labelcolor": LIGHT["muted"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.4,
}


def rendered(template: str, **facts: Any) -> str:
    """The page of that file in the assets, in the palette's colours."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = (ASSETS / template).read_text(encoding="utf-8")
    return environment.from_string(text).render(palette=PALETTE, **facts)


def drawn(function: Callable[..., Figure]) -> Callable[..., Markup]:
    """The function, but its figure becomes the text of an SVG element."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with matplotlib.rc_context(STYLE), warnings.catch_warnings():
            # The page's font has the letters that matplotlib's has not.
            warnings.filterwarnings("ignore", "Glyph")
            return as_svg(function(*args, **kwargs))

    return wrapped


def as_svg(figure: Figure) -> Markup:
    """The figure as a small SVG element, the same bytes for the same picture."""
    text = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(text, format="svg", metadata=metadata)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    width, height = (
        re.search(rf'{n}="([\d.]+)pt"', svg)[1] for n in ("width", "height")
    )
    svg = svg[svg.index(">") + 1 :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r"<[^>]+>", lambda tag: _shorter(tag[0]), svg)
    used = {*re.findall(r"#(\w+)", svg)}
    name = hashlib.md5(svg.encode()).hexdigest()[:6]  # ids are the whole page's
    svg = re.sub(
        r' id="(\w[\w.]*)"',
        lambda m: f' id="{name}{m[1]}"' if m[1] in used else "",
        svg,
    )
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}", svg)
    svg = re.sub(r">\s+<", "><", svg)
    return Markup(
        f'<svg role="img" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}">{svg}'
    )


def _shorter(tag: str) -> str:
    """The tag with 2 decimals, colours by name, and the page's font."""
    tag = re.sub(r"(\.\d\d)\d+", r"\1", tag)
    tag = re.sub(r"font: ([^;\"]*?)([\d.]+px) [^;\"]*", r"font-size:\2", tag)
    for name, light in LIGHT.items():
        tag = tag.replace(light, f"var(--{name})")
    return re.sub(r"\s+", " ", tag)


def canvas(height: float, width: float = WIDTH) -> Figure:
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    figure.patch.set_visible(False)
    return figure


def axes(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """Axes whose box begins x from the left and y from the top, in pixels."""
    w, h = figure.get_size_inches() * 72
    box = [x / w, 1 - (y + height) / h, width / w, height / h]
    ax = figure.add_axes(box)
    ax.patch.set_visible(False)
    ax.yaxis.set_major_locator(MaxNLocator(4))
    return ax


def write(figure: Figure, x: float, y: float, text: str, side: str = "left") -> None:
    """Text that begins, or ends, at a place given in pixels from the top left."""
    w, h = figure.get_size_inches() * 72
    figure.text(x / w, 1 - y / h, text, ha=side, va="center")


def short(text: str, most: int = 22) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def left_of(labels: Sequence[str]) -> float:
    """Room for labels at the left."""
    return 16 + 6.8 * max((len(short(label)) for label in labels), default=0)


def grid(n: int, height: float) -> tuple[Figure, list[Axes]]:
    """n small axes in rows of at most four, each under its title."""
    left, gap, top, bottom = 44, 30, 24, 38
    rows = -(-n // 4)
    columns = -(-n // rows)  # as even as can be
    width = min((WIDTH - left - RIGHT - (columns - 1) * gap) / columns, 330)
    figure = canvas(rows * (height + top + bottom))
    return figure, [
        axes(
            figure,
            left + (i % columns) * (width + gap),
            top + (i // columns) * (height + top + bottom),
            width,
            height,
        )
        for i in range(n)
    ]


def dots(
    ax: Axes, x: np.ndarray, y: np.ndarray, colour: str = "c0", size: float = 4.6
) -> None:
    """A dot for each pair, seen through where others lie under it."""
    ax.plot(x, y, "o", ms=size, mew=0, alpha=0.65, color=LIGHT[colour])


def rings(
    ax: Axes, x: np.ndarray, y: np.ndarray, colour: str = "ink", size: float = 8
) -> None:
    """A ring for each pair."""
    ax.plot(x, y, "o", ms=size, mew=1.3, mfc="none", mec=LIGHT[colour])


def tiles(
    ax: Axes,
    values: np.ndarray,
    strength: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    form: str = "{:.1f}",
    least: tuple[float, float] = (-np.inf, -np.inf),
) -> None:
    """A tile for each value (rows, columns), its colour as strong as it says.

    Strength is -1 to 1: below 0 in the colour of worse, above in that of better. Values
    below the first of `least` have no tile, below the second no text.
    """
    ax.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
    ax.grid(False)
    for side in ax.spines.values():
        side.set_visible(False)
    for (i, j), value in np.ndenumerate(values):
        if np.isnan(value):
            ax.text(
                j + 0.5, i + 0.5, "–", ha="center", va="center", color=LIGHT["muted"]
            )
            continue
        if value < least[0]:
            continue
        s = strength[i, j]
        rgb = matplotlib.colors.to_rgb(LIGHT["better" if s >= 0 else "worse"])
        alpha = round(0.04 + 0.56 * min(abs(s), 1), 2)
        ax.add_patch(
            Rectangle((j + 0.02, i + 0.04), 0.96, 0.92, facecolor=(*rgb, alpha), lw=0)
        )
        if value >= least[1]:
            text = form.format(value).replace("-", "−")
            ax.text(j + 0.5, i + 0.5, text, ha="center", va="center")
    ax.set_xticks(np.arange(len(columns)) + 0.5, [short(c, 14) for c in columns])
    ax.set_yticks(np.arange(len(rows)) + 0.5, [short(r) for r in rows])
    ax.tick_params(axis="x", top=True, labeltop=True, bottom=False, labelbottom=False)
    ax.tick_params(axis="y", labelcolor=LIGHT["ink"])


def padded(low: float, high: float, least: float = 4.0) -> tuple[float, float]:
    """Limits a little beyond, at least so far apart: noise must not look like news."""
    if not np.isfinite([low, high]).all():
        return 0, 100
    pad = max(0.06 * (high - low), (least - (high - low)) / 2)
    return low - pad, high + pad


def label(panels: list[Axes], x: str, y: str) -> None:
    """Axis labels where the reader looks first: at the first panel."""
    if panels:
        panels[0].set_xlabel(x, loc="left")
        panels[0].set_ylabel(y, loc="bottom")


def spread(values: np.ndarray, gap: float) -> np.ndarray:
    """Ascending values moved as little as needed to lie `gap` apart, in clusters."""
    clusters: list[list[float]] = []  # [mean, size] of neighbours that touch
    for value in values:
        clusters.append([value, 1])
        while len(clusters) > 1:
            (a, n), (b, m) = clusters[-2:]
            if b - a >= gap * (n + m) / 2:
                break
            clusters[-2:] = [[(a * n + b * m) / (n + m), n + m]]
    return np.concatenate(
        [mean + gap * (np.arange(n) - (n - 1) / 2) for mean, n in clusters]
    )


def scale(ax: Axes, values: np.ndarray) -> None:
    """The x axis for these values: logarithmic, with a place for 0, if far apart."""
    positive = values[values > 0]
    has_zero = bool((values == 0).any())
    if positive.size == 0 or positive.max() < 20 * positive.min():
        span = max(np.ptp(values), 0.05 * abs(values).max(), 1e-9)
        ax.set_xlim(values.min() - 0.12 * span, values.max() + 0.12 * span)
        ax.xaxis.set_major_locator(MaxNLocator(3))
        return
    low = 10 ** np.floor(np.log10(positive.min()))
    if has_zero:
        ax.set_xscale("symlog", linthresh=low, linscale=0.5)
        ax.set_xlim(-low / 3, positive.max() * 2)
    else:
        ax.set_xscale("log")
        ax.set_xlim(positive.min() / 1.6, positive.max() * 1.6)
    # The first power has no room beside 0.
    first, last = np.log10(
        [low * 10 if has_zero else ax.get_xlim()[0], ax.get_xlim()[1]]
    )
    powers = np.arange(np.ceil(first), np.floor(last) + 1)
    ticks = [0.0] * has_zero + [10**power for power in powers[:: -(-len(powers) // 3)]]
    ax.set_xticks(ticks, [brief(tick) for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())


def brief(value: float) -> str:
    """1000 as 1k, 1e6 as 1M, small ones as 1e-5."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}".replace("e-0", "e-")
