"""HST: names, equations, maps, where it starts, what trains."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from towers import (
    TOWERS,
    attention,
    images,
    make,
    n_parameters_of_vit_b16,
    set_all,
    shapes,
    sizes,
    trained,
)

from domainbed import backbones
from domainbed.algorithms_hst import SideBlock
from domainbed.lib.errors import InputError

WIDTHS, HEADS = (32, 48, 64, 72), (2, 4, 8, 12)


def linear(name, n_in, n_out):
    return {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}


def norm(name, n):
    return {f"{name}.weight": (n,), f"{name}.bias": (n,)}


@pytest.mark.parametrize("tower", TOWERS)
def test_names_and_shapes_are_the_papers(tower, monkeypatch):
    hst = make("HST", monkeypatch, tower, hst_tokens=2)
    width, _, _, n_layers, _ = sizes(hst)
    expected = {"tokens": (n_layers, 2, width), "stem.0.weight": (32, 3, 3, 3)}
    expected |= norm("stem.1", 32) | linear("classifier", 72, 3)
    expected |= {"stem.3.weight": (32, 32, 2, 2), "stem.3.bias": (32,)}
    for s, d in enumerate(WIDTHS):
        expected |= norm(f"patch_norm.{s}", d) | norm(f"stage_norm.{s}", d)
        expected |= linear(f"bridge.{s}", width, d)
        if s:
            shape = (d, WIDTHS[s - 1], 3, 3)
            expected |= {f"shrink.{s - 1}.weight": shape, f"shrink.{s - 1}.bias": (d,)}
    for i in range(n_layers):
        d = WIDTHS[i // (n_layers // 4)]
        expected |= norm(f"ln_1.{i}", width) | norm(f"ln_2.{i}", width)
        expected |= norm(f"token_norm.{i}", d)
        expected |= norm(f"side.{i}.norm_1", d) | norm(f"side.{i}.norm_2", d)
        for part in ("q", "k", "v", "proj"):
            expected |= linear(f"side.{i}.{part}", d, d)
        expected |= linear(f"side.{i}.fc_1", d, 4 * d)
        expected |= linear(f"side.{i}.fc_2", 4 * d, d)
    assert shapes(hst) == expected


def layer_norm(module, v, eps):
    v = v - v.mean(-1, keepdim=True)
    v = v / (v.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return v * module.weight + module.bias


def apply(module, v):
    return v @ module.weight.T + module.bias


def written_out(hst, x):
    """Logits of images, their tower and their side network in two passes."""
    clip, n_tokens = hst.backbone, hst.tokens.shape[1]
    tokens, metas, grids = clip.embed_image(x), [], []
    side = math.isqrt(tokens.shape[1] - 1)
    for i, block in enumerate(clip.model.visual.transformer.resblocks):
        own = hst.tokens[i][None].repeat(len(x), 1, 1)
        t = torch.cat([own, tokens], 1)
        normed = layer_norm(hst.ln_1[i], t, 1e-5)
        t = t + attention(block, normed, normed)
        t = t + block.mlp(layer_norm(hst.ln_2[i], t, 1e-5))
        metas.append(t[:, :n_tokens])
        tokens = t[:, n_tokens:]
        grid = tokens[:, 1:].reshape(len(x), side, side, -1)
        grids.append(grid.permute(0, 3, 1, 2))
    per_stage, y, maps = len(grids) // 4, None, []
    for i, (meta, grid) in enumerate(zip(metas, grids, strict=True)):
        s = i // per_stage
        d, heads = WIDTHS[s], HEADS[s]
        if i % per_stage == 0:
            if s == 0:
                y = F.conv2d(x, hst.stem[0].weight, stride=2, padding=1)
                bn = hst.stem[1]
                mean, var = bn.running_mean, bn.running_var
                y = (y - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
                y = F.relu(y * bn.weight[:, None, None] + bn.bias[:, None, None])
                y = F.conv2d(y, hst.stem[3].weight, hst.stem[3].bias, stride=2)
            else:
                y = y.transpose(1, 2).reshape(len(x), -1, *maps[-1])
                y = F.conv2d(y, hst.shrink[s - 1].weight, hst.shrink[s - 1].bias, 2, 1)
            maps.append(tuple(y.shape[2:]))
            y = y.flatten(2).transpose(1, 2)
            y = layer_norm(hst.patch_norm[s], y, 1e-5)
        resized = F.interpolate(grid, maps[-1], mode="bilinear", align_corners=False)
        v = apply(hst.bridge[s], resized.flatten(2).transpose(1, 2))
        meta = layer_norm(hst.token_norm[i], apply(hst.bridge[s], meta), 1e-5)
        kv = torch.cat([meta, v.mean(1)[:, None]], 1)
        block = hst.side[i]
        normed = layer_norm(block.norm_1, y, 1e-6)
        query, key, value = (
            apply(block.q, normed),
            apply(block.k, kv),
            apply(block.v, kv),
        )
        pooled = torch.empty_like(query)
        for h in range(heads):
            of = slice(h * d // heads, (h + 1) * d // heads)
            scores = query[..., of] @ key[..., of].transpose(1, 2)
            weights = (scores / (d // heads) ** 0.5).softmax(-1)
            pooled[..., of] = weights @ value[..., of]
        y = y + apply(block.proj, pooled) + v
        hidden = apply(block.fc_1, layer_norm(block.norm_2, y, 1e-6))
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        y = y + apply(block.fc_2, hidden)
        if i % per_stage == per_stage - 1:
            y = layer_norm(hst.stage_norm[s], y, 1e-6)
    y, bn = y.mean(1), hst.batch_norm
    y = (y - bn.running_mean) / (bn.running_var + 1e-6).sqrt()
    return apply(hst.classifier, y), maps


@pytest.mark.parametrize("n_tokens", [1, 3])
@pytest.mark.parametrize("tower", TOWERS)
@torch.no_grad()
def test_logits_are_the_equations(tower, n_tokens, monkeypatch):
    hst = set_all(make("HST", monkeypatch, tower, hst_tokens=n_tokens))
    for bn in (hst.stem[1], hst.batch_norm):
        bn.running_mean.normal_()
        bn.running_var.uniform_(0.5, 2)
    x = images(hst)
    expected, maps = written_out(hst, x)
    torch.testing.assert_close(hst.predict(x), expected, rtol=1e-4, atol=1e-4)
    first = {"emoji": 12, "uneven": 8}[tower]
    sides = [first, first // 2, first // 4, math.ceil(first / 8)]
    assert maps == [(n, n) for n in sides]
    assert hst.features(x).shape == (3, 72)


def test_the_stem_makes_the_papers_maps():
    hst = make("HST")
    y, sides = torch.zeros(1, 3, 224, 224), []
    with torch.no_grad():
        for layer in (hst.stem, *hst.shrink):
            y = layer(y)
            sides.append(tuple(y.shape[2:]))
    assert sides == [(56, 56), (28, 28), (14, 14), (7, 7)]


@torch.no_grad()
def test_without_tokens_the_tower_is_as_it_was():
    hst = make("HST", hst_tokens=0)
    x = images(hst)
    states = hst.backbone.image_states(x)[1:]
    for (meta, grid), state in zip(hst.read(x), states, strict=True):
        assert meta.shape[1] == 0
        torch.testing.assert_close(
            grid.flatten(2).mT, state[:, 1:], rtol=1e-4, atol=1e-5
        )
    assert hst.predict(x).isfinite().all()


def test_where_it_starts():
    hst = make("HST", hst_tokens=4)
    bound = math.sqrt(6 / (5 * 128))
    assert 0.9 * bound < hst.tokens.abs().max() <= bound
    for own, block in zip(hst.ln_1, hst.blocks, strict=True):
        assert torch.equal(own.weight, block.ln_1.weight)
        assert own.weight is not block.ln_1.weight
    assert hst.bridge[0].weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert hst.side[7].fc_1.weight.std().item() == pytest.approx(0.02, rel=0.1)
    fan_out = math.sqrt(2 / (9 * 72))
    assert hst.shrink[2].weight.std().item() == pytest.approx(fan_out, rel=0.05)
    for module in (hst.bridge[1], hst.shrink[0], hst.stem[3], hst.classifier):
        assert not module.bias.any()


def test_every_parameter_learns_and_the_tower_stays():
    hst = make("HST", drop_path=0.0).train()
    hst.loss([(images(hst), torch.tensor([0, 1, 2]))]).backward()
    assert all(p.grad is not None and p.grad.any() for p in trained(hst).values())
    assert all(p.grad is None for p in hst.backbone.parameters())


@torch.no_grad()
def test_paths_drop_in_training_only_and_never_of_the_first_block():
    hst = make("HST", drop_path=0.5)
    branch = torch.ones(64, 2, 2)
    assert torch.equal(hst.skip(7, branch), branch)
    hst.train()
    assert torch.equal(hst.skip(0, branch), branch)
    dropped = hst.skip(7, branch)[:, 0, 0]
    assert set(dropped.tolist()) == {0.0, 2.0}  # an image's branch, or none of it
    half = hst.skip(4, torch.ones(4000, 1))
    assert (half == 0).float().mean().item() == pytest.approx(0.5 * 4 / 7, abs=0.03)


@torch.no_grad()
def test_a_side_block_that_drops_its_branches_gains_the_map_still():
    y, kv, v = torch.randn(2, 5, 8), torch.randn(2, 2, 8), torch.randn(2, 5, 8)
    assert torch.equal(SideBlock(8, 2)(y, kv, v, torch.zeros_like), y + v)


@pytest.mark.parametrize("n_tokens, count", [(1, 765_351), (4, 765_351 + 27_648)])
def test_parameter_counts_of_vit_b16(n_tokens, count, monkeypatch):
    assert n_parameters_of_vit_b16("HST", monkeypatch, hst_tokens=n_tokens) == count


def test_what_it_cannot_do_is_said(monkeypatch):
    hst = make("HST").train()
    with pytest.raises(InputError, match="trains on 2 images or more"):
        hst.predict(images(hst, 1))
    model, transform = copy.deepcopy(backbones.read_clip("emoji"))
    del model.visual.transformer.resblocks[6:]
    monkeypatch.setattr(backbones.clip, "read_clip", lambda name: (model, transform))
    with pytest.raises(InputError, match="clip_backbone has 6, which 4 does not"):
        make("HST")
