"""FineTuneCLIP, LinearERM, MIRO: where they start, what they train, what it costs."""

import copy
import math

import pytest
import torch
from towers import n_parameters_of_vit_b16

from domainbed import backbones, hparams_registry
from domainbed.algorithms import get_algorithm_class
from domainbed.lib.errors import InputError

NAMES = ["dog", "sea_animal", "house"]


def make(name, **hparams):
    torch.manual_seed(0)
    defaults = hparams_registry.default_hparams(name, "EmojiDG")
    facts = {"class_names": NAMES, "clip_transform": True}
    cls = get_algorithm_class(name)
    return cls((3, 48, 48), len(NAMES), 3, defaults | facts | hparams)


def batches():
    torch.manual_seed(1)
    return [(torch.randn(2, 3, 48, 48), torch.tensor([0, 2])) for _ in range(3)]


@torch.no_grad()
def test_fine_tuning_starts_at_zero_shot():
    x = torch.randn(4, 3, 48, 48)
    expected = make("ZeroShotCLIP").predict(x)
    torch.testing.assert_close(make("FineTuneCLIP").predict(x), expected)


def test_linear_erm_reads_the_embedding_or_stored_features():
    erm = make("LinearERM")
    x = torch.randn(4, 3, 48, 48)
    with torch.no_grad():
        expected = erm.classifier(erm.backbone.model.encode_image(x))
        torch.testing.assert_close(erm.predict(x), expected)
        z, from_images = erm.features(x), erm.predict(x)
        erm.given = erm.stored_kind.name
        assert torch.equal(erm.predict(z), from_images)


@pytest.mark.parametrize("name", ["FineTuneCLIP", "MIRO"])
def test_a_trained_tower_refuses_layer_features(name):
    algorithm = make(name)
    assert not algorithm.TAKES_FEATURES
    with pytest.raises(InputError, match=f"{name} takes no stored features"):
        algorithm.predict(torch.randn(2, 8, 128))


def test_miros_price_at_the_start_is_its_closed_form():
    miro = make("MIRO")
    (x, _), *_ = batches()
    taps = miro.taps(miro.tower, x)
    frozen = miro.taps(miro.backbone.model.visual, x)
    price = miro.regularizer(taps, frozen)
    assert price.item() == pytest.approx(5 * math.log(0.1) / 2, abs=1e-4)  # -5.7565
    ce = torch.nn.functional.cross_entropy(miro.predict(x), torch.tensor([0, 2]))
    total = miro.loss([(x, torch.tensor([0, 2]))])
    torch.testing.assert_close(total, ce + price)
    miro.hparams["miro_ld"] = 0.1
    total = miro.loss([(x, torch.tensor([0, 2]))])
    torch.testing.assert_close(total, ce + 0.1 * price)


def test_miros_price_written_out():
    miro = make("MIRO")
    torch.manual_seed(2)
    f = [torch.randn(2, 3, 128) for _ in range(5)]
    f0 = [torch.randn(2, 3, 128) for _ in range(5)]
    for raw in miro.variances:
        raw.data.normal_()
    expected = 0.0
    for a, b, raw in zip(f, f0, miro.variances, strict=True):
        var = torch.log(1 + raw.exp()) + 1e-5
        expected += (((a - b) ** 2 / var + var.log()) / 2).mean().item()
    assert miro.regularizer(f, f0).item() == pytest.approx(expected, rel=1e-5)


def test_miro_taps_the_patches_and_every_quarter():
    miro = make("MIRO")
    (x, _), *_ = batches()
    patches, *quarters = miro.taps(miro.tower, x)
    assert patches.shape == (2, 6, 6, 128)
    assert [tap.shape for tap in quarters] == [(37, 2, 128)] * 4
    visual = copy.deepcopy(miro.tower)
    blocks = visual.transformer.resblocks
    for depth, tap in zip((8, 6, 4, 2), reversed(quarters), strict=True):
        del blocks[depth:]
        torch.testing.assert_close(visual.ln_post(tap[0]) @ visual.proj, visual(x))


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
@torch.no_grad()
def test_miro_taps_a_tower_of_any_depth(depth):
    miro = make("MIRO")
    del miro.tower.transformer.resblocks[depth:]
    x = torch.randn(2, 3, 48, 48)
    blocks = [*backbones.image_blocks(miro.tower, miro.tower.conv1(x))]
    taps = miro.taps(miro.tower, x)[1:]
    for tap, quarter in zip(taps, (0.25, 0.5, 0.75, 1), strict=True):
        assert torch.equal(tap, blocks[math.ceil(quarter * depth) - 1])


def test_miro_moves_its_tower_and_never_the_frozen_one():
    miro = make("MIRO", lr=1e-3)
    frozen = copy.deepcopy(miro.backbone.model.visual.state_dict())
    before = copy.deepcopy(miro.tower.state_dict())
    for _ in range(2):
        miro.update(batches())
    for name, weight in miro.backbone.model.visual.named_parameters():
        assert weight.grad is None
        assert torch.equal(weight, frozen[name])
    after = miro.tower.state_dict()
    assert not any(torch.equal(after[name], before[name]) for name in before)
    rates = [group["lr"] for group in miro.optimizer.param_groups]
    assert rates == [1e-3, 1e-2]
    assert all((raw != miro.variances[0][0]).any() for raw in miro.variances)


@pytest.mark.parametrize(
    "prompt, says",
    [
        ([], "prompt is an empty list"),
        (["{name}", 3], "the prompt 3 has no {name}"),
        (["a photo"], "the prompt 'a photo' has no {name}"),
    ],
)
def test_wrong_templates_are_named(prompt, says):
    with pytest.raises(InputError, match=says):
        make("ZeroShotCLIP", prompt=prompt)


@pytest.mark.parametrize(
    "name, count",
    [
        ("LinearERM", 512 * 7 + 7),
        ("FineTuneCLIP", 86_192_640 + 512 * 7 + 7),
        ("MIRO", 86_200_071),
    ],
)
def test_parameter_counts_of_vit_b16(name, count, monkeypatch):
    assert n_parameters_of_vit_b16(name, monkeypatch) == count
