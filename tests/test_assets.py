"""What ships with the package loads, and is what its card says."""

import hashlib
import re

import clip
import pytest
import torch

from domainbed import datasets
from domainbed.algorithms import get_algorithm_class
from domainbed.backbones import EMOJI_CLIP
from domainbed.hparams_registry import default_hparams
from domainbed.lib import misc
from domainbed.lib.fast_data_loader import FastDataLoader

CARD = (EMOJI_CLIP.parent / "README.md").read_text()


@pytest.mark.filterwarnings("ignore:.*torch.jit.load:FutureWarning")
def test_the_emoji_clip_is_a_small_half_precision_checkpoint_of_openais_layout():
    state = torch.load(EMOJI_CLIP, weights_only=True)
    assert EMOJI_CLIP.stat().st_size < 20e6
    shapes = {name: tuple(weight.shape) for name, weight in state.items()}
    assert shapes["visual.proj"] == shapes["text_projection"] == (128, 128)
    assert shapes["visual.positional_embedding"] == (6 * 6 + 1, 128)
    assert shapes["positional_embedding"] == (77, 128)
    assert shapes["token_embedding.weight"] == (49408, 128)
    layers = {re.sub(r"(resblocks\.\d+).*", r"\1", name) for name in shapes}
    assert sum("visual.transformer" in name for name in layers) == 8
    assert sum(name.startswith("transformer") for name in layers) == 4
    floats = [w.dtype for name, w in state.items() if w.is_floating_point()]
    assert set(floats) == {torch.float16}
    model, preprocess = clip.load(str(EMOJI_CLIP), device="cpu")
    assert model.visual.input_resolution == 48
    assert preprocess.transforms[0].size == 48


def test_nothing_else_large_ships():
    sizes = {path.name: path.stat().st_size for path in EMOJI_CLIP.parent.iterdir()}
    assert {name for name, size in sizes.items() if size > 1e5} == {
        "emoji_clip.pt",
        "emoji_dg.zip",
    }


def stated_accuracies() -> dict[str, float]:
    """The card's table of zero-shot accuracies, domain -> percent."""
    lines = CARD.split("Zero-shot accuracy")[1].splitlines()
    header, _, values = [line for line in lines if line.startswith("|")][:3]
    cells = ([c.strip() for c in row.strip("|").split("|")] for row in (header, values))
    return {name: float(value) for name, value in zip(*cells, strict=True)}


def test_zero_shot_accuracy_is_the_cards(tmp_path):
    hparams = default_hparams("ZeroShotCLIP", "EmojiDG")
    dataset = datasets.EmojiDG(str(tmp_path), [0], hparams)
    facts = {"class_names": dataset.class_names}
    algorithm = get_algorithm_class("ZeroShotCLIP")((3, 48, 48), 17, 3, hparams | facts)
    stated = stated_accuracies()
    for name, environment in zip(dataset.ENVIRONMENTS, dataset, strict=True):
        loader = FastDataLoader(environment, 64, 0)
        accuracy = 100 * misc.accuracy(algorithm, loader, None, "cpu")
        assert stated[name] == pytest.approx(accuracy, abs=0.25), name


def test_the_card_names_what_ships():
    for path in (EMOJI_CLIP, datasets.EmojiDG.ARCHIVE):
        assert hashlib.sha256(path.read_bytes()).hexdigest() in CARD
