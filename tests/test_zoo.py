"""Upstream DomainBed's algorithms: that each runs on all it takes, goes on after an
interruption as if there had been none, and is what its paper says, stated plainly.
"""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from domainbed import algorithms, hparams_registry
from domainbed.lib.errors import InputError

ZOO = [n for n in algorithms.ORDER[:34] if n in algorithms.ALGORITHMS]
SHAPES = {"images": (2, 28, 28), "vectors": (10,)}
N_CLASSES = 3


def build(name, inputs="vectors", n_domains=3, **changed):
    """The algorithm with its default hyperparameters on small images but for some."""
    torch.manual_seed(0)
    hparams = hparams_registry.default_hparams(name, "Debug28") | changed
    cls = algorithms.get_algorithm_class(name)
    return cls(SHAPES[inputs], N_CLASSES, n_domains, hparams)


def batches(sizes, inputs="vectors", n=1):
    """n times a batch of each size, one per training domain."""
    torch.manual_seed(1)
    return [
        [
            (torch.randn(size, *SHAPES[inputs]), torch.arange(size) % N_CLASSES)
            for size in sizes
        ]
        for _ in range(n)
    ]


def take(algorithm, steps, first=0):
    """A step on each batch, with random numbers that the step's number alone sets."""
    logged = []
    for step, minibatches in enumerate(steps, first):
        torch.manual_seed(step)
        np.random.seed(step)
        algorithm.step = step
        logged.append(algorithm.update(minibatches))
    return logged


def weights(algorithm):
    return {name: value.clone() for name, value in algorithm.state_dict().items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("n_domains", [1, 2, 5])
@pytest.mark.parametrize("inputs", SHAPES)
@pytest.mark.parametrize("name", ZOO)
def test_any_number_of_domains_trains_and_predicts(name, inputs, n_domains):
    least = algorithms.get_algorithm_class(name).MIN_DOMAINS
    if n_domains < least:
        with pytest.raises(InputError, match=f"{name} needs at least {least} training"):
            build(name, inputs, n_domains)
        return
    algorithm = build(name, inputs, n_domains)
    for logged in take(algorithm, batches([6] * n_domains, inputs, n=3)):
        assert logged
        assert all(type(v) is float and v == v for v in logged.values()), logged
    algorithm.eval()
    with torch.no_grad():
        logits = algorithm.predict(torch.randn(4, *SHAPES[inputs]))
    assert logits.shape == (4, N_CLASSES)
    assert logits.isfinite().all()


def annealing(name):
    """Every step count among the rows at 2, so that a test is past it soon."""
    rows = algorithms.get_algorithm_class(name).hparam_rows("Debug28")
    return {row: 2 for row in rows if row.endswith("_iters") or row == "iters"}


@pytest.mark.parametrize("inputs", SHAPES)
@pytest.mark.parametrize("name", ZOO)
def test_an_interrupted_algorithm_goes_on_bitwise(name, inputs):
    """Unequal batches, and a step at which what is annealed changes."""
    steps = batches([6, 6, 6], inputs, n=5)
    for cut in (2, 3):
        whole = build(name, inputs, **annealing(name))
        take(whole, steps[:cut])
        again = build(name, inputs, **annealing(name))
        again.load_training_state(copy.deepcopy(whole.training_state()))
        rest = take(whole, steps[cut:], cut)
        assert take(again, steps[cut:], cut) == rest
        assert_equal(weights(again), weights(whole))


@pytest.mark.parametrize(
    "name, without",
    [
        ("GroupDRO", {"groupdro_eta": 0.0}),
        ("VREx", {"vrex_lambda": 0.0, "vrex_penalty_anneal_iters": 0}),
        ("IRM", {"irm_lambda": 0.0, "irm_penalty_anneal_iters": 0}),
    ],
)
def test_without_its_penalty_it_is_erm(name, without):
    """On domains of one size, where the mean risk is the risk of all."""
    torch.set_default_dtype(torch.float64)
    try:
        steps = batches([4, 4], n=4)
        plain, other = build("ERM", n_domains=2), build(name, n_domains=2, **without)
        take(plain, steps)
        take(other, steps)
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(
        plain.network.parameters(), other.network.parameters(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


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
