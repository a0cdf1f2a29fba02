"""Upstream DomainBed's algorithms: that each runs on all it takes, goes on after an
interruption as if there had been none, and is what its paper says, stated plainly.
"""

import copy
import itertools
import math
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from domainbed import (
    algorithms,
    algorithms_averaging,
    algorithms_risk,
    hparams_registry,
)
from domainbed.lib import divergences
from domainbed.lib.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:SANDMask trains nothing")
ZOO = [n for n in algorithms.ORDER[:34] if n in algorithms.ALGORITHMS]
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


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


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


@pytest.mark.parametrize("name", ["IB_ERM", "IB_IRM", "RDM", "CORAL"])
def test_one_item_has_no_variance(name):
    with pytest.raises(InputError, match="raise hyperparameter batch_size"):
        build(name).update(*batches([1, 4, 4]))


def test_rdm_takes_batches_of_one_size():
    with pytest.raises(InputError, match="batches of one size"):
        build("RDM").update(*batches([2, 4, 4]))


def loss_of(algorithm, minibatches):
    """Mean risk, domain by domain."""
    R = [F.cross_entropy(algorithm.network(x), y) for x, y in minibatches]
    return torch.stack(R).mean()


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


def test_ermplusplus_averages_from_a_step_on(monkeypatch):
    cls = algorithms.get_algorithm_class("ERMPlusPlus")
    monkeypatch.setattr(cls, "AVERAGED_FROM", 3)
    algorithm = build("ERMPlusPlus", linear_steps=1)
    first = [p.clone() for p in algorithm.featurizer.parameters()]
    history = []
    for n, minibatches in enumerate(batches([4, 4, 4], n=5), 1):
        take(algorithm, [minibatches])
        own = [p.clone() for p in algorithm.featurizer.parameters()]
        # linear_steps and one more
        assert all(map(torch.equal, own, first)) == (n <= 2)
        history.append([p.detach().clone() for p in algorithm.network.parameters()])
    last = history[-4:]  # the second step's, which it held, and three more
    for i, p in enumerate(algorithm.network_sma.parameters()):
        mean = torch.stack([weights[i] for weights in last]).mean(0)
        torch.testing.assert_close(p.data, mean)
    x = torch.randn(4, 10)
    assert torch.equal(algorithm.predict(x), algorithm.network_sma(x))


def test_lars_is_momentum_sgd_on_a_bias():
    one = torch.nn.Parameter(torch.randn(5))
    other = torch.nn.Parameter(one.detach().clone())
    lars = algorithms_averaging.LARS([one], lr=0.1, weight_decay=0.5)
    sgd = torch.optim.SGD([other], lr=0.1, momentum=0.9)
    for _ in range(3):
        for p, optimizer in ((one, lars), (other, sgd)):
            p.grad = p.detach() ** 2
            optimizer.step()
    torch.testing.assert_close(one, other)


def test_lars_steps_by_the_weights_norm():
    p = torch.nn.Parameter(torch.ones(2, 2))
    p.grad = torch.full((2, 2), 7.0)
    algorithms_averaging.LARS([p], lr=1.0).step()
    torch.testing.assert_close(p.data, torch.full((2, 2), 1 - 1e-3))


def test_ermplusplus_takes_lars():
    algorithm = build("ERMPlusPlus", lars=True, linear_steps=0)
    logged = take(algorithm, batches([4, 4, 4], n=3))
    assert logged[2]["loss"] != logged[0]["loss"]
    assert isinstance(algorithm.optimizer, algorithms_averaging.LARS)


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
