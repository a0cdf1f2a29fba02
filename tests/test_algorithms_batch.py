"""BatchFormerCLIP: names, equations, what the batch does in training and only there."""

import pytest
import torch
import torch.nn.functional as F
from towers import (
    TOWERS,
    images,
    make,
    n_parameters_of_vit_b16,
    set_all,
    shapes,
    sizes,
    trained,
    zero_shot,
)

from domainbed.lib.errors import InputError

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
NAME = "BatchFormerCLIP"


def linear(name, n_in, n_out):
    return {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}


@pytest.mark.parametrize("tower", TOWERS)
def test_names_and_shapes(tower, monkeypatch):
    algorithm = make(NAME, monkeypatch, tower)
    width, _, n, _, _ = sizes(algorithm)
    expected = {"projection": (width, n)} | linear("classifier", n, 3)
    expected |= {"mixer.self_attn.in_proj_weight": (3 * n, n)}
    expected |= {"mixer.self_attn.in_proj_bias": (3 * n,)}
    expected |= linear("mixer.self_attn.out_proj", n, n)
    for part in ("linear1", "linear2"):
        expected |= linear(f"mixer.{part}", n, n)
    for part in ("norm1", "norm2"):
        expected |= {f"mixer.{part}.weight": (n,), f"mixer.{part}.bias": (n,)}
    assert shapes(algorithm) == expected


def unit(v):
    return v / v.norm(dim=-1, keepdim=True)


def apply(module, v):
    return v @ module.weight.T + module.bias


def mixed(mixer, f, heads):
    """The encoder layer on one sequence of B vectors f (B, E), without dropout."""
    n, attn = f.shape[1], mixer.self_attn
    weights, biases = attn.in_proj_weight.split(n), attn.in_proj_bias.split(n)
    q, k, v = (f @ w.T + b for w, b in zip(weights, biases, strict=True))
    pooled = torch.empty_like(f)
    for h in range(heads):
        of = slice(h * n // heads, (h + 1) * n // heads)
        scores = q[:, of] @ k[:, of].T / (n // heads) ** 0.5
        pooled[:, of] = scores.softmax(-1) @ v[:, of]
    f = mixer.norm1(f + apply(attn.out_proj, pooled))
    return mixer.norm2(f + apply(mixer.linear2, F.relu(apply(mixer.linear1, f))))


@pytest.mark.parametrize("tower", TOWERS)
@torch.no_grad()
def test_logits_and_loss_are_the_equations(tower, monkeypatch):
    algorithm = set_all(make(NAME, monkeypatch, tower, bf_dropout=0.0, bf_heads=8))
    x, y = images(algorithm, 5), torch.tensor([0, 2, 1, 1, 0])
    visual = algorithm.backbone.model.visual
    token = algorithm.backbone.image_states(x)[-1][:, 0]
    f = unit(visual.ln_post(token) @ algorithm.projection)
    expected = apply(algorithm.classifier, f)
    torch.testing.assert_close(algorithm.predict(x), expected, **CLOSE)
    again = apply(algorithm.classifier, unit(mixed(algorithm.mixer, f, 8)))
    losses = [F.cross_entropy(logits, y) for logits in (expected, again)]
    loss = algorithm.train().loss([(x[:2], y[:2]), (x[2:], y[2:])])
    torch.testing.assert_close(loss, sum(losses) / 2, **CLOSE)


@pytest.mark.parametrize("tower", TOWERS)
@torch.no_grad()
def test_it_starts_at_zero_shot(tower, monkeypatch):
    algorithm = make(NAME, monkeypatch, tower)
    x = images(algorithm)
    torch.testing.assert_close(algorithm.predict(x), zero_shot(algorithm, x), **CLOSE)


@torch.no_grad()
def test_the_mixer_is_for_training_only():
    algorithm = set_all(make(NAME))
    x = images(algorithm)
    before = algorithm.predict(x)
    alone = torch.cat([algorithm.predict(row[None]) for row in x])
    torch.testing.assert_close(before, alone, **CLOSE)
    del algorithm.mixer
    assert torch.equal(algorithm.predict(x), before)


@torch.no_grad()
def test_a_batch_has_no_order():
    algorithm = set_all(make(NAME, bf_dropout=0.0))
    f = unit(torch.randn(6, 128))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(
        algorithm.mixer(f)[order], algorithm.mixer(f[order]), **CLOSE
    )
    others = torch.cat([f[:3], unit(torch.randn(3, 128))])
    assert not torch.allclose(algorithm.mixer(f)[:3], algorithm.mixer(others)[:3])


def test_every_embedding_learns_from_both_halves():
    algorithm = make(NAME, bf_dropout=0.0).train()
    x, y = images(algorithm), torch.tensor([0, 1, 2])
    z = algorithm.features(x).requires_grad_()
    algorithm.given = algorithm.stored_kind.name

    def gradient(loss):
        return torch.autograd.grad(loss, z)[0][:, -1]

    plain = F.cross_entropy(algorithm.logits(z), y)
    both = gradient(algorithm.loss([(z, y)]))
    rest = 2 * both - gradient(plain)
    assert (rest.abs().amax(1) > 0).all()
    algorithm.loss([(z.detach(), y)]).backward()
    assert all(p.grad is not None for p in trained(algorithm).values())
    assert all(p.grad is None for p in algorithm.backbone.parameters())


def test_the_mixer_has_a_rate_of_its_own():
    own, mixer = make(NAME, lr=1e-3, bf_lr_scale=0.1).optimizer.param_groups
    assert (own["lr"], mixer["lr"]) == pytest.approx((1e-3, 1e-4))
    assert len(own["params"]) == 3


def test_parameter_count_of_vit_b16(monkeypatch):
    assert n_parameters_of_vit_b16(NAME, monkeypatch) == 1_974_791


def test_wrong_values_are_named():
    with pytest.raises(InputError, match=r"bf_heads is 5; it must divide 128.* is 4\."):
        make(NAME, bf_heads=5)
    with pytest.raises(InputError, match=r"bf_dropout' is 1\.1; .* from 0 to 1"):
        make(NAME, bf_dropout=1.1)
