"""What looks ahead, beside plain statements of its papers and upstream's code."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import float64
from plainly import assert_steps, step
from test_zoo import batches, build, take

from domainbed.lib.errors import InputError


def mldg(n_test):
    def plain(one, minibatches):
        M = len(minibatches)
        perm = torch.randperm(M).tolist()
        train, test = perm[: M - n_test], perm[M - n_test :]
        total = [torch.zeros_like(p) for p in one.network.parameters()]
        loss = 0.0
        for k, i in enumerate(train):
            (x_i, y_i), (x_j, y_j) = minibatches[i], minibatches[test[k % len(test)]]
            n = min(len(y_i), len(y_j))
            ahead = copy.deepcopy(one.network)
            own = list(ahead.parameters())
            risk_i = F.cross_entropy(ahead(x_i[:n]), y_i[:n])
            G_i = torch.autograd.grad(risk_i, own)
            for p, g in zip(own, G_i, strict=True):
                p.data -= 1e-3 * g / (g.abs() + 1e-8)  # Adam's first step
            risk_j = F.cross_entropy(ahead(x_j[:n]), y_j[:n])
            G_j = torch.autograd.grad(risk_j, own)
            for t, g, h in zip(total, G_i, G_j, strict=True):
                t += (g + 0.5 * h) / M
            loss += (risk_i + 0.5 * risk_j).item() / M
        for p, g in zip(one.network.parameters(), total, strict=True):
            p.grad = g
        one.optimizer.step()
        return {"loss": loss}

    return plain


@pytest.mark.parametrize("n_test", [1, 2])
def test_mldg_looks_one_step_ahead(n_test):
    assert_steps("MLDG", mldg(n_test), mldg_beta=0.5, n_meta_test=n_test)


def test_mldg_without_pairs_says_so():
    with pytest.warns(UserWarning, match="MLDG pairs none of 2 training domains"):
        algorithm = build("MLDG", n_domains=2)
    before = algorithm.classifier.weight.clone()
    assert algorithm.update(batches([4, 4])[0]) == {"loss": 0.0}
    assert torch.equal(before, algorithm.classifier.weight)


@pytest.mark.filterwarnings("error")
def test_mldg_not_as_released_leaves_a_domain_to_train_on():
    algorithm = build("MLDG", n_domains=2, as_released=False)
    assert algorithm.update(batches([4, 4])[0])["loss"] > 0


def test_fish_goes_part_of_the_way():
    def plain(one, minibatches):
        inner = copy.deepcopy(one.network)
        adam = torch.optim.Adam(inner.parameters(), 1e-3)
        adam.load_state_dict(one.optimizer.state_dict())  # its moments go on
        for x, y in minibatches:
            loss = step(F.cross_entropy(inner(x), y), adam)
        one.optimizer.load_state_dict(adam.state_dict())
        for p, q in zip(one.network.parameters(), inner.parameters(), strict=True):
            p.data += 0.1 * (q.data - p.data)
        return {"loss": loss}

    assert_steps("Fish", plain, meta_lr=0.1)


def test_fish_all_the_way_on_one_domain_is_erm():
    one, other = build("Fish", n_domains=1, meta_lr=1.0), build("ERM", n_domains=1)
    steps = batches([6], n=3)
    for a, b in zip(take(one, steps), take(other, steps), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


def arm(one, minibatches):
    x, y = (torch.cat(part) for part in zip(*minibatches, strict=True))
    groups = [x[i : i + 3] for i in range(0, len(x), 3)] if len(x) % 3 == 0 else [x]
    seen = one.context_net.context_net(x)  # all of them at once, for batch norm
    told, start = [], 0
    for group in groups:
        mean = seen[start : start + len(group)].mean(0)
        told += [torch.cat([image, mean]) for image in group]
        start += len(group)
    loss = F.cross_entropy(one.network(torch.stack(told)), y)
    return {"loss": step(loss, one.optimizer)}


@pytest.mark.parametrize("as_released", [True, False])
@pytest.mark.parametrize("sizes", [(3, 3), (2, 3)])
def test_arm_tells_each_image_its_group(sizes, as_released):
    changed = {"batch_size": 3, "as_released": as_released}
    trained = assert_steps("ARM", arm, sizes, n=2, inputs="images", **changed)
    with float64():
        fresh = build("ARM", "images", **changed)
    one, other = (a.context_net.context_net[0].weight for a in (trained, fresh))
    assert torch.equal(one, other) is as_released


def test_arm_refuses_vectors():
    with pytest.raises(InputError, match="ARM takes images, not vectors of 10 numbers"):
        build("ARM")


def mtl(as_released):
    def plain(one, minibatches):
        loss = 0
        for d, (x, y) in enumerate(minibatches):
            z = one.featurizer(x)
            e = 0.9 * z.mean(0) + 0.1 * one.embeddings[d]
            one.embeddings[d] = e.detach()
            e = torch.randn(z.shape) if as_released else torch.stack([e] * len(y))
            loss = loss + F.cross_entropy(one.classifier(torch.cat([z, e], 1)), y)
        return {"loss": step(loss, one.optimizer)}

    return plain


@pytest.mark.parametrize("as_released", [True, False])
def test_mtl_reads_a_domains_embedding_or_noise(as_released):
    changed = {"mtl_ema": 0.9, "as_released": as_released}
    algorithm = assert_steps("MTL", mtl(as_released), **changed)
    x = torch.randn(5, 10).double()
    repeats = torch.equal(algorithm.predict(x), algorithm.predict(x))
    assert repeats is not as_released


def trm(as_released, balanced):
    def plain(one, minibatches):
        x, y = (torch.cat(part) for part in zip(*minibatches, strict=True))
        z = one.featurizer(x)
        nll = F.cross_entropy(one.classifier(z), y)
        if one.update_count < 2:
            one.update_count += 1
            step(nll, one.optimizer_f, one.optimizer_c)
            return {"nll": nll.item(), "trm_loss": 0.0}
        one.alpha /= one.alpha.sum(1, keepdim=True)
        parts = z.split([len(y) for _, y in minibatches])
        for head, z_d, (_, y_d) in zip(one.clist, parts, minibatches, strict=True):
            if balanced:
                head.weight.data = one.classifier.weight.data.clone()
            sgd = torch.optim.SGD(head.parameters(), 0.1)
            for _ in range(30):
                step(F.cross_entropy(head(z_d.detach()), y_d), sgd)
        swap = 0
        for Q, head in enumerate(one.clist):
            P = 0
            new = one.alpha[Q].clone()
            for i in range(3):
                if i != Q:
                    risk = F.cross_entropy(head(parts[i]), minibatches[i][1])
                    risk = risk * one.alpha[Q, i].item()
                    new[i] *= (0.01 * risk.detach()).exp()
                    P = P + risk
            one.alpha[Q] = new
            (v,) = torch.autograd.grad(P, head.weight, retain_graph=True)
            y_Q, still = minibatches[Q][1], parts[Q].detach()
            terms = [v]
            for _ in range(10):

                def slope(weight, still=still, y_Q=y_Q, head=head):
                    risk = F.cross_entropy(F.linear(still, weight, head.bias), y_Q)
                    return torch.autograd.grad(risk, weight, create_graph=True)[0]

                weight = head.weight.detach().requires_grad_()
                (Hv,) = torch.autograd.grad((slope(weight) * terms[-1]).sum(), weight)
                terms.append(terms[-1] - Hv)
            s = sum(terms[1:]) + terms[1] if as_released else sum(terms)
            assert s.abs().max() < 10
            risk = F.cross_entropy(head(parts[Q]), y_Q)
            (g,) = torch.autograd.grad(risk, head.weight, create_graph=True)
            swap = swap + P - 0.1 * (s * g).sum()
        one.update_count += 1
        loss = nll + swap / 3
        total = step(loss, one.optimizer_f, one.optimizer_c)
        return {"nll": nll.item(), "trm_loss": total - nll.item()}

    return plain


@pytest.mark.parametrize("as_released, balanced", [(True, False), (False, True)])
def test_trm_swaps_the_domains_heads(as_released, balanced):
    changed = {"cos_lambda": 0.1, "iters": 2, "as_released": as_released}
    assert_steps("TRM", trm(as_released, balanced), class_balanced=balanced, **changed)
