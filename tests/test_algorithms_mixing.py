"""What mixes examples, beside plain statements of its papers and upstream's code."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import float64
from plainly import assert_steps, step
from test_zoo import batches, build, take

from domainbed.lib.errors import InputError


def joined(minibatches):
    x, y = zip(*minibatches, strict=True)
    return torch.cat(x), torch.cat(y)


def test_mixup_mixes_each_domain_with_the_next_in_a_random_cycle():
    def plain(copy, minibatches):
        perm = torch.randperm(3)
        loss = 0
        for i in range(3):
            x1, y1 = minibatches[perm[i]]
            x2, y2 = minibatches[perm[(i + 1) % 3]]
            lam = np.random.beta(0.4, 0.4)
            for k in range(n := min(len(y1), len(y2))):
                p = copy.network(lam * x1[k : k + 1] + (1 - lam) * x2[k : k + 1])
                p = p.log_softmax(1)[0]
                loss = loss - (lam * p[y1[k]] + (1 - lam) * p[y2[k]]) / n / 3
        return {"loss": step(loss, copy.optimizer)}

    assert_steps("Mixup", plain, mixup_alpha=0.4)


def test_mixup_of_one_domain_is_erm():
    one, other = build("Mixup", n_domains=1), build("ERM", n_domains=1)
    steps = batches([6], n=3)
    for a, b in zip(take(one, steps), take(other, steps), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


def sagnet_randomized(z, what):
    a, perm = torch.rand(len(z), 1), torch.randperm(len(z))
    rows = []
    for i, j in enumerate(perm.tolist()):
        mean, var, content = z[i].mean(), z[i].var(), None
        if what == "style":
            content = (z[i] - mean) / (var + 1e-5).sqrt()
            mean = a[i] * mean + (1 - a[i]) * z[j].mean()
            var = a[i] * var + (1 - a[i]) * z[j].var()
        else:
            content = ((z[j] - z[j].mean()) / (z[j].var() + 1e-5).sqrt()).detach()
        rows.append(content * (var + 1e-5).sqrt() + mean)
    return torch.stack(rows)


def test_sagnet_takes_three_steps():
    def plain(copy, minibatches):
        x, y = joined(minibatches)
        p = copy.network_c(sagnet_randomized(copy.network_f(x), "style"))
        loss_c = step(F.cross_entropy(p, y), copy.optimizer_f, copy.optimizer_c)
        p = copy.network_s(sagnet_randomized(copy.network_f(x), "content"))
        loss_s = step(F.cross_entropy(p, y), copy.optimizer_s)
        p = copy.network_s(sagnet_randomized(copy.network_f(x), "content"))
        loss = 0.3 * torch.stack([-row.softmax(0).log().mean() for row in p]).mean()
        loss_adv = step(loss, copy.optimizer_f)
        return {"loss_c": loss_c, "loss_s": loss_s, "loss_adv": loss_adv}

    assert_steps("SagNet", plain, sag_w_adv=0.3)


def selfreg(copy, minibatches):
    lam = np.random.beta(0.5, 0.5)
    x, y = joined(minibatches)
    y, order = torch.sort(y)
    z = copy.featurizer(x[order])
    u, p = copy.cdpl(z), copy.classifier(z)
    a, b = [], []
    for label in range(3):
        items = (y == label).nonzero()[:, 0]
        a += items[torch.randperm(len(items))].tolist()
        b += items[torch.randperm(len(items))].tolist()
    pull = 0
    for i in range(len(y)):
        p3 = lam * p[a[i]] + (1 - lam) * p[b[i]]
        u3 = lam * u[a[i]] + (1 - lam) * u[b[i]]
        own = ((p[i] - p[a[i]]) ** 2).mean() + 0.3 * ((z[i] - u[a[i]]) ** 2).mean()
        mix = ((p[i] - p3) ** 2).mean() + 0.3 * ((z[i] - u3) ** 2).mean()
        pull = pull + (lam * own + (1 - lam) * mix) / len(y)
    loss = F.cross_entropy(p, y)
    loss = loss + min(1, loss.item()) * pull
    return {"loss": step(loss, copy.optimizer)}


@pytest.mark.parametrize("as_released", [True, False])
def test_selfreg_pulls_items_of_a_class_together(as_released):
    trained = assert_steps("SelfReg", selfreg, as_released=as_released)
    with float64():
        fresh = build("SelfReg")
    moved = not torch.equal(trained.cdpl[0].weight, fresh.cdpl[0].weight)
    assert moved is not as_released  # released, cdpl is in no optimizer


def test_selfreg_needs_two_items():
    with pytest.raises(InputError, match="SelfReg needs two items"):
        build("SelfReg", n_domains=1, batch_size=1)


@pytest.mark.parametrize("name", ["SagNet", "TRM"])
def test_a_featurizer_that_trains_apart_must_be_there(name):
    with pytest.raises(InputError, match=f"{name} trains its featurizer apart"):
        build(name, vector_depth=0)
