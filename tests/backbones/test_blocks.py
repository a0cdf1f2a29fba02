"""The tower functions that methods write their blocks with, against CLIP's own."""

import pytest
import torch

from domainbed.backbones import load_clip
from domainbed.backbones.clip import attend, run_block

PROMPTS = ["a photo of a dog", "house", "a very long description of a sea animal"]


@pytest.fixture(scope="module")
def emoji():
    return load_clip("emoji")


def images(n=2):
    return torch.randn(n, 3, 48, 48, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_the_last_states_class_token_is_clips_encoding(emoji):
    x = images()
    states = emoji.image_states(x)
    assert len(states) == emoji.n_image_layers + 1
    assert torch.equal(states[0], emoji.embed_image(x))
    embedding = emoji.image_embedding(states[-1][:, 0])
    torch.testing.assert_close(embedding, emoji.model.encode_image(x))
    tokens = torch.stack([state[:, 0] for state in states[1:]], 1)
    z = emoji.model.visual.ln_post(tokens)
    torch.testing.assert_close(z, emoji.encode_image_layers(x))


@torch.no_grad()
def test_text_states_end_in_the_text_layers(emoji):
    states, eot = emoji.text_states(PROMPTS)
    row = torch.arange(len(PROMPTS))
    ends = torch.stack([state[row, eot] for state in states[1:]], 1)
    t = emoji.model.ln_final(ends)
    torch.testing.assert_close(t, emoji.encode_text_layers(PROMPTS))


@pytest.mark.parametrize("tower", ["image", "text"])
@torch.no_grad()
def test_attend_inside_a_block_is_the_blocks_own(emoji, tower):
    """Causal or not, a block is x + attention, then the MLP."""
    if tower == "image":
        states = emoji.image_states(images())
        blocks = emoji.model.visual.transformer.resblocks
    else:
        states, _ = emoji.text_states(PROMPTS)
        blocks = emoji.model.transformer.resblocks
    assert len(states) == len(blocks) + 1
    for block, x, after in zip(blocks, states[:-1], states[1:], strict=True):
        assert torch.equal(run_block(block, x), after)
        q = block.ln_1(x)
        h = x + attend(block, q, q)
        torch.testing.assert_close(h + block.mlp(block.ln_2(h)), after)


@torch.no_grad()
def test_the_last_queries_are_the_last_rows(emoji):
    for block, n in (
        (emoji.model.visual.transformer.resblocks[0], 37),
        (emoji.model.transformer.resblocks[0], 9),
    ):
        kv = torch.randn(2, n, 128)
        whole = attend(block, kv, kv)
        torch.testing.assert_close(attend(block, kv[:, -3:], kv), whole[:, -3:])


@torch.no_grad()
def test_a_prefix_stands_before_the_projected_keys(emoji):
    """What the block itself would project of given tokens changes nothing as prefix."""
    block = emoji.model.visual.transformer.resblocks[2]
    first, rest = torch.randn(4, 128), torch.randn(2, 5, 128)
    w, b = block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3)
    prefix = tuple(first @ w[i].T + b[i] for i in (1, 2))
    kv = torch.cat([first.expand(2, -1, -1), rest], 1)
    torch.testing.assert_close(
        attend(block, rest, rest, prefix), attend(block, rest, kv)
    )


def test_gradients_reach_the_input_and_no_frozen_weight(emoji):
    x = images().requires_grad_()
    emoji.image_embedding(emoji.image_states(x)[-1][:, 0]).sum().backward()
    assert x.grad.abs().sum() > 0
    block = emoji.model.transformer.resblocks[0]
    q, kv = (torch.randn(2, 6, 128, requires_grad=True) for _ in "qk")
    prefix = tuple(torch.randn(3, 128, requires_grad=True) for _ in "kv")
    (attend(block, q, kv, prefix) + run_block(block, q)).sum().backward()
    assert all(v.grad.abs().sum() > 0 for v in (q, kv, *prefix))
    assert all(weight.grad is None for weight in emoji.parameters())


def test_a_frozen_tower_makes_no_graph_of_plain_images(emoji):
    assert not emoji.image_states(images())[-1].requires_grad
    assert not emoji.text_states(PROMPTS)[0][-1].requires_grad
