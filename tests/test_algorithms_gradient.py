"""What works on the domains' gradients, beside plain statements of its papers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_zoo import assert_equal, batches, build, loss_of, take, weights

from domainbed import algorithms

pytestmark = pytest.mark.filterwarnings("ignore:SANDMask trains nothing")


def domain_gradients(algorithm, minibatches):
    """Of every parameter, each domain's: numpy (M, *shape)."""
    parameters = [*algorithm.network.parameters()]
    gradients = [
        torch.autograd.grad(F.cross_entropy(algorithm.network(x), y), parameters)
        for x, y in minibatches
    ]
    return [
        np.stack([g.numpy() for g in each]) for each in zip(*gradients, strict=True)
    ]


@pytest.mark.parametrize("n_domains", [1, 3])
@pytest.mark.parametrize(
    "name, hparams", [("ANDMask", {"tau": 0.9}), ("SANDMask", {"tau": 0.3, "k": 1e-6})]
)
def test_masks_by_hand(name, hparams, n_domains, float64):
    algorithm = build(name, n_domains=n_domains, **hparams)
    (minibatches,) = batches([4, 5, 3][:n_domains])
    gradients = domain_gradients(algorithm, minibatches)
    algorithm.update(minibatches)
    for p, g in zip(algorithm.network.parameters(), gradients, strict=True):
        agreement = np.abs(np.sign(g).mean(0))
        mask = (agreement >= 0.9).astype(float)
        if name == "SANDMask":
            variance = g.var(0, ddof=1) if n_domains > 1 else 1e-17
            with np.errstate(divide="ignore", invalid="ignore"):
                mask = np.maximum(0, np.tanh(1e-6 / variance * (agreement - 0.3)))
        expected = mask * g.mean(0) / (1e-10 + mask.mean())
        np.testing.assert_allclose(p.grad.numpy(), expected, rtol=1e-6, atol=1e-12)


def test_sandmask_says_that_it_trains_nothing():
    with pytest.warns(UserWarning, match="trains nothing at tau 1"):
        algorithm = build("SANDMask")
    before = weights(algorithm)
    take(algorithm, batches([4, 4, 4]))
    assert_equal(weights(algorithm), before)


def test_iga_is_the_spread_of_gradients(float64):
    algorithm = build("IGA", penalty=3.0)
    (minibatches,) = batches([4, 5, 3])
    gradients = domain_gradients(algorithm, minibatches)
    expected = sum(((g - g.mean(0)) ** 2).sum() for g in gradients)
    loss = loss_of(algorithm, minibatches).item()
    logged = algorithm.update(minibatches)
    assert logged["penalty"] == pytest.approx(expected, rel=1e-8)
    assert logged["loss"] == pytest.approx(loss)


@pytest.mark.parametrize("nonlinear", [False, True])
def test_fishr_item_by_item(nonlinear, float64):
    changed = {"penalty_anneal_iters": 0, "ema": 0.9, "nonlinear_classifier": nonlinear}
    algorithm = build("Fishr", n_domains=2, **changed)
    m = 0.0
    for minibatches in batches([4, 5], n=2):
        v = []
        for x, y in minibatches:
            z, each = algorithm.featurizer(x).detach(), []
            for i in range(len(y)):
                risk = F.cross_entropy(algorithm.classifier(z[i : i + 1]), y[i : i + 1])
                g = torch.autograd.grad(risk, [*algorithm.classifier.parameters()])
                each.append(torch.cat([part.flatten() for part in g]).numpy())
            v.append(np.var(each, axis=0))
        m = 0.9 * m + 0.1 * np.stack(v)
        u = m / 0.1
        expected = np.mean((u - u.mean(0)) ** 2)
        logged = algorithm.update(minibatches)
        assert logged["penalty"] == pytest.approx(expected, rel=1e-6)
        assert logged["loss"] == pytest.approx(logged["nll"] + 1000 * expected)


def test_rsc_leaves_out_what_an_answer_leans_on(float64):
    algorithm = build("RSC", n_domains=2)
    (minibatches,) = batches([4, 5])
    x, y = algorithms.all_of(minibatches)
    z = algorithm.featurizer(x).detach()
    w, b = (p.detach() for p in algorithm.classifier.parameters())
    masks, changes = [], []
    for row, label in zip(z, y, strict=True):
        g = w[label].numpy()  # a linear head's gradient by its input
        mask = g < np.percentile(g, 100 * (1 - 1 / 3))
        masks.append(mask)
        with_all, without = row @ w.T + b, (row * torch.tensor(mask)) @ w.T + b
        change = with_all.softmax(0)[label] - without.softmax(0)[label]
        changes.append(change.item())
    little = changes < np.percentile(changes, 100 * (1 - 1 / 3))
    kept = torch.tensor(np.stack(masks) | little[:, None])
    expected = F.cross_entropy(algorithm.classifier(z * kept), y).item()
    assert algorithm.update(minibatches)["loss"] == pytest.approx(expected)


def test_fishr_loads_a_model_that_upstream_saved():
    """Which holds no variances."""
    first, second = build("Fishr"), build("Fishr")
    take(first, batches([4, 4, 4]))
    saved = weights(first)
    del saved["variances"]
    second.load_state_dict(saved)
    x = torch.randn(4, 10)
    assert torch.equal(first.predict(x), second.predict(x))
    assert not second.variances.any()
