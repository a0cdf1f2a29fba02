"""What matches the domains' features, beside plain statements of its papers."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_zoo import batches, build, loss_of, take

from domainbed.lib import divergences


def test_mmd_and_coral_by_hand(float64):
    (minibatches,) = batches([4, 5, 3])
    mmd, coral = build("MMD"), build("CORAL", mmd_gamma=2.0)
    z = [mmd.featurizer(x).detach().numpy() for x, _ in minibatches]
    pairs = list(itertools.combinations(z, 2))

    def kernel(x, y):
        squares = ((x[:, None] - y) ** 2).sum(-1)
        return np.mean([sum(np.exp(-(10.0**k) * squares) for k in range(-3, 4))])

    expected = [kernel(a, a) + kernel(b, b) - 2 * kernel(a, b) for a, b in pairs]
    logged = mmd.update(minibatches)
    assert logged["penalty"] == pytest.approx(np.mean(expected), rel=1e-9)
    expected = [
        np.mean((a.mean(0) - b.mean(0)) ** 2)
        + np.mean((np.cov(a.T) - np.cov(b.T)) ** 2)
        for a, b in pairs
    ]
    loss = loss_of(coral, minibatches).item()
    logged = coral.update(minibatches)
    assert logged["penalty"] == pytest.approx(np.mean(expected), rel=1e-9)
    assert logged["loss"] == pytest.approx(loss)  # without the penalty


def test_a_sample_is_at_no_distance_from_itself(float64):
    x = torch.randn(5, 3)
    assert divergences.gaussian_mmd(x, x).item() == pytest.approx(0, abs=1e-12)
    assert divergences.mean_cov(x, x).item() == 0


@pytest.mark.parametrize(
    "kind, distance", [("MMD", "gaussian_mmd"), ("CORAL", "mean_cov")]
)
def test_causirl_matches_heads_with_tails(kind, distance):
    algorithm = build(f"CausIRL_{kind}")
    (minibatches,) = batches([4, 5, 6])
    z = [algorithm.featurizer(x).detach() for x, _ in minibatches]
    np.random.seed(0)
    cuts = [np.random.randint(0, n) for n in (4, 5, 6)]
    heads = torch.cat([part[:k] for part, k in zip(z, cuts, strict=True)])
    tails = torch.cat([part[k:] for part, k in zip(z, cuts, strict=True)])
    expected = getattr(divergences, distance)(heads, tails).item()
    (logged,) = take(algorithm, [minibatches])
    assert logged["penalty"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("flipped", [True, False])
@pytest.mark.parametrize("name", ["CAD", "CondCAD"])
def test_cad_item_by_item(name, flipped, float64):
    changed = {"is_flipped": flipped, "is_normalized": True, "temperature": 0.5}
    algorithm = build(name, n_domains=2, **changed)
    (minibatches,) = batches([4, 5])
    z = torch.cat([algorithm.featurizer(x) for x, _ in minibatches]).detach()
    z = F.normalize(z, dim=1).numpy()
    y = [int(label) for _, labels in minibatches for label in labels]
    d = [0] * 4 + [1] * 5
    losses = []
    for i in range(9):
        same = [j for j in range(9) if j != i and y[j] == y[i]]
        among = same if name == "CondCAD" else [j for j in range(9) if j != i]
        s = {j: float(z[i] @ z[j]) / 0.5 for j in range(9) if j != i} | {i: 0.0}
        chosen = [j for j in among if (d[j] != d[i]) == flipped]
        if name == "CAD" and not flipped:
            chosen.append(i)
        if same and chosen:
            share = sum(math.exp(s[j]) for j in chosen)
            share /= sum(math.exp(s[j]) for j in among)
            losses.append((-1 if flipped else 1) * 0.5 / 0.07 * math.log(share))
    logged = algorithm.update(minibatches)
    assert logged["bn_loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    total = logged["clf_loss"] + 0.1 * logged["bn_loss"]
    assert logged["total_loss"] == pytest.approx(total)


def test_cad_trains_its_projection():
    algorithm = build("CAD", is_project=True)
    before = algorithm.project[0].weight.clone()
    take(algorithm, batches([6, 6, 6]))
    assert not torch.equal(algorithm.project[0].weight, before)
