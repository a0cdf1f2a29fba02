"""Upstream DomainBed's algorithms: that each runs on all it takes, goes on after an
interruption as if there had been none. What each is stands in its family's file.
"""

import copy
import math
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from domainbed import (
    algorithms,
    hparams_registry,
)
from domainbed.lib.errors import InputError
from domainbed.names import ORDER

pytestmark = pytest.mark.filterwarnings("ignore:SANDMask trains nothing")
ZOO = [n for n in ORDER[:34] if n in algorithms.ALGORITHMS]
SHAPES = {"images": (2, 28, 28), "vectors": (10,)}
CASES = [
    (name, *case)
    for name in ZOO
    for case in [("images", 2), ("vectors", 1), ("vectors", 2), ("vectors", 5)]
    if (name, case[0]) != ("ARM", "vectors")  # whose context network is convolutional
]
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


@pytest.mark.parametrize("name, inputs, n_domains", CASES)
def test_any_number_of_domains_trains_and_predicts(name, inputs, n_domains):
    least = algorithms.get_algorithm_class(name).MIN_DOMAINS
    if n_domains < least:
        with pytest.raises(InputError, match=f"{name} needs at least {least} training"):
            build(name, inputs, n_domains)
        return
    algorithm = build(name, inputs, n_domains)
    for logged in take(algorithm, batches([6] * n_domains, inputs, n=2)):
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


@pytest.mark.parametrize("name", ZOO)
def test_an_interrupted_algorithm_goes_on_bitwise(name):
    """Each step in an object of its own, bitwise as all of them in one."""
    inputs = "images" if name == "ARM" else "vectors"
    steps = batches([6, 6, 6], inputs, n=6)
    whole = build(name, inputs, **annealing(name))
    expected = take(whole, steps)
    part, taken = build(name, inputs, **annealing(name)), []
    for t, step in enumerate(steps):
        taken += take(part, [step], t)
        saved = copy.deepcopy(part.training_state())
        part = build(name, inputs, **annealing(name))
        part.load_training_state(saved)
    assert taken == expected
    assert_equal(weights(part), weights(whole))


@pytest.mark.parametrize(
    "name, without",
    [
        ("GroupDRO", {"groupdro_eta": 0.0}),
        ("VREx", {"vrex_lambda": 0.0, "vrex_penalty_anneal_iters": 0}),
        ("IRM", {"irm_lambda": 0.0, "irm_penalty_anneal_iters": 0}),
        ("IB_ERM", {"ib_lambda": 0.0}),
        ("IB_IRM", {"irm_lambda": 0.0, "irm_penalty_anneal_iters": 0}),
        ("EQRM", {}),  # burning in
        ("RDM", {}),
        ("SD", {"sd_reg": 0.0}),
        ("MMD", {"mmd_gamma": 0.0}),
        ("CORAL", {"mmd_gamma": 0.0}),
        ("CausIRL_MMD", {"mmd_gamma": 0.0}),
        ("CausIRL_CORAL", {"mmd_gamma": 0.0}),
        ("CAD", {"lmbda": 0.0}),
        ("CondCAD", {"lmbda": 0.0}),
        ("Fishr", {}),
        ("IGA", {"penalty": 0.0}),
    ],
)
def test_without_its_penalty_it_is_erm(name, without, float64):
    """On domains of one size, where the mean risk is the risk of all."""
    steps = batches([4, 4], n=4)
    plain, other = build("ERM", n_domains=2), build(name, n_domains=2, **without)
    take(plain, steps)
    take(other, steps)
    for part in ("featurizer", "classifier"):
        ours, theirs = (getattr(one, part).state_dict() for one in (other, plain))
        for row in theirs:
            torch.testing.assert_close(ours[row], theirs[row], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["IB_ERM", "IB_IRM", "RDM", "CORAL"])
def test_one_item_has_no_variance(name):
    with pytest.raises(InputError, match="raise hyperparameter batch_size"):
        build(name).update(*batches([1, 4, 4]))


def loss_of(algorithm, minibatches):
    """Mean risk, domain by domain."""
    R = [F.cross_entropy(algorithm.network(x), y) for x, y in minibatches]
    return torch.stack(R).mean()


def at_224(name, **changed):
    torch.manual_seed(0)
    hparams = hparams_registry.default_hparams(name, "Debug224") | changed
    algorithm = algorithms.get_algorithm_class(name)((3, 224, 224), 2, 2, hparams)
    minibatches = [(torch.randn(2, 3, 224, 224), torch.arange(2)) for _ in range(2)]
    return algorithm, take(algorithm, [minibatches])[0]


@pytest.mark.parametrize("name", ["VREx", "CORAL", "Fishr", "Mixup", "DANN", "MTL"])
def test_one_of_each_family_on_a_resnet(name):
    _, logged = at_224(name, resnet18=True, freeze_bn=True)
    assert all(math.isfinite(value) for value in logged.values())


@pytest.mark.skipif(find_spec("timm") is None, reason="the extra timm is missing")
@pytest.mark.parametrize("name", ["ERM", "IGA", "ANDMask", "Fishr", "ERMPlusPlus"])
def test_attention_of_a_vit_alone_trains(name):
    hparams = {"vit": True, "dinov2": True, "vit_attn_tune": True}
    algorithm, logged = at_224(name, linear_steps=-1, lr=0.01, **hparams)
    assert all(math.isfinite(value) for value in logged.values())
    moved = {
        n for n, p in algorithm.featurizer.named_parameters() if p.grad is not None
    }
    assert moved == {
        n for n, _ in algorithm.featurizer.named_parameters() if "attn" in n
    }


def test_groupdro_goes_on_from_a_model_that_upstream_never_trained():
    """Whose q is still empty."""
    algorithm = build("GroupDRO")
    algorithm.load_state_dict(weights(algorithm) | {"q": torch.zeros(0)})
    steps = batches([4, 4, 4], n=2)
    assert take(algorithm, steps) == take(build("GroupDRO"), steps)
