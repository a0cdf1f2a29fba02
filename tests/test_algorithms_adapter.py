"""ARC, ARC_att, MAM: names, equations, where they start, what they cost."""

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
    text_head,
    trained,
    zero_shot,
)

from domainbed.lib.errors import InputError

ADAPTERS = ("ARC", "ARC_att", "MAM")


@pytest.mark.parametrize("tower", TOWERS)
def test_names_and_shapes_are_the_papers(tower, monkeypatch):
    arc = make("ARC", monkeypatch, tower, arc_dim=6)
    width, _, _, n_layers, _ = sizes(arc)
    expected = {
        f"{part}_{at}": shape
        for at in ("attn", "mlp")
        for part, shape in {
            "basis": (width, 6),
            "scale": (n_layers, 6),
            "bias": (n_layers, width),
        }.items()
    }
    assert shapes(arc) == expected
    only = {name: s for name, s in expected.items() if name.endswith("_attn")}
    assert shapes(make("ARC_att", monkeypatch, tower, arc_dim=6)) == only
    prefix = (n_layers, 3, width)
    expected = {"prefix_key": prefix, "prefix_value": prefix}
    for i in range(n_layers):
        expected |= {f"down.{i}.weight": (5, width), f"down.{i}.bias": (5,)}
        expected |= {f"up.{i}.weight": (width, 5), f"up.{i}.bias": (width,)}
    mam = make("MAM", monkeypatch, tower, mam_l=3, mam_r=5)
    assert shapes(mam) == expected
    linear = make("MAM", monkeypatch, tower, mam_l=3, mam_r=5, head="linear")
    head = {"classifier.weight": (3, width), "classifier.bias": (3,)}
    assert shapes(linear) == expected | head


def arc_written_out(arc, x):
    """The last class token, restated."""

    def adapt(v, at, i):
        if f"basis_{at}" not in shapes(arc):
            return v
        u, s, b = (getattr(arc, f"{part}_{at}") for part in ("basis", "scale", "bias"))
        return v @ (torch.eye(len(u)) + u @ torch.diag(s[i]) @ u.T) + b[i]

    for i, block in enumerate(arc.backbone.model.visual.transformer.resblocks):
        n = adapt(block.ln_1(x), "attn", i)
        a = x + attention(block, n, n)
        x = a + block.mlp(adapt(block.ln_2(a), "mlp", i))
    return x[:, 0]


def mam_written_out(mam, x):
    for i, block in enumerate(mam.backbone.model.visual.transformer.resblocks):
        n = block.ln_1(x)
        a = x + attention(block, n, n, mam.prefix_key[i], mam.prefix_value[i])
        adapter = F.relu(a @ mam.down[i].weight.T + mam.down[i].bias)
        adapter = adapter @ mam.up[i].weight.T + mam.up[i].bias
        x = a + block.mlp(block.ln_2(a)) + mam.hparams["mam_s"] * adapter
    return x[:, 0]


WRITTEN_OUT = {
    "ARC": arc_written_out,
    "ARC_att": arc_written_out,
    "MAM": mam_written_out,
}


@pytest.mark.parametrize("head", ["text", "linear"])
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("name", ADAPTERS)
@torch.no_grad()
def test_logits_are_the_equations(name, tower, head, monkeypatch):
    algorithm = set_all(make(name, monkeypatch, tower, head=head))
    x = images(algorithm)
    visual = algorithm.backbone.model.visual
    token = WRITTEN_OUT[name](algorithm, algorithm.backbone.embed_image(x))
    normed = visual.ln_post(token)
    expected = (
        text_head(algorithm, normed @ visual.proj)
        if head == "text"
        else normed @ algorithm.classifier.weight.T + algorithm.classifier.bias
    )
    logits = algorithm.predict(x)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert (logits - zero_shot(algorithm, x)).abs().max() > 0.01


@pytest.mark.parametrize("tower", TOWERS)
@torch.no_grad()
def test_where_they_start(tower, monkeypatch):
    arc_att = make("ARC_att", monkeypatch, tower)
    x = images(arc_att)
    expected = zero_shot(arc_att, x)
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(arc_att.predict(x), expected, **close)
    arc = make("ARC", monkeypatch, tower)
    assert (arc.predict(x) - expected).abs().max() > 0.01
    bound = math.sqrt(6 / 51)
    assert 0.8 * bound < arc.scale_mlp.abs().max() <= bound
    arc.scale_mlp.zero_()
    torch.testing.assert_close(arc.predict(x), expected, **close)
    no_prefix = make("MAM", monkeypatch, tower, mam_l=0)
    torch.testing.assert_close(no_prefix.predict(x), expected, **close)
    mam = make("MAM", monkeypatch, tower)
    assert (mam.predict(x) - expected).abs().max() > 1e-3
    for name in ADAPTERS:
        linear = make(name, monkeypatch, tower, head="linear")
        assert torch.equal(linear.predict(x), torch.zeros(3, 3))


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("name", ["ARC", "ARC_att"])
@torch.no_grad()
def test_arc_merges_into_the_tower(name, tower, monkeypatch):
    arc = set_all(make(name, monkeypatch, tower))
    x = images(arc)
    before = arc.predict(x)
    token = arc.features(x)
    merged = arc.merged()
    e = arc.backbone.image_embedding(token)
    torch.testing.assert_close(merged(x), e, rtol=1e-5, atol=1e-5)
    assert torch.equal(arc.predict(x), before)  # it is a copy that was merged


def test_an_empty_prefix_takes_its_share_of_the_attention():
    """With keys and values 0 every head's answer is scaled by 1 - l / (l + sum exp)."""
    mam = make("MAM", mam_l=4)
    block = mam.blocks[0]
    mam.prefix_key.data.zero_()
    mam.prefix_value.data.zero_()
    x = mam.backbone.embed_image(images(mam, 1))
    n = block.ln_1(x)
    w_q, w_k, w_v = block.attn.in_proj_weight.chunk(3)
    b_q, b_k, b_v = block.attn.in_proj_bias.chunk(3)
    q, k, v = n[0] @ w_q.T + b_q, n[0] @ w_k.T + b_k, n[0] @ w_v.T + b_v
    pooled = []
    for h in range(2):
        of = slice(64 * h, 64 * (h + 1))
        weight = (q[:, of] @ k[:, of].T / 8).exp()
        total = weight.sum(1, keepdim=True)
        pooled.append(weight @ v[:, of] / total * (1 - 4 / (4 + total)))
    a = x + block.attn.out_proj(torch.cat(pooled, 1))
    expected = a + block.mlp(block.ln_2(a))
    torch.testing.assert_close(mam.adapted(0, block, x), expected, rtol=1e-4, atol=1e-5)


def test_the_first_step_of_mam_moves_what_leads_up():
    mam = make("MAM")
    x = images(mam)
    mam.loss([(x, torch.tensor([0, 1, 2]))]).backward()
    for down, up in zip(mam.down, mam.up, strict=True):
        assert up.weight.grad.any()
        assert not down.weight.grad.any()


@pytest.mark.parametrize("name", ADAPTERS)
def test_dropout_is_for_training_only_and_can_be_0(name):
    rate = f"{name[:3].lower()}_dropout"
    x = images(make(name))
    with torch.no_grad():
        dropped = set_all(make(name, **{rate: 0.5})).train()
        assert not torch.equal(dropped.predict(x), dropped.predict(x))
        kept = set_all(make(name, **{rate: 0.0})).train()
        assert torch.equal(kept.predict(x), dropped.eval().predict(x))


def test_the_rate_is_a_function_of_the_step():
    arc = make("ARC_att", schedule="cosine", warmup_steps=2, lr=0.01)
    batch = [(images(arc), torch.tensor([0, 1, 2]))]
    arc.n_steps, rates = 10, []
    for arc.step in (0, 1, 6, 2):
        arc.update(batch)
        rates.append(arc.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.005, 0.01, 0.005, 0.01])
    tenth = make("ARC_att", schedule="cosine", warmup_steps=None, lr=0.01)
    tenth.n_steps = 20
    tenth.update(batch)
    assert tenth.optimizer.param_groups[0]["lr"] == pytest.approx(0.005)
    plain = make("ARC_att", lr=0.01)
    plain.optimizer.param_groups[0]["lr"] = 0.5  # as a task that has its own rates
    plain.update(batch)
    assert plain.optimizer.param_groups[0]["lr"] == 0.5


def test_arc_steps_no_further_than_gradients_of_length_1():
    arc = make("ARC")
    own = trained(arc).values()
    for parameter in own:
        parameter.grad = torch.full_like(parameter, 3.0)
    arc.optimizer.step()
    norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in own]))
    assert norm.item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    "name, hparams, count",
    [
        ("ARC", {}, 96_432),
        ("ARC_att", {}, 48_216),
        ("ARC_att", {"head": "linear"}, 48_216 + 5_383),
        ("MAM", {}, 1_484_544),
    ],
)
def test_parameter_counts_of_vit_b16(name, hparams, count, monkeypatch):
    assert n_parameters_of_vit_b16(name, monkeypatch, **hparams) == count


@pytest.mark.parametrize(
    "name, hparams, says",
    [
        ("MAM", {"head": "txt"}, "head: 'txt'.*Did you mean 'text'"),
        ("MAM", {"schedule": "cos"}, "schedule: 'cos'.*known: constant, linear, cos"),
    ],
)
def test_wrong_values_are_named(name, hparams, says):
    with pytest.raises(InputError, match=says):
        make(name, **hparams)
