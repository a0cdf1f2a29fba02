"""Probes and caches: identities, and plain restatements in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from domainbed import hparams_registry
from domainbed.algorithms import get_algorithm_class
from domainbed.lib.errors import InputError

NAMES = ["dog", "sea_animal", "house", "tree"]
PROBES = ["TipAdapter", "TipAdapterF", "TaskRes", "LPPlusPlus", "CLAP", "GDA", "ProLIP"]
L, D, E = 8, 128, 128


def make(name, n_domains=1, **hparams):
    """The probe in float64, given layer features."""
    torch.manual_seed(0)
    hparams = hparams_registry.default_hparams(name, "EmojiDG") | hparams
    facts = {"class_names": NAMES}
    probe = get_algorithm_class(name)((3, 48, 48), 4, n_domains, hparams | facts)
    probe.given = "all"
    probe.double()
    if name in PROBES:  # these were made of what is in float32
        tau = probe.text_features[:, -1] @ probe.backbone.text_projection
        probe.tau, probe.t = tau[None], unit(tau)
    if name == "CLAP":
        probe.prototypes.data.copy_(tau)
    return probe


def test_what_is_made_of_texts_is_made_once():
    """Not at every step, and anew for other classes."""
    probe, (z, _) = make("ProLIP"), batch()
    before = probe.logits(z)
    del probe.text_features
    assert torch.equal(probe.logits(z), before)
    probe.float().ask(["cat", *NAMES[1:]])
    after, before = probe.logits(z.float()), before.float()
    assert not torch.equal(after[:, 0], before[:, 0])
    torch.testing.assert_close(after[:, 1:], before[:, 1:])


def batch(counts=(3, 1, 4, 2), seed=1):
    """z and labels, so many of each class."""
    generator = torch.Generator().manual_seed(seed)
    n = sum(counts)
    z = torch.randn(n, L, D, generator=generator, dtype=torch.double)
    return z, torch.tensor([y for y, count in enumerate(counts) for _ in range(count)])


def unit(v):
    return v / v.norm(dim=-1, keepdim=True)


def parts_of(probe, z):
    """f, tau and t by CLIP's own tensors."""
    tower = probe.backbone
    tau = probe.text_features[:, -1] @ tower.text_projection
    return unit(z[:, -1] @ tower.image_projection), tau, unit(tau)


def zero_shot(z):
    probe = make("ZeroShotCLIP")
    return probe.logits(z)


@pytest.mark.parametrize("name, changed", [
    ("TaskRes", {}), ("CLAP", {}), ("ProLIP", {}),
    ("TipAdapter", {"tip_alpha": 0.0}), ("TipAdapterF", {"tip_alpha": 0.0}),
    ("GDA", {"gda_alpha": 0.0}),
])  # fmt: skip
@torch.no_grad()
def test_where_it_starts_is_zero_shot_clip(name, changed):
    probe, (z, y) = make(name, **changed), batch()
    if probe.NEEDS_SUPPORT:
        probe.support([[(z, y)]])
    torch.testing.assert_close(probe.eval().logits(z), zero_shot(z))


@torch.no_grad()
def test_without_its_own_weights_lpplusplus_ranks_as_zero_shot():
    probe, (z, y) = make("LPPlusPlus"), batch()
    probe.support([[(z, y)]])
    assert (probe.alpha != 0).all() and len(probe.alpha.unique()) == 1
    probe.alpha.abs_()
    probe.head.weight.zero_()
    probe.head.bias.zero_()
    assert torch.equal(probe.logits(z).argsort(), zero_shot(z).argsort())


COUNTS = {
    "TipAdapter": [], "TipAdapterF": [(64, E)], "TaskRes": [(4, E)], "CLAP": [(4, E)],
    "LPPlusPlus": [(4,), (4, E), (4,)], "GDA": [], "ProLIP": [(D, E)],
}  # fmt: skip


@pytest.mark.parametrize("name", PROBES)
def test_what_trains(name):
    trained = [tuple(p.shape) for p in make(name).parameters() if p.requires_grad]
    assert trained == COUNTS[name]


@pytest.mark.parametrize("name", PROBES)
def test_only_prolip_can_be_asked_for_other_classes(name):
    probe = make(name)
    if name == "ProLIP":
        probe.float().ask(["moon", "car"])
        assert probe.logits(batch()[0].float()).shape == (10, 2)
    else:
        with pytest.raises(InputError, match=f"{name} has weights for each"):
            probe.ask(["moon", "car", "sun", "cat"])


# Tip-Adapter


@torch.no_grad()
def test_the_cache_by_a_loop_over_its_keys():
    probe, (z, y) = make("TipAdapter", tip_alpha=0.7, tip_beta=2.5), batch()
    probe.support([[(z[:4], y[:4]), (z[4:], y[4:])]])
    x, _ = batch(seed=2)
    f, _, t = parts_of(probe, x)
    keys, _, _ = parts_of(probe, z)
    expected = probe.backbone.scale * f @ t.T
    for b in range(len(f)):
        for key, label in zip(keys, y, strict=True):
            expected[b, label] += 0.7 * math.exp(-2.5 * (1 - f[b] @ key))
    torch.testing.assert_close(probe.eval().logits(x), expected)
    order = torch.randperm(len(y))
    other = make("TipAdapter", tip_alpha=0.7, tip_beta=2.5)
    other.support([[(z[order], y[order])]])
    torch.testing.assert_close(other.eval().logits(x), expected)


@torch.no_grad()
def test_a_sharp_cache_answers_with_an_equal_keys_class():
    probe, (z, y) = make("TipAdapter", tip_alpha=1e6, tip_beta=300.0), batch()
    probe.support([[(z, y)]])
    assert torch.equal(probe.eval().logits(z).argmax(1), y)


def test_tip_adapter_f_is_tip_adapter_whose_keys_train():
    fixed, trained, (z, y) = make("TipAdapter"), make("TipAdapterF"), batch()
    for probe in (fixed, trained):
        probe.support([[(z, y)]])
    assert torch.equal(fixed.logits(z), trained.logits(z))
    keys = trained.keys.detach().clone().requires_grad_()
    reference = torch.optim.AdamW([keys], lr=1e-3, eps=1e-4, weight_decay=0.01)
    f, _, t = parts_of(trained, z)
    values = F.one_hot(y, 4).double()
    for _ in range(50):
        similar = torch.exp(-(1 - f @ keys[: len(y)].T))
        logits = trained.backbone.scale * f @ t.T + 1.17 * similar @ values
        loss = F.cross_entropy(logits, y)
        reference.zero_grad()
        loss.backward()
        reference.step()
        assert trained.update([(z, y)])["loss"] == pytest.approx(loss.item(), abs=1e-8)
    torch.testing.assert_close(trained.keys, keys, atol=1e-8, rtol=0)
    assert not trained.keys[len(y) :].any()  # places without a key stay empty


@pytest.mark.parametrize("name", ["TipAdapter", "GDA"])
@torch.no_grad()
def test_held_out_examples_choose_what_is_right_most_often(name):
    probe, (z, y), (x, labels) = make(name), batch(), batch(seed=3)
    probe.support([[(z, y)]])
    before = (probe.eval().logits(x).argmax(1) == labels).sum()
    probe.choose([(x[:5], labels[:5]), (x[5:], labels[5:])])
    after = (probe.logits(x).argmax(1) == labels).sum()
    assert after >= before
    state = probe.state_dict()
    probe.choose([])  # nothing to choose by
    assert all(torch.equal(v, state[k]) for k, v in probe.named_buffers() if k in state)
    other = make(name)
    other.load_state_dict(state)
    assert torch.equal(other.eval().logits(x), probe.logits(x))


# TaskRes, CLAP, LP++, ProLIP: 50 steps beside a restatement


def steps_beside(probe, tensors, optimizer, logits, price=lambda: 0.0, n=50):
    """Both take n steps on one batch; losses and tensors must agree."""
    z, y = batch()
    for _ in range(n):
        loss = F.cross_entropy(logits(z), y) + price()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        own = probe.update([(z, y)])["loss"]
        assert own == pytest.approx(loss.item(), rel=1e-8, abs=1e-8)
    for name, tensor in tensors.items():
        own = dict(probe.named_parameters())[name]
        torch.testing.assert_close(own, tensor, atol=1e-8, rtol=1e-8)


def test_taskres_beside_its_formula():
    probe = make("TaskRes", lr=2e-3, weight_decay=5e-4)
    _, tau, _ = parts_of(probe, batch()[0])
    x = torch.zeros_like(tau, requires_grad=True)

    def logits(z):
        w = tau + 0.5 * x
        return probe.backbone.scale * parts_of(probe, z)[0] @ unit(w).T

    optimizer = torch.optim.Adam([x], lr=2e-3, weight_decay=5e-4)
    steps_beside(probe, {"residual": x}, optimizer, logits)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_clap_beside_its_formula(weight):
    probe = make("CLAP", clap_weight=weight)
    z, y = batch()
    probe.support([[(z, y)]])
    f, tau, t = parts_of(probe, z)
    scale = probe.backbone.scale
    p = (scale * f @ t.T).softmax(1)
    a = torch.stack([p[y == c, c].mean() for c in range(4)])
    w = tau.clone().requires_grad_()
    start = F.cross_entropy(scale * f @ t.T, y)
    torch.testing.assert_close(probe.loss([(z, y)]), start)
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=0.9)
    steps_beside(
        probe,
        {"prototypes": w},
        optimizer,
        lambda z: scale * parts_of(probe, z)[0] @ unit(w).T,
        lambda: weight * sum(a[c] * ((w - tau)[c] ** 2).sum() for c in range(4)) / 4,
    )


@pytest.mark.parametrize("as_published", [False, True])
def test_lpplusplus_beside_its_formula(as_published):
    probe = make("LPPlusPlus", as_published=as_published, support_shots=4)
    z, y = batch()
    probe.support([[(z, y)]])
    f, _, t = parts_of(probe, z)
    sums = [4 * f[y == c].mean(0) for c in range(4)]
    w = torch.stack(sums).requires_grad_()
    b = probe.head.bias.detach().clone().requires_grad_()
    mean_of_means = sum((f[y == c] @ t[c]).mean() for c in range(4)) / 4
    alpha = torch.full((4,), 250 * mean_of_means.item(), dtype=torch.double)
    alpha.requires_grad_()
    rate = 4 * len(y) / torch.linalg.svdvals(f)[0] ** 2
    alpha_rate = len(y) / (4 * ((f @ t.T) ** 2).sum(0).max())
    optimizer = torch.optim.SGD([w, b], lr=rate.item(), momentum=0.9)
    gradients = torch.zeros(4, dtype=torch.double)
    for step in range(50):
        loss = F.cross_entropy(f @ w.T + b + alpha * (f @ t.T), y)
        optimizer.zero_grad()
        alpha.grad = None
        loss.backward()
        optimizer.step()
        gradients = alpha.grad + (gradients if as_published else 0)
        if step % 10 == 9:
            alpha.data -= alpha_rate * gradients
        probe.step = step
        assert probe.update([(z, y)])["loss"] == pytest.approx(loss.item(), rel=1e-6)
    torch.testing.assert_close(probe.alpha, alpha, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(probe.head.weight, w, rtol=1e-6, atol=1e-6)


def test_lpplusplus_answers_as_after_the_last_best_step():
    probe, (z, y), (held, labels) = make("LPPlusPlus"), batch(), batch(seed=3)
    labels = labels.roll(1)  # hard, so that steps differ
    probe.support([[(z, y)]])
    probe.watch(iter([(held[:4], labels[:4]), (held[4:], labels[4:])]))
    x, _ = batch(seed=4)
    right, answers = [], []
    for step in range(40):
        probe.step = step
        probe.update([(z, y)])
        with torch.no_grad():
            f, own = (probe.own_logits(probe.embed(v)) for v in (held, x))
        right.append((f.argmax(1) == labels).sum().item())
        answers.append(own)
    best = max(i for i in range(40) if right[i] == max(right))
    assert 0 < best < 39
    with torch.no_grad():
        torch.testing.assert_close(probe.eval().predict(x), answers[best])
        torch.testing.assert_close(probe.train().predict(x), answers[-1])


@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_prolip_beside_its_formula(weight):
    probe = make("ProLIP", prolip_lambda=weight, lr=1e-3)
    start, (_, _, t) = probe.backbone.image_projection, parts_of(probe, batch()[0])
    p = start.clone().requires_grad_()
    steps_beside(
        probe,
        {"image_projection": p},
        torch.optim.Adam([p], lr=1e-3),
        lambda z: probe.backbone.scale * unit(z[:, -1] @ p) @ t.T,
        lambda: weight * ((p - start) ** 2).sum(),
    )


def test_a_high_price_holds_prolips_projection():
    free, held = make("ProLIP", lr=1e-3), make("ProLIP", lr=1e-3, prolip_lambda=1e4)
    for probe in (free, held):
        for _ in range(20):
            probe.update([batch()])
    moved = [
        (probe.image_projection - probe.backbone.image_projection).norm()
        for probe in (free, held)
    ]
    assert moved[1] < moved[0] / 3


# GDA


@torch.no_grad()
def test_gda_by_its_formula():
    probe, (z, y) = make("GDA", gda_shrink=0.5), batch()
    probe.support([[(z, y)]])
    f, _, _ = parts_of(probe, z)
    means = torch.stack([f[y == c].mean(0) for c in range(4)])
    centred = f - means[y]
    s = torch.cov(centred.T)
    scatter = (len(f) - 1) * s + 0.5 * s.trace() * torch.eye(E).double()
    a = E * torch.linalg.inv(scatter)
    assert (torch.linalg.eigvalsh(a) > 0).all()
    torch.testing.assert_close(a, a.T)
    x, _ = batch(seed=2)
    g = probe.discriminants(parts_of(probe, x)[0])
    for b, row in enumerate(parts_of(probe, x)[0]):
        for c in range(4):
            expected = row @ a @ means[c] - means[c] @ a @ means[c] / 2 - math.log(4)
            torch.testing.assert_close(g[b, c], expected)
    assert torch.equal(probe.discriminants(f).argmax(1), y)


@torch.no_grad()
def test_a_class_without_examples_changes_no_other():
    probe, (z, y) = make("GDA"), batch((3, 0, 4, 2))
    probe.support([[(z, y)]])
    g = probe.discriminants(parts_of(probe, z)[0])
    torch.testing.assert_close(g[:, 1], torch.full((9,), -math.log(4)).double())
    assert g.isfinite().all()


@pytest.mark.parametrize("name", [n for n in PROBES if n not in ("TaskRes", "ProLIP")])
def test_the_first_batch_is_the_support_where_nobody_shows_one(name):
    shown, alone, (z, y) = make(name), make(name), batch()
    shown.support([[(z, y)]])
    shown.update([(z, y)])
    alone.update([(z, y)])
    assert torch.equal(shown.eval().logits(z), alone.eval().logits(z))
    alone.update([batch(seed=5)])
    assert alone.supported
