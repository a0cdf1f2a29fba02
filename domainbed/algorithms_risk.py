"""Objectives that are functions of the domains' risks.

Letters: M training domains, B_d items of domain d, C classes; R_d is the mean
cross-entropy of domain d, R that of all items.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from domainbed.algorithms import ERM, SMALL_IMAGES, Minibatches, all_of, register, split
from domainbed.lib.bounds import at_least, between
from domainbed.lib.divergences import gaussian_mmd
from domainbed.lib.errors import InputError

Parts = Sequence[torch.Tensor]  # one for each domain


def joint(network: nn.Module, minibatches: Minibatches) -> Parts:
    """What the network makes of each domain, in one forward pass of all."""
    x, _ = all_of(minibatches)
    return split(network(x), minibatches)


def risks(logits: Parts, minibatches: Minibatches) -> torch.Tensor:
    """R_d (M,), of each domain's logits (B_d, C)."""
    pairs = zip(logits, minibatches, strict=True)
    return torch.stack([F.cross_entropy(p, y) for p, (_, y) in pairs])


class Annealed(ERM):
    """A penalty that comes to its full weight at a step A, which hyperparameters name.

    There, before the step, the optimizer is made anew: its averages of gradients are
    of another objective.
    """

    ANNEALED: dict[str, str]  # the row of a weight -> the row of its A
    ANNEALED_LR = "lr"  # the row of the new optimizer's rate

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.register_buffer("update_count", torch.tensor([0]))

    def weight(self, row: str, before: float) -> float:
        """The row's value from its step A on, until then that of `before`."""
        return self.hparams[row] if self.annealed(row) else before

    def annealed(self, row: str) -> bool:
        """Whether the row's step A has come."""
        return self.update_count.item() >= self.hparams[self.ANNEALED[row]]

    def update(self, minibatches, unlabeled=None):
        steps = [self.hparams[row] for row in self.ANNEALED.values()]
        if self.update_count.item() in steps:
            self.optimizer = self.make_optimizer(self.hparams[self.ANNEALED_LR])
        logged = super().update(minibatches, unlabeled)
        self.update_count += 1
        return logged


@register
class GroupDRO(ERM):
    """The worst domains weigh more: Sagawa et al., 2020, "Distributionally Robust
    Neural Networks for Group Shifts", https://arxiv.org/abs/1911.08731

    q_d grows by exp(eta R_d), sum q = 1; the loss is q . R.
    """

    HPARAMS = {"groupdro_eta": at_least(0, 1e-2, lambda r: 10 ** r.uniform(-3, -1))}

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.register_buffer("q", torch.ones(num_domains))

    def loss(self, minibatches):
        R = risks([self.network(x) for x, _ in minibatches], minibatches)
        # A model that upstream saved before its first step has none yet.
        q = self.q if len(self.q) else torch.ones_like(R)
        q = q * (self.hparams["groupdro_eta"] * R.detach()).exp()
        self.q = q / q.sum()
        loss = self.q @ R
        return loss, {"loss": loss}


@register
class VREx(Annealed):
    """The risks' variance as penalty: Krueger et al., 2021, "Out-of-Distribution
    Generalization via Risk Extrapolation", https://arxiv.org/abs/2003.00688
    """

    ANNEALED = {"vrex_lambda": "vrex_penalty_anneal_iters"}
    HPARAMS = {
        "vrex_lambda": at_least(0, 1e1, lambda r: 10 ** r.uniform(-1, 5)),
        "vrex_penalty_anneal_iters": at_least(
            0, 500, lambda r: int(10 ** r.uniform(0, 4))
        ),
    }

    def loss(self, minibatches):
        R = risks(joint(self.network, minibatches), minibatches)
        penalty = R.var(unbiased=False)
        loss = R.mean() + self.weight("vrex_lambda", before=1.0) * penalty
        return loss, {"loss": loss, "nll": R.mean(), "penalty": penalty}


def scale_gradient(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """d/ds of the cross-entropy of s * logits at s = 1; 0 of no items."""
    p = logits.softmax(-1)
    slopes = (p * logits).sum(-1) - logits.gather(1, y[:, None])[:, 0]
    return slopes.sum() / max(len(y), 1)


@register
class IRM(Annealed):
    """One classifier for all domains: Arjovsky et al., 2019, "Invariant Risk
    Minimization", https://arxiv.org/abs/1907.02893

    The penalty is its IRMv1 in the unbiased form (section 3.1): a domain's squared
    slope as the product of the slopes of two halves of its batch.
    """

    ANNEALED = {"irm_lambda": "irm_penalty_anneal_iters"}
    HPARAMS = {
        "irm_lambda": at_least(0, 1e2, lambda r: 10 ** r.uniform(-1, 5)),
        "irm_penalty_anneal_iters": at_least(
            0, 500, lambda r: int(10 ** r.uniform(0, 4))
        ),
    }

    def irm_penalty(self, logits: Parts, minibatches: Minibatches) -> torch.Tensor:
        slopes = [
            scale_gradient(p[::2], y[::2]) * scale_gradient(p[1::2], y[1::2])
            for p, (_, y) in zip(logits, minibatches, strict=True)
        ]
        return torch.stack(slopes).mean()

    def loss(self, minibatches):
        logits = joint(self.network, minibatches)
        nll = risks(logits, minibatches).mean()
        penalty = self.irm_penalty(logits, minibatches)
        loss = nll + self.weight("irm_lambda", before=1.0) * penalty
        return loss, {"loss": loss, "nll": nll, "penalty": penalty}


@register
class IB_ERM(Annealed):
    """Features of small variance: Ahuja et al., 2021, "Invariance Principle Meets
    Information Bottleneck", https://arxiv.org/abs/2106.06607

    The penalty is a feature's variance over a domain's items, meaned over both.
    """

    MIN_ITEMS = 2
    ANNEALED = {"ib_lambda": "ib_penalty_anneal_iters"}
    HPARAMS = {
        "ib_lambda": at_least(0, 1e2, lambda r: 10 ** r.uniform(-1, 5)),
        "ib_penalty_anneal_iters": at_least(
            0, 500, lambda r: int(10 ** r.uniform(0, 4))
        ),
    }

    def ib_penalty(self, features: Parts) -> torch.Tensor:
        return torch.stack([z.var(0).mean() for z in features]).mean()

    def loss(self, minibatches):
        features = joint(self.featurizer, minibatches)
        logits = split(self.classifier(torch.cat(features)), minibatches)
        nll = risks(logits, minibatches).mean()
        penalty = self.ib_penalty(features)
        loss = nll + self.weight("ib_lambda", before=0.0) * penalty
        return loss, {"loss": loss, "nll": nll, "IB_penalty": penalty}


@register
class IB_IRM(IRM, IB_ERM):
    """The penalties of IRM and IB_ERM together: Ahuja et al., 2021, as IB_ERM,
    https://arxiv.org/abs/2106.06607
    """

    ANNEALED = IRM.ANNEALED | IB_ERM.ANNEALED

    def loss(self, minibatches):
        features = joint(self.featurizer, minibatches)
        logits = split(self.classifier(torch.cat(features)), minibatches)
        nll = risks(logits, minibatches).mean()
        irm, ib = self.irm_penalty(logits, minibatches), self.ib_penalty(features)
        loss = nll + self.weight("irm_lambda", before=1.0) * irm
        loss = loss + self.weight("ib_lambda", before=0.0) * ib
        logged = {"loss": loss, "nll": nll, "IRM_penalty": irm, "IB_penalty": ib}
        return loss, logged


def kernel_quantile(R: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """The alpha-quantile of a Gaussian kernel density over the risks (M,), bisected.

    The bandwidth is Silverman's. A gradient goes through the ends of the bisection.
    """
    h = 1.06 * R.std() * len(R) ** -0.2
    normal = torch.distributions.Normal(0.0, 1.0)
    low, high = (end + h * normal.icdf(alpha) for end in (R.min(), R.max()))
    middle = (low + high) / 2
    for _ in range(32):
        if normal.cdf((middle - R) / h).mean() > alpha:
            high = middle
        else:
            low = middle
        before, middle = middle, (low + high) / 2
        if middle == before:
            break
    return middle


@register
class EQRM(Annealed):
    """A quantile of the risks: Eastwood et al., 2022, "Probable Domain Generalization
    via Quantile Risk Minimization", https://arxiv.org/abs/2207.09944

    A drawn burn-in is no whole number of steps; `as_released` the optimizer is then
    never made anew, with `eqrm_lr`; otherwise it is, at the next whole step.
    """

    MIN_DOMAINS = 2
    ANNEALED = {"eqrm_quantile": "eqrm_burnin_iters"}
    ANNEALED_LR = "eqrm_lr"
    HPARAMS = {
        "eqrm_quantile": between(0, 1, 0.75, lambda r: r.uniform(0.5, 0.99)),
        "eqrm_burnin_iters": at_least(0, 2500.0, lambda r: 10 ** r.uniform(2.5, 3.5)),
        "eqrm_lr": at_least(0, 1e-6, lambda r: 10 ** r.uniform(-7, -5)),
        "as_released": (True, None),
    }

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        if not self.as_released:
            whole = math.ceil(hparams["eqrm_burnin_iters"])
            self.hparams = hparams | {"eqrm_burnin_iters": whole}
        alpha = torch.tensor(hparams["eqrm_quantile"], dtype=torch.float64)
        self.register_buffer("alpha", alpha)

    def loss(self, minibatches):
        R = risks([self.network(x) for x, _ in minibatches], minibatches)
        # Equal risks have no bandwidth, and are their own quantile.
        of_all = self.annealed("eqrm_quantile") and R.max() > R.min()
        loss = kernel_quantile(R, self.alpha) if of_all else R.mean()
        return loss, {"loss": loss}


@register
class RDM(Annealed):
    """The worst domain's losses like all domains': Nguyen et al., 2024, "Domain
    Generalisation via Risk Distribution Matching", https://arxiv.org/abs/2310.18598

    The penalties are the squared MMD between the losses of the domain of the highest
    risk and all losses, and the variances of both.
    """

    MIN_DOMAINS = MIN_ITEMS = 2
    ANNEALED = {"rdm_lambda": "rdm_penalty_anneal_iters"}
    ANNEALED_LR = "rdm_lr"
    GAMMAS = tuple(10.0**power for power in range(-4, 4))

    @classmethod
    def hparam_rows(cls, dataset):
        rows = {
            "rdm_lambda": at_least(0, 5.0, lambda r: r.uniform(0.1, 10)),
            "rdm_penalty_anneal_iters": at_least(
                0, 1500, lambda r: int(r.uniform(800, 2700))
            ),
            "variance_weight": at_least(0, 0.004, lambda r: r.uniform(0.001, 0.007)),
            "rdm_lr": at_least(0, 1.5e-5, lambda r: r.uniform(8e-6, 2e-5)),
        }
        if dataset not in SMALL_IMAGES:
            rows["batch_size"] = at_least(1, 88, lambda r: int(r.uniform(70, 100)))
        if dataset in ("DomainNet", "TerraIncognita"):
            rows["batch_size"] = at_least(1, 40, lambda r: int(r.uniform(30, 60)))
        if dataset in ("TerraIncognita", "OfficeHome", "DomainNet"):
            rows["variance_weight"] = at_least(0, 0.0)
        if dataset in ("PACS", "TerraIncognita"):
            rows["rdm_lambda"] = at_least(0, 5.0, lambda r: r.uniform(1, 10))
        if dataset == "DomainNet":
            rows |= {
                "rdm_lambda": at_least(0, 0.5, lambda r: r.uniform(0.1, 1)),
                "rdm_penalty_anneal_iters": at_least(
                    0, 2400, lambda r: int(r.uniform(1500, 3000))
                ),
            }
        return super().hparam_rows(dataset) | rows

    def loss(self, minibatches):
        if len({len(y) for _, y in minibatches}) > 1:
            raise InputError("RDM needs batches of one size from all domains.")
        _, y = all_of(minibatches)
        logits = torch.cat(joint(self.network, minibatches))
        losses = F.cross_entropy(logits, y, reduction="none")
        losses = losses.view(len(minibatches), -1)  # (M, B)
        R = losses.mean(1)
        worst, every = losses[R.argmax()], losses.flatten()
        matching = gaussian_mmd(worst[:, None], every[:, None], self.GAMMAS)
        variance = every.var() + worst.var()
        loss = R.mean()
        if self.annealed("rdm_lambda"):
            loss = loss + self.hparams["rdm_lambda"] * matching
            loss = loss + self.hparams["variance_weight"] * variance
        return loss, {
            "update_count": self.update_count.item() + 1.0,
            "total_loss": loss,
            "erm_loss": R.mean(),
            "matching_penalty": matching,
            "variance_penalty": variance,
            "rdm_lambda": self.hparams["rdm_lambda"],
        }


@register
class SD(ERM):
    """Small logits: Pezeshki et al., 2021, "Gradient Starvation",
    https://arxiv.org/abs/2011.09468
    """

    HPARAMS = {"sd_reg": at_least(0, 0.1, lambda r: 10 ** r.uniform(-5, -1))}

    def loss(self, minibatches):
        x, y = all_of(minibatches)
        logits = self.network(x)
        loss, penalty = F.cross_entropy(logits, y), (logits**2).mean()
        objective = loss + self.hparams["sd_reg"] * penalty
        return objective, {"loss": loss, "penalty": penalty}
