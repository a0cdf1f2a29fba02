"""Objectives that are functions of the domains' risks.

Letters: M training domains, B_d items of domain d, C classes; R_d is the mean
cross-entropy of domain d, R that of all items.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from domainbed.algorithms import ERM, Minibatches, all_of, register, split

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
        annealed = self.update_count.item() >= self.hparams[self.ANNEALED[row]]
        return self.hparams[row] if annealed else before

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

    HPARAMS = {"groupdro_eta": (1e-2, lambda r: 10 ** r.uniform(-3, -1))}

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.register_buffer("q", torch.ones(num_domains))

    def loss(self, minibatches):
        R = risks([self.network(x) for x, _ in minibatches], minibatches)
        q = self.q * (self.hparams["groupdro_eta"] * R.detach()).exp()
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
        "vrex_lambda": (1e1, lambda r: 10 ** r.uniform(-1, 5)),
        "vrex_penalty_anneal_iters": (500, lambda r: int(10 ** r.uniform(0, 4))),
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
        "irm_lambda": (1e2, lambda r: 10 ** r.uniform(-1, 5)),
        "irm_penalty_anneal_iters": (500, lambda r: int(10 ** r.uniform(0, 4))),
    }

    def penalty(self, logits: Parts, minibatches: Minibatches) -> torch.Tensor:
        slopes = [
            scale_gradient(p[::2], y[::2]) * scale_gradient(p[1::2], y[1::2])
            for p, (_, y) in zip(logits, minibatches, strict=True)
        ]
        return torch.stack(slopes).mean()

    def loss(self, minibatches):
        logits = joint(self.network, minibatches)
        nll = risks(logits, minibatches).mean()
        penalty = self.penalty(logits, minibatches)
        loss = nll + self.weight("irm_lambda", before=1.0) * penalty
        return loss, {"loss": loss, "nll": nll, "penalty": penalty}
