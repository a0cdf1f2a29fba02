"""What weighs or penalises risks, beside plain statements of its papers."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_zoo import batches, build, take

from domainbed import algorithms_risk
from domainbed.lib.errors import InputError


def test_groupdro_weighs_by_past_risks():
    algorithm = build("GroupDRO", n_domains=2, groupdro_eta=0.5)
    q = np.ones(2)
    for minibatches in batches([3, 5], n=3):
        R = [F.cross_entropy(algorithm.predict(x), y).item() for x, y in minibatches]
        q = q * np.exp(0.5 * np.array(R))
        q = q / q.sum()
        assert algorithm.update(minibatches)["loss"] == pytest.approx(q @ R, rel=1e-5)


def test_irm_is_the_product_of_two_slopes():
    algorithm = build("IRM", irm_penalty_anneal_iters=1)
    first, second = batches([4, 5, 7], n=2)
    for minibatches, weight in ((first, 1.0), (second, 100.0)):
        slopes, R = [], []
        for x, y in minibatches:
            scale = torch.tensor(1.0, requires_grad=True)
            p = algorithm.predict(x).detach()
            halves = [F.cross_entropy(scale * p[i::2], y[i::2]) for i in (0, 1)]
            a, b = (torch.autograd.grad(half, scale)[0].item() for half in halves)
            slopes.append(a * b)
            R.append(F.cross_entropy(p, y).item())
        logged = algorithm.update(minibatches)
        assert logged["penalty"] == pytest.approx(np.mean(slopes), rel=1e-4)
        expected = np.mean(R) + weight * np.mean(slopes)
        assert logged["loss"] == pytest.approx(expected, rel=1e-4)


def test_where_a_penalty_anneals_adam_starts_anew():
    algorithm = build("VREx", vrex_penalty_anneal_iters=2)
    count = []
    for minibatches in batches([4, 4], n=4):
        R = [F.cross_entropy(algorithm.predict(x), y).item() for x, y in minibatches]
        T = int(algorithm.update_count)
        logged = algorithm.update(minibatches)
        expected = np.mean(R) + (10.0 if T >= 2 else 1.0) * np.var(R)
        assert logged["loss"] == pytest.approx(expected, rel=1e-5)
        (state, *_) = algorithm.optimizer.state.values()
        count.append(int(state["step"]))
    assert count == [1, 2, 1, 2]


def test_ib_is_the_mean_variance_of_features():
    algorithm = build("IB_IRM", ib_penalty_anneal_iters=1, irm_penalty_anneal_iters=2)
    for T, minibatches in enumerate(batches([4, 5, 7], n=3)):
        z = [algorithm.featurizer(x).detach().numpy() for x, _ in minibatches]
        logged = algorithm.update(minibatches)
        variance = np.mean([np.var(part, axis=0, ddof=1).mean() for part in z])
        assert logged["IB_penalty"] == pytest.approx(variance, rel=1e-4)
        irm = (100.0 if T >= 2 else 1.0) * logged["IRM_penalty"]
        expected = logged["nll"] + irm + (100.0 if T >= 1 else 0.0) * variance
        assert logged["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("alpha", [0.5, 0.75, 0.9])
def test_eqrm_is_a_quantile_of_a_smoothed_distribution(alpha, float64):
    R = torch.tensor([0.3, 0.9, 1.4], requires_grad=True)
    quantile = algorithms_risk.kernel_quantile(R, torch.tensor(alpha))
    h = 1.06 * R.std().item() * 3**-0.2
    z = (quantile.item() - R.detach().numpy()) / h
    below = [0.5 * (1 + math.erf(k / math.sqrt(2))) for k in z]
    assert np.mean(below) == pytest.approx(alpha, abs=1e-8)
    if alpha == 0.75:  # through the ends only: measured on upstream's own
        quantile.backward()
        assert R.grad.tolist() == pytest.approx([0.054, 0.017, 0.929], abs=5e-4)


def test_eqrm_of_equal_risks_is_that_risk():
    algorithm = build("EQRM", n_domains=2, eqrm_burnin_iters=0.0)
    ((batch, _),) = batches([4, 4])
    risk = F.cross_entropy(algorithm.predict(batch[0]), batch[1]).item()
    assert algorithm.update([batch, batch])["loss"] == pytest.approx(risk)


@pytest.mark.parametrize("as_released, rate", [(True, 1e-3), (False, 1e-6)])
def test_eqrm_with_a_drawn_burn_in(as_released, rate):
    """As released it keeps its first rate: no step's number equals a fraction."""
    changed = {"eqrm_burnin_iters": 1.5, "as_released": as_released}
    algorithm = build("EQRM", **changed)
    take(algorithm, batches([4, 4, 4], n=3))
    assert algorithm.optimizer.param_groups[0]["lr"] == rate


def test_rdm_matches_the_worst_domains_losses():
    algorithm = build("RDM", rdm_penalty_anneal_iters=1)
    for T, minibatches in enumerate(batches([4, 4, 4], n=2)):
        with torch.no_grad():
            losses = np.array(
                [
                    F.cross_entropy(algorithm.predict(x), y, reduction="none").tolist()
                    for x, y in minibatches
                ]
            )
        logged = algorithm.update(minibatches)
        worst, every = losses[losses.mean(1).argmax()], losses.flatten()

        def kernel(a, b):
            squares = (a[:, None] - b) ** 2
            return sum(np.exp(-(10.0**k) * squares).mean() for k in range(-4, 4))

        mmd = kernel(worst, worst) + kernel(every, every) - 2 * kernel(worst, every)
        variance = worst.var(ddof=1) + every.var(ddof=1)
        assert logged["matching_penalty"] == pytest.approx(mmd, abs=1e-4)
        assert logged["variance_penalty"] == pytest.approx(variance, rel=1e-4)
        penalty = 5.0 * mmd + 0.004 * variance if T else 0.0
        total = losses.mean() + penalty
        assert logged["total_loss"] == pytest.approx(total, rel=1e-4, abs=1e-3)
        assert (logged["update_count"], logged["rdm_lambda"]) == (T + 1, 5.0)
    assert algorithm.optimizer.param_groups[0]["lr"] == 1.5e-5


def test_sd_penalises_squared_logits():
    algorithm = build("SD", n_domains=2, sd_reg=0.5)
    (minibatches,) = batches([3, 5])
    x = torch.cat([x for x, _ in minibatches])
    squares = (algorithm.predict(x) ** 2).mean().item()
    assert take(algorithm, [minibatches])[0]["penalty"] == pytest.approx(squares)


def test_rdm_takes_batches_of_one_size():
    with pytest.raises(InputError, match="batches of one size"):
        build("RDM").update(*batches([2, 4, 4]))
