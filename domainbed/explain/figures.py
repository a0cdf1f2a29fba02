"""Cards as PNG files and as one HTML page.

Blue is the true class, orange a wrong answer, teal an answer whose truth is not known.
"""

import base64
import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from domainbed.explain.cards import Card
from domainbed.report.svg import (
    LIGHT,
    STYLE,
    axes,
    canvas,
    drawn,
    rendered,
    short,
    write,
)

TRUE, WRONG, UNKNOWN, OTHER = "c0", "c1", "c5", "c9"
SHOWN = 5  # classes of an answer
# In pixels: panels begin at LEFT, the numbers at a chart's left take TICKS.
MARGIN, LEFT, PANEL, GAP, TICKS = 20, 216, 212, 24, 34
ANSWER, WEIGHTS = 174, 92  # heights of the two kinds of panels
MOST_PIXELS = 400  # of a picture's longer side
TITLES = {
    "image": "Attention, image layers",
    "self": "Attention, text layers: self",
    "cross": "Attention, text layers: cross",
    "states": "Layers used, 0: before the first",
}


def colour(card: Card, label: int) -> str:
    """The colour of a class that is true or was answered."""
    if card.truth is None:
        return UNKNOWN
    return TRUE if label == card.truth else WRONG


def draw_answer(ax: Axes, card: Card, probabilities: np.ndarray) -> None:
    """The most probable classes, each as a bar with its name and probability above.

    Where the true class is not among them, its rank is below.
    """
    ax.set(xlim=(0, 1), ylim=(SHOWN + 0.6, 0))
    ax.axis("off")
    order = np.argsort(-probabilities, kind="stable")
    for row, label in enumerate(order[:SHOWN]):
        p, name = probabilities[label], card.class_names[label]
        is_true = label == card.truth
        text = f"{short(name, 18)}  (true)" if is_true else short(name, 24)
        ax.text(0, row + 0.42, text, va="baseline")
        ax.text(1, row + 0.42, f"{100 * p:.1f} %", va="baseline", ha="right")
        bar = {"fc": LIGHT[OTHER], "alpha": 0.6}
        if is_true or row == 0:
            bar = {"fc": LIGHT[colour(card, label)]}
        ax.add_patch(Rectangle((0, row + 0.56), 1, 0.2, fc=LIGHT["line"], lw=0))
        ax.add_patch(Rectangle((0, row + 0.56), p, 0.2, lw=0, **bar))
    if card.truth is not None and card.truth not in order[:SHOWN]:
        rank = order.tolist().index(card.truth) + 1
        p = 100 * probabilities[card.truth]
        text = f"true class: rank {rank} of {len(order)}, {p:.1f} %"
        ax.text(0, SHOWN + 0.42, text, va="baseline", color=LIGHT["muted"])


def answer_title(card: Card, title: str, probabilities: np.ndarray) -> str:
    """The title, marked right or wrong where the truth is known."""
    if card.truth is None:
        return title
    return ("✓ " if probabilities.argmax() == card.truth else "✗ ") + title


def attention_series(card: Card) -> dict[str, list[tuple[str, np.ndarray]]]:
    """What each chart shows: (colour, weights (L,)) of the image or of classes."""
    of_image = {
        key: [(OTHER, card.attention[key])]
        for key in ("image", "states")
        if key in card.attention
    }
    labels = [card.predicted]
    if card.truth not in (None, card.predicted):
        labels.append(card.truth)
    of_classes = {
        key: [(colour(card, label), card.attention[key][label]) for label in labels]
        for key in ("self", "cross")
        if key in card.attention
    }
    return of_image | of_classes


def draw_attention(ax: Axes, card: Card, key: str) -> None:
    """Weights of the layers as bars side by side; dashed, what all alike would be."""
    every = attention_series(card)
    series = every[key]
    n, first = len(series[0][1]), int(key != "states")
    width = 0.76 / len(series)
    for i, (name, weights) in enumerate(series):
        x = np.arange(first, first + n) + (i - (len(series) - 1) / 2) * width
        ax.bar(x, weights, width * 0.92, color=LIGHT[name])
    ax.axhline(1 / n, color=LIGHT["muted"], lw=0.9, ls=(0, (4, 3)))
    most = max(weights.max() for own in every.values() for _, weights in own)
    ax.set(xlim=(first - 0.6, first + n - 0.4), ylim=(0, 1.06 * most))
    ax.set_xticks(range(first, first + n, -(-n // 12)))
    ax.yaxis.set_major_locator(MaxNLocator(3))
    ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    ax.grid(False, axis="x")


def legend(card: Card) -> list[tuple[str, str]]:
    """(colour, text) of the true class and of the run's answer."""
    names = card.class_names
    if card.truth is None:
        return [(UNKNOWN, f"answer: {names[card.predicted]}")]
    lines = [(TRUE, f"true: {names[card.truth]}")]
    if card.predicted != card.truth:
        lines.append((WRONG, f"wrong: {names[card.predicted]}"))
    return lines


def thumbnail(picture: Image.Image) -> Image.Image:
    small = picture.copy()
    small.thumbnail((MOST_PIXELS, MOST_PIXELS))
    return small


def as_png(card: Card) -> bytes:
    """The card as a PNG file."""
    file = io.BytesIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a box for a letter will do
        draw_card(card).savefig(file, dpi=144, facecolor=LIGHT["paper"])
    return file.getvalue()


def draw_card(card: Card) -> Figure:
    """The picture at the left, right of it a panel per answer, below them attention."""
    top, charts = 34, 34 + ANSWER + 32
    series = attention_series(card)
    columns = [LEFT + i * (PANEL + GAP) for i in range(len(card.answers))]
    height = charts + WEIGHTS + 34 if series else 290
    figure = canvas(height, columns[-1] + PANEL + MARGIN)
    draw_left(figure, card, top - 16)  # level with the titles
    if series:
        write(figure, MARGIN, charts + WEIGHTS, "dashed: equal shares")
        figure.texts[-1].set_color(LIGHT["muted"])
    for x, (title, probabilities) in zip(columns, card.answers, strict=True):
        ax = axes(figure, x, top, PANEL, ANSWER)
        ax.set_title(answer_title(card, title, probabilities), weight="bold", pad=8)
        draw_answer(ax, card, probabilities)
    for x, key in zip(columns, series, strict=False):  # none, or one for each
        ax = axes(figure, x + TICKS, charts, PANEL - TICKS, WEIGHTS)
        ax.set_title(TITLES[key], x=-TICKS / (PANEL - TICKS))
        draw_attention(ax, card, key)
    return figure


def draw_left(figure: Figure, card: Card, top: float) -> None:
    """The picture, the legend, and where the picture is from."""
    picture, side = thumbnail(card.picture), LEFT - MARGIN - GAP
    height = side * min(1, picture.height / picture.width)
    ax = axes(figure, MARGIN, top, side, height)
    ax.imshow(picture)
    ax.set(xticks=[], yticks=[], anchor="NW")
    ax.grid(False)
    ax.spines[:].set_visible(True)
    y = top + height + 20
    for name, text in legend(card):
        write(figure, MARGIN, y, "■")
        figure.texts[-1].set_color(LIGHT[name])
        write(figure, MARGIN + 14, y, short(text, 25))
        y += 18
    y += 6
    for line in card.name.split("/"):
        write(figure, MARGIN, y, short(line, 27))
        figure.texts[-1].set_color(LIGHT["muted"])
        y += 18


@drawn
def answer_panel(card: Card, column: int) -> Figure:
    figure = canvas(ANSWER, PANEL)
    draw_answer(axes(figure, 0, 0, PANEL, ANSWER), card, card.answers[column][1])
    return figure


@drawn
def attention_panel(card: Card, key: str) -> Figure:
    figure = canvas(WEIGHTS + 28, PANEL)
    draw_attention(axes(figure, TICKS, 6, PANEL - TICKS - 2, WEIGHTS), card, key)
    return figure


def as_page(cards: Sequence[Card], title: str, facts: str) -> str:
    """All cards as one HTML page that needs nothing but itself."""
    shown = [
        {
            "name": card.name,
            "picture": base64_png(card.picture),
            "legend": legend(card),
            "answers": [
                (answer_title(card, *answer), answer_panel(card, column))
                for column, answer in enumerate(card.answers)
            ],
            "attention": [
                (TITLES[key], attention_panel(card, key))
                for key in attention_series(card)
            ],
        }
        for card in cards
    ]
    return rendered("explain.html", title=title, facts=facts, cards=shown)


def base64_png(picture: Image.Image) -> str:
    file = io.BytesIO()
    thumbnail(picture).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def file_name(number: int, card: Card) -> str:
    """A name that any file system takes: the card's number, then what it shows."""
    words = re.findall("[A-Za-z0-9]+", str(Path(card.name).with_suffix("")))
    return "_".join([f"{number:03d}", *words])[:80] + ".png"
