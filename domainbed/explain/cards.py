"""Cards: an image, what each column answers, and the layers that the run listens to.

The columns are, from left to right, the other run or zero-shot CLIP, LFA's last layers
alone, and the run. `models` brings images and models, `figures` draws.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image

from domainbed.datasets import ImageEnvironment, read_image
from domainbed.evaluation import eval_batch
from domainbed.explain.models import Model, load_model, zero_shot
from domainbed.lib.errors import InputError
from domainbed.lib.fast_data_loader import FastDataLoader


class Column(NamedTuple):
    """A title, and what of a model gives logits (B, C) of its x."""

    title: str
    model: Model
    logits: Callable[[torch.Tensor], torch.Tensor]

    @torch.no_grad()
    def probabilities(self, x: torch.Tensor) -> np.ndarray:
        """(B, C); each row sums to 1. InputError if the model has diverged."""
        p = self.logits(x).softmax(1)
        if not p.isfinite().all():
            raise InputError(f"{self.title} answers NaN: its training diverged.")
        return p.cpu().numpy()


class Card(NamedTuple):
    """All that is shown of one image.

    `answers` has each column's title and class probabilities (C,), the run's last.
    `attention` is LFA.layer_attention of this image, image (L,), self (C, L) and cross
    (C, L), or what another method weighs the states x_0 to x_L with, states (L + 1,);
    empty for methods without weights. `truth` is None where it is not known.
    """

    name: str
    picture: Image.Image
    truth: int | None
    class_names: list[str]
    answers: list[tuple[str, np.ndarray]]
    attention: dict[str, np.ndarray]

    @property
    def predicted(self) -> int:
        """The run's answer."""
        return int(self.answers[-1][1].argmax())


def load_models(
    run: Path, versus: Path | None, data_dir: str | None
) -> tuple[Model, Model | None]:
    """Both runs' models; InputError unless they answer the same about unseen images."""
    model = load_model("--run", run, data_dir)
    if versus is None:
        return model, None
    other = load_model("--versus", versus, data_dir)
    for name in ("dataset", "test_envs"):
        if other.args[name] != model.args[name]:
            raise InputError(
                f"--versus {versus} is a run with {name} {other.args[name]}, --run one "
                f"with {model.args[name]}; give two runs with the same."
            )
    if other.class_names != model.class_names:
        raise InputError(f"--versus {versus} was trained on other classes than --run.")
    return model, other


def make_columns(run: Model, versus: Model | None) -> list[Column]:
    """The columns of the run's cards; without another run beside zero-shot CLIP."""
    other = versus or zero_shot(run)
    title = run.name
    columns = []
    if hasattr(run.algorithm, "last_layer_logits"):
        title = f"{run.name}, all layers"
        columns = [Column(f"{run.name}, last layer alone", run, last_layer_of(run))]
    columns.append(Column(title, run, run.algorithm.predict))
    same = versus is not None and versus.name == run.name
    title = f"{other.name}, the other run" if same else other.name
    return [Column(title, other, other.algorithm.predict), *columns]


def last_layer_of(run: Model) -> Callable[[torch.Tensor], torch.Tensor]:
    lfa = run.algorithm
    return lambda x: lfa.last_layer_logits(lfa.features(x))


def compare(first: Column, second: Column) -> pd.DataFrame:
    """Both columns on every image of the test environments, a row for each.

    env, index and label say which it is; first and second are the answers, confidence
    is the smaller of their probabilities.
    """
    frames = []
    for env in first.model.args["test_envs"]:
        (a, p, labels), (b, q, _) = (guesses(column, env) for column in (first, second))
        facts = {"env": env, "index": range(len(labels)), "label": labels}
        answers = {"first": a, "second": b, "confidence": np.minimum(p, q)}
        frames.append(pd.DataFrame(facts | answers))
    return pd.concat(frames, ignore_index=True)


def guesses(column: Column, env: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every item's predicted class, that class's probability, and its label, (N,)."""
    items = column.model.items(env)
    alone = column.model.algorithm.BATCH_MATTERS  # a card asks about its image alone
    batch = 1 if alone else eval_batch(items)
    parts = []
    for x, y in FastDataLoader(items, batch, num_workers=0):
        p = column.probabilities(column.model.to_device(x))
        parts.append((p.argmax(1), p.max(1), y.numpy()))
    return tuple(map(np.concatenate, zip(*parts, strict=True)))


def most_confident(answers: pd.DataFrame, n: int) -> pd.DataFrame:
    """The n rows of `compare` whose answers differ with the most confidence."""
    differ = answers[answers["first"] != answers["second"]]
    return differ.sort_values("confidence", ascending=False, kind="stable").head(n)


def summary(answers: pd.DataFrame, first: str, second: str) -> str:
    """What `compare` found, in one sentence."""
    differ = answers[answers["first"] != answers["second"]]
    a, b = ((differ[c] == differ["label"]).sum() for c in ("first", "second"))
    mean_a, mean_b = (
        100 * (answers[c] == answers["label"]).mean() for c in ("first", "second")
    )
    return (
        f"{first} ({mean_a:.1f} % right) and {second} ({mean_b:.1f} %) differ on "
        f"{len(differ)} of {len(answers)} test images; of these the first is right on "
        f"{a}, the second on {b}, neither on {len(differ) - a - b}."
    )


def card_of_file(path: Path, columns: list[Column]) -> Card:
    """The card of a picture whose class is not known; InputError if it is none."""
    picture = read_image(str(path))
    return make_card(
        path.name, picture, None, columns, lambda model: model.read(picture)
    )


def card_of_item(env: int, index: int, columns: list[Column]) -> Card:
    """The card of one item of an environment of the run's dataset."""
    run = columns[-1].model
    name, picture, label = shown_item(run, env, index)
    return make_card(
        name, picture, label, columns, lambda model: model.item(env, index)
    )


def shown_item(run: Model, env: int, index: int) -> tuple[str, Image.Image, int]:
    """An item's name, its picture before any transform, and its label."""
    environment = run.dataset.unaugmented(env)
    environment.transform = lambda picture: picture
    picture, label = environment[index]
    name = f"image {index}"
    if isinstance(environment, ImageEnvironment):
        name = Path(environment.samples[index][0]).name
    return f"{run.dataset.environment_name(env)}/{name}", picture, int(label)


@torch.no_grad()
def make_card(
    name: str,
    picture: Image.Image,
    truth: int | None,
    columns: list[Column],
    take: Callable[[Model], torch.Tensor],
) -> Card:
    """The card of a picture; `take` says which x (1, ...) a model takes of it."""
    answers = [(c.title, c.probabilities(take(c.model))[0]) for c in columns]
    run = columns[-1].model
    attention = layer_weights(run, take(run))
    names = [printable(each) for each in run.class_names]
    return Card(printable(name), picture, truth, names, answers, attention)


def layer_weights(run: Model, x: torch.Tensor) -> dict[str, np.ndarray]:
    """A card's `attention` for the item x (1, ...)."""
    if hasattr(run.algorithm, "layers_used"):
        return {"states": sum(run.algorithm.layers_used().values()).cpu().numpy()}
    if not hasattr(run.algorithm, "layer_attention"):
        return {}
    weights = run.algorithm.layer_attention(x)
    weights |= {key: weights[key][0] for key in weights.keys() - {"self"}}
    return {key: value.cpu().numpy() for key, value in weights.items()}


def layers_in_words(drawn: list[Card], name: str) -> str:
    """Which image layers weigh most, over the cards; "" of a method without weights."""
    for key, first in (("image", 1), ("states", 0)):
        rows = [card.attention[key] for card in drawn if key in card.attention]
        if rows:
            mean = np.mean(rows, 0)
            most = np.argsort(-mean, kind="stable")[:3]
            layers = ", ".join(f"{i + first} ({100 * mean[i]:.0f} %)" for i in most)
            return f"{name} uses these image layers most: {layers}."
    return ""


def printable(text: str) -> str:
    """The text in one line, without what no file in UTF-8 can hold."""
    return "".join(c if c.isprintable() else " " for c in text)
