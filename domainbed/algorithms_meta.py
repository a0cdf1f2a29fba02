"""Objectives that look ahead: what a step on one domain does on another, and what a
domain as a whole says about its items.

Letters: M training domains, B_d items of domain d, N of all, C classes, F features;
phi the featurizer, w the classifier, z = phi(x), R the mean cross-entropy.
"""

import copy
import itertools
import warnings
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from domainbed.algorithms import (
    ERM,
    SMALL_IMAGES,
    Featurized,
    Minibatches,
    all_of,
    descend,
    plain_numbers,
    register,
    split,
)
from domainbed.lib.bounds import at_least, between
from domainbed.lib.errors import InputError


@register
class MLDG(ERM):
    """Steps that help on other domains: Li et al., 2018, "Learning to Generalize:
    Meta-Learning for Domain Generalization", https://arxiv.org/abs/1710.03463

    Of a pair of domains (i, j) a copy of the network takes a step on R_i; the network
    takes one along the gradient of R_i plus `mldg_beta` times that of R_j at the
    copy. Of first order, as DomainBed's. The pairs' sum is divided by M. With no more
    domains than `n_meta_test` there are no pairs `as_released`; otherwise all but one
    domain are test domains then.
    """

    HPARAMS = {
        "mldg_beta": at_least(0, 1.0, lambda r: 10 ** r.uniform(-1, 1)),
        "n_meta_test": at_least(1, 2, lambda r: r.choice([1, 2])),
        "as_released": (True, None),
    }

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.num_meta_test = hparams["n_meta_test"]
        if not self.as_released:
            self.num_meta_test = min(self.num_meta_test, num_domains - 1)
        if not 0 < self.num_meta_test < num_domains:
            warnings.warn(
                f"nothing trains: MLDG pairs none of {num_domains} training domains if "
                f"n_meta_test is {self.num_meta_test}; set hyperparameter n_meta_test "
                "lower, or as_released to false.",
                stacklevel=2,
            )

    def pairs(self, minibatches: Minibatches) -> Iterator[list[list[torch.Tensor]]]:
        """Each domain to train on with one to test on, cut to the shorter."""
        order = torch.randperm(len(minibatches)).tolist()
        n_train = max(0, len(order) - self.num_meta_test)
        train, test = order[:n_train], order[n_train:]
        for i, j in zip(train, itertools.cycle(test), strict=False):
            n = min(len(minibatches[d][1]) for d in (i, j))
            yield [[t[:n] for t in minibatches[d]] for d in (i, j)]

    def update(self, minibatches, unlabeled=None):
        beta, loss = self.hparams["mldg_beta"], 0.0
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        gradients = [torch.zeros_like(p) for p in parameters]
        for (x_i, y_i), (x_j, y_j) in self.pairs(minibatches):
            ahead = copy.deepcopy(self.network)
            moved = [p for p in ahead.parameters() if p.requires_grad]
            risk_i = F.cross_entropy(ahead(x_i), y_i)
            descend(risk_i, self.adam(self.hparams["lr"], ahead))
            risk_j = F.cross_entropy(ahead(x_j), y_j)
            ahead_gradients = torch.autograd.grad(risk_j, moved)
            for g, p, g_j in zip(gradients, moved, ahead_gradients, strict=True):
                g += (p.grad + beta * g_j) / len(minibatches)
            loss += (risk_i + beta * risk_j).item() / len(minibatches)
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g
        self.optimizer.step()
        return {"loss": loss}


@register
class Fish(ERM):
    """Gradients of domains that agree: Shi et al., 2021, "Gradient Matching for Domain
    Generalization", algorithm 2, https://arxiv.org/abs/2104.09937

    The network steps on one domain after another, then goes back to where it was but
    for the share `meta_lr` of the way.
    """

    HPARAMS = {"meta_lr": at_least(0, 0.5, lambda r: r.choice([0.05, 0.1, 0.5]))}

    def update(self, minibatches, unlabeled=None):
        state = self.network.state_dict()  # statistics of batches, too
        before = {name: t.clone() for name, t in state.items()}
        for x, y in minibatches:
            loss = F.cross_entropy(self.network(x), y)
            descend(loss, self.optimizer)
        for name, t in state.items():
            t.copy_(before[name] + self.hparams["meta_lr"] * (t - before[name]))
        return plain_numbers({"loss": loss})


class ContextNet(nn.Module):
    """Three convolutions that make one channel of images (B, channels, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.context_net = nn.Sequential(
            nn.Conv2d(channels, 64, 5, padding=2),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Conv2d(64, 64, 5, padding=2),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Conv2d(64, 1, 5, padding=2),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.context_net(x)


@register
class ARM(ERM):
    """A network that is told its batch: Zhang et al., 2021, "Adaptive Risk
    Minimization", https://arxiv.org/abs/2007.02931

    A further channel of every image is the mean, over groups of `batch_size` images,
    of what a context network makes of them. `as_released` that network is not trained.
    """

    BATCH_MATTERS = True
    HPARAMS = {"as_released": (True, None)}

    @classmethod
    def hparam_rows(cls, dataset):
        rows = super().hparam_rows(dataset)
        return (
            rows if dataset in SMALL_IMAGES else rows | {"batch_size": at_least(1, 8)}
        )

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        if len(input_shape) != 3:
            raise InputError(
                f"ARM takes images, not vectors of {input_shape[0]} numbers; leave "
                "hyperparameter input at 'images'."
            )
        channels, *size = input_shape
        super().__init__((channels + 1, *size), num_classes, num_domains, hparams)
        self.context_net = ContextNet(channels)
        if not self.as_released:
            self.optimizer.add_param_group({"params": self.context_net.parameters()})

    def predict(self, x):
        n = self.hparams["batch_size"]
        n = n if len(x) % n == 0 else len(x)
        context = self.context_net(x).unflatten(0, (-1, n)).mean(1)  # (groups, 1, H, W)
        return self.network(torch.cat([x, context.repeat_interleave(n, 0)], 1))


@register
class MTL(Featurized):
    """A classifier that is told the domain: Blanchard et al., 2021, "Domain
    Generalization by Marginal Transfer Learning", https://arxiv.org/abs/1711.07910

    Beside z it reads an embedding of the domain: the running mean of z in training, z's
    mean over the batch in prediction. `as_released` it reads noise instead, anew each
    time, as DomainBed's has it.
    """

    BATCH_MATTERS = True
    HPARAMS = {
        "mtl_ema": between(0, 1, 0.99, lambda r: r.choice([0.5, 0.9, 0.99, 1.0])),
        "as_released": (True, None),
    }

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.optimizer = self.make_optimizer(hparams["lr"])
        embeddings = torch.zeros(num_domains, self.featurizer.n_outputs)
        self.register_buffer("embeddings", embeddings)

    def make_classifier(self, n_inputs, n_outputs):
        return super().make_classifier(2 * n_inputs, n_outputs)

    def loss(self, minibatches):
        ema, losses = self.hparams["mtl_ema"], []
        for d, (x, y) in enumerate(minibatches):
            z = self.featurizer(x)
            e = ema * z.mean(0) + (1 - ema) * self.embeddings[d]
            self.embeddings[d] = e.detach()
            losses.append(F.cross_entropy(self.beside(z, e), y))
        loss = sum(losses)
        return loss, {"loss": loss}

    def beside(self, z: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        """Logits of features (B, F) in a domain of that embedding (F,)."""
        e = torch.randn_like(z) if self.as_released else e.expand_as(z)
        return self.classifier(torch.cat([z, e], 1))

    def predict(self, x):
        z = self.featurizer(x)
        return self.beside(z, z.mean(0))


def slope(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The gradient of the cross-entropy in the logits (B, C)."""
    return (logits.softmax(1) - F.one_hot(y, logits.shape[1])) / len(y)


def curvature_times(
    v: torch.Tensor, logits: torch.Tensor, z: torch.Tensor
) -> torch.Tensor:
    """The cross-entropy's Hessian in the weight of a linear head, times v (C, F)."""
    p, u = logits.softmax(1), z @ v.T
    return (p * (u - (p * u).sum(1, keepdim=True))).T @ z / len(z)


@register
class TRM(Featurized):
    """Heads that transfer: Xu & Jaakkola, 2021, "Learning Representations that Support
    Robust Transfer of Predictors", https://arxiv.org/abs/2110.09940

    From step `iters` on: every domain Q has a linear head c_Q of its own, held near its
    best, and phi lowers c_Q's risks on the other domains P, with the implicit gradient
    of the head. `as_released` the series of its inverse Hessian counts v_1 twice and
    leaves out v_0.
    """

    MIN_DOMAINS = 2
    HPARAMS = {
        "cos_lambda": at_least(0, 1e-4, lambda r: 10 ** r.uniform(-5, 0)),
        "iters": at_least(0, 200, lambda r: int(10 ** r.uniform(0, 4))),
        "groupdro_eta": at_least(0, 1e-2, lambda r: 10 ** r.uniform(-3, -1)),
        "as_released": (True, None),
    }
    NEW_STATE = ("clist", "alpha")
    HEAD_STEPS, HEAD_LR = 30, 0.1  # of each c_d at each step, by SGD
    TERMS, LARGEST = 10, 10  # of the series; one that grows beyond ends there

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.register_buffer("update_count", torch.tensor([0]))
        n_features = self.featurizer.n_outputs
        self.clist = nn.ModuleList(
            nn.Linear(n_features, num_classes) for _ in range(num_domains)
        )
        alpha = torch.ones(num_domains, num_domains) - torch.eye(num_domains)
        self.register_buffer("alpha", alpha)
        self.optimizer_f = self.adam(hparams["lr"], self.featurizer)
        self.optimizer_c = self.adam(hparams["lr"], self.classifier)

    def make_classifier(self, n_inputs, n_outputs):
        return nn.Linear(n_inputs, n_outputs)

    @torch.no_grad()
    def fit(self, head: nn.Linear, z: torch.Tensor, y: torch.Tensor) -> None:
        """Bring a domain's head nearer to its best on the domain's features."""
        for _ in range(self.HEAD_STEPS):
            g = slope(head(z), y)
            head.weight -= self.HEAD_LR * g.T @ z
            head.bias -= self.HEAD_LR * g.sum(0)

    @torch.no_grad()
    def through_inverse_hessian(
        self, v: torch.Tensor, head: nn.Linear, z: torch.Tensor
    ) -> torch.Tensor:
        """v times the inverse Hessian of the head's risk: v_0 + v_1 + ..., where
        v_0 = v and v_k+1 = v_k - H v_k.
        """
        logits, total = head(z), torch.zeros_like(v) if self.as_released else v
        for k in range(1, self.TERMS + 1):
            v = v - curvature_times(v, logits, z)
            total = total + (2 * v if k == 1 and self.as_released else v)
            if total.abs().max() > self.LARGEST:
                break
        return total

    def swapped(
        self, features: Sequence[torch.Tensor], minibatches: Minibatches
    ) -> torch.Tensor:
        """How badly the domains' heads do on each other's features, on average."""
        eta, total = self.hparams["groupdro_eta"], 0.0
        pairs = [(z, y) for z, (_, y) in zip(features, minibatches, strict=True)]
        for Q, (head, (z, y)) in enumerate(zip(self.clist, pairs, strict=True)):
            others = [i for i in range(len(pairs)) if i != Q]
            weights = self.alpha[Q, others]
            logits = [head(pairs[i][0]) for i in others]
            risks = [
                F.cross_entropy(p, pairs[i][1])
                for p, i in zip(logits, others, strict=True)
            ]
            risks = weights * torch.stack(risks)  # P_i
            with torch.no_grad():
                slopes = [
                    weight * slope(p, pairs[i][1]).T @ pairs[i][0]
                    for weight, p, i in zip(weights, logits, others, strict=True)
                ]
            s = self.through_inverse_hessian(sum(slopes), head, z.detach())
            g = slope(head(z), y).T @ z
            total = total + risks.sum() - self.hparams["cos_lambda"] * (s * g).sum()
            self.alpha[Q, others] = weights * (eta * risks.detach()).exp()
        return total / len(pairs)

    def update(self, minibatches, unlabeled=None):
        x, y = all_of(minibatches)
        z = self.featurizer(x)
        nll = F.cross_entropy(self.classifier(z), y)
        loss = nll
        if self.update_count >= self.hparams["iters"]:
            self.alpha /= self.alpha.sum(1, keepdim=True)
            features = split(z, minibatches)
            for head, z_d, (_, y_d) in zip(
                self.clist, features, minibatches, strict=True
            ):
                if self.hparams["class_balanced"]:
                    head.weight.data.copy_(self.classifier.weight.data)
                self.fit(head, z_d.detach(), y_d)
            loss = nll + self.swapped(features, minibatches)
        descend(loss, self.optimizer_f, self.optimizer_c)
        self.update_count += 1
        return plain_numbers({"nll": nll, "trm_loss": loss - nll})
