"""MaPLe: where its prompts stand, what they train, what it costs."""

import pytest
import torch
from towers import (
    TOWERS,
    images,
    make,
    n_parameters_of_vit_b16,
    set_all,
    shapes,
    sizes,
    text_head,
)

from domainbed import backbones
from domainbed.lib.errors import InputError


def written_out(maple, x):
    """Its logits as the released code goes: 77 tokens, prompts swapped in place."""
    model, n = maple.backbone.model, len(maple.context)
    depth = len(maple.couple_weight)
    text = model.token_embedding(backbones.clip.tokenize(maple.prompts))  # (C, 77, W)
    text[:, 1 : 1 + n] = maple.context
    text = (text + model.positional_embedding).permute(1, 0, 2)
    for i, block in enumerate(model.transformer.resblocks):
        if 0 < i < depth:
            text[1 : 1 + n] = maple.deep_prompts[i - 1][:, None]
        text = block(text)
    ends = backbones.clip.tokenize(maple.prompts).argmax(1)
    text = text.permute(1, 0, 2)[torch.arange(len(ends)), ends]
    t = model.ln_final(text) @ model.text_projection

    visual = model.visual
    patches = visual.conv1(x).flatten(2).permute(0, 2, 1)
    start = visual.class_embedding.expand(len(x), 1, -1)
    image = torch.cat([start, patches], 1) + visual.positional_embedding
    prompts = maple.context @ maple.couple_weight[0] + maple.couple_bias[0]
    image = torch.cat([image, prompts.expand(len(x), -1, -1)], 1)
    image = visual.ln_pre(image).permute(1, 0, 2)
    for i, block in enumerate(visual.transformer.resblocks):
        if 0 < i < depth:
            deep = maple.deep_prompts[i - 1] @ maple.couple_weight[i]
            image[-n:] = (deep + maple.couple_bias[i])[:, None]
        image = block(image)
    return text_head(maple, visual.ln_post(image[0]) @ visual.proj, t)


@pytest.mark.parametrize("tower", TOWERS)
@torch.no_grad()
def test_maple_written_out(tower, monkeypatch):
    maple = set_all(make("MaPLe", monkeypatch, tower, prompt_depth=2), 0.05)
    x = images(maple)
    torch.testing.assert_close(
        maple.predict(x), written_out(maple, x), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("tower", TOWERS)
def test_names_and_shapes_are_the_released_ones(tower, monkeypatch):
    maple = make("MaPLe", monkeypatch, tower)
    image_width, text_width, *_ = sizes(maple)
    assert shapes(maple) == {
        "context": (2, text_width),
        "deep_prompts": (2, 2, text_width),
        "couple_weight": (3, text_width, image_width),
        "couple_bias": (3, image_width),
    }


def test_where_it_starts():
    maple = make("MaPLe")
    tokens = backbones.clip.tokenize(["a photo"])[:, 1:3]
    expected = maple.backbone.model.token_embedding(tokens)[0]
    assert torch.equal(maple.context, expected)
    assert torch.equal(maple.couple_weight[1], maple.couple_weight[2])
    assert not torch.equal(maple.couple_weight[0], maple.couple_weight[1])
    assert 0.005 < maple.deep_prompts.std() < 0.05


def test_gradients_reach_all_that_trains_and_no_weight_of_the_towers():
    maple = make("MaPLe")
    x = images(maple)
    before = maple.predict(x).detach()
    maple.update([(x, torch.tensor([0, 1, 2]))])
    assert all(p.grad.abs().sum() > 0 for p in maple.parameters() if p.requires_grad)
    assert all(p.grad is None for p in maple.backbone.parameters())
    assert not torch.equal(maple.predict(x), before)


@torch.no_grad()
def test_other_classes_are_asked_with_the_same_prompts():
    maple = make("MaPLe")
    x = images(maple)
    before = maple.predict(x)
    maple.ask(["house", "dog"])
    torch.testing.assert_close(maple.predict(x), before[:, [2, 0]])


def test_parameter_counts_of_vit_b16(monkeypatch):
    assert n_parameters_of_vit_b16("MaPLe", monkeypatch) == 3_555_072
    three = n_parameters_of_vit_b16("MaPLe", monkeypatch, prompt_depth=3)
    assert three == 1_185_024


@pytest.mark.parametrize(
    "hparams, says",
    [
        ({"prompt_depth": 5}, "prompt_depth is 5; these towers have from 1 to 4"),
        ({"prompt_depth": 0}, "prompt_depth' is 0; "),
        ({"context_length": 5}, "the context are the first 1 to 4 words of 'a photo"),
    ],
)
def test_what_the_towers_cannot_take_is_named(hparams, says):
    with pytest.raises(InputError, match=says):
        make("MaPLe", **hparams)
