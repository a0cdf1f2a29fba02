"""CLIPAdapter and CoOp: formulas, identities, counts."""

import pytest
import torch
import torch.nn.functional as F
from clip.model import CLIP
from torchvision.transforms import Compose, Normalize

from domainbed import backbones, hparams_registry
from domainbed.algorithms import get_algorithm_class
from domainbed.algorithms_lfa import unit
from domainbed.lib.errors import InputError

NAMES = ["dog", "sea_animal", "house"]


def make(name, **hparams):
    torch.manual_seed(0)
    hparams = hparams_registry.default_hparams(name, "EmojiDG") | hparams
    facts = {"class_names": NAMES}
    algorithm = get_algorithm_class(name)((3, 48, 48), 3, 3, hparams | facts)
    algorithm.given = "all"
    return algorithm


def batch(n=6):
    torch.manual_seed(1)
    return torch.randn(n, 8, 128), torch.arange(n) % 3


@torch.no_grad()
def test_an_adapter_that_says_nothing_is_zero_shot():
    adapter, zero_shot, (z, _) = make("CLIPAdapter"), make("ZeroShotCLIP"), batch()
    assert not torch.allclose(adapter.logits(z), zero_shot.logits(z))
    adapter.up.zero_()
    torch.testing.assert_close(adapter.logits(z), zero_shot.logits(z))
    adapter = make("CLIPAdapter", adapter_ratio=0.0)
    torch.testing.assert_close(adapter.logits(z), zero_shot.logits(z))


@torch.no_grad()
def test_the_adapter_by_its_formula():
    adapter, (z, _) = make("CLIPAdapter", adapter_ratio=0.3), batch()
    e = z[:, -1] @ adapter.backbone.image_projection
    hidden = F.relu(F.linear(e, adapter.down.T))
    expected = 0.3 * F.relu(F.linear(hidden, adapter.up.T)) + 0.7 * e
    torch.testing.assert_close(adapter.adapt(e), expected)
    text = unit(adapter.text_features[:, -1] @ adapter.backbone.text_projection)
    logits = adapter.backbone.scale * unit(expected) @ text.T
    torch.testing.assert_close(adapter.logits(z), logits)


@pytest.mark.parametrize("by_class", [False, True])
@torch.no_grad()
def test_a_context_of_words_is_zero_shot_with_these_words(by_class):
    words = {"context_words": "a photo of a", "context_by_class": by_class}
    coop, (z, _) = make("CoOp", **words), batch()
    assert coop.context.shape == ((3, 4, 128) if by_class else (4, 128))
    zero_shot = make("ZeroShotCLIP", prompt="a photo of a {name}.")
    torch.testing.assert_close(coop.logits(z), zero_shot.logits(z))


def test_only_the_context_trains_and_gradients_reach_all_of_it():
    coop, (z, y) = make("CoOp"), batch()
    trained = {n: p for n, p in coop.named_parameters() if p.requires_grad}
    assert {n: tuple(p.shape) for n, p in trained.items()} == {"context": (16, 128)}
    assert coop.context.std().item() == pytest.approx(0.02, rel=0.1)
    coop.loss([(z, y)]).backward()
    assert (coop.context.grad != 0).any(1).all()


@torch.no_grad()
def test_a_learned_context_is_asked_for_other_names():
    coop, (z, _) = make("CoOp"), batch()
    before = coop.logits(z)
    coop.ask(["house", "dog"], "an ignored {name}")
    torch.testing.assert_close(coop.logits(z), before[:, [2, 0]])
    coop.ask(NAMES)
    torch.testing.assert_close(coop.logits(z), before)
    with pytest.raises(InputError, match="CoOp has weights for each"):
        make("CoOp", context_by_class=True).ask(["moon", "car"])


@pytest.mark.parametrize("name, count", [("CLIPAdapter", 131_072), ("CoOp", 8_192)])
def test_parameter_counts_of_vit_b16(name, count, monkeypatch):
    with torch.device("meta"):
        model = CLIP(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12)
    tower = model, Compose([Normalize([0] * 3, [1] * 3)])
    monkeypatch.setattr(backbones.clip, "read_clip", lambda name: tower)
    own = backbones.CLIPBackbone
    text, eot = torch.zeros(3, 12, 512), torch.zeros(3, dtype=int)
    monkeypatch.setattr(own, "encode_text_layers", lambda self, prompts: text)
    embedded = torch.zeros(3, 20, 512), eot
    monkeypatch.setattr(own, "embed_prompts", lambda self, prompts: embedded)
    trained = [p for p in make(name).parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == count


@pytest.mark.parametrize("shots, dataset, epochs", [
    (1, "OxfordPets", 50), (2, "OxfordPets", 100), (4, "EuroSAT", 100),
    (8, "OxfordPets", 200), (16, "EuroSAT", 200), (16, "ImageNet", 50),
])  # fmt: skip
def test_coop_trains_longer_on_more_shots(shots, dataset, epochs):
    rows = get_algorithm_class("CoOp").few_shot_rows(dataset, shots)
    assert rows["epochs"][0] == epochs
