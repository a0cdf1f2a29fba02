"""Methods that compare the domains' gradients, or follow them into features.

Letters: M training domains, N items, z (N, F) features, g_d the gradient of a domain's
risk R_d.
"""

import warnings
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from domainbed.algorithms import ERM, all_of, plain_numbers, register, split
from domainbed.algorithms_risk import Annealed
from domainbed.lib.bounds import at_least, between


class ComparedGradients(ERM):
    """An ERM that sees the gradient of every domain's risk."""

    def domain_gradients(self, minibatches, create_graph: bool = False):
        """R_d, and for each parameter that trains, it and its g_d (M, *shape)."""
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        # A ViT's fused attention has no second derivative.
        with sdpa_kernel(SDPBackend.MATH) if create_graph else nullcontext():
            R = [F.cross_entropy(self.network(x), y) for x, y in minibatches]
        gradients = [
            torch.autograd.grad(r, parameters, create_graph=create_graph) for r in R
        ]
        stacked = [torch.stack(g) for g in zip(*gradients, strict=True)]
        return torch.stack(R), list(zip(parameters, stacked, strict=True))


class MaskedGradients(ComparedGradients):
    """Steps along the mean gradient where a mask lets it through, made longer by what
    the mask takes from a parameter tensor.
    """

    def mask(self, g: torch.Tensor) -> torch.Tensor:
        """Of gradients g (M, *shape): (*shape)."""
        raise NotImplementedError

    def update(self, minibatches, unlabeled=None):
        R, gradients = self.domain_gradients(minibatches)
        for parameter, g in gradients:
            mask = self.mask(g)
            parameter.grad = mask * g.mean(0) / (1e-10 + mask.mean())
        self.optimizer.step()
        return plain_numbers({"loss": R.mean()})


@register
class ANDMask(MaskedGradients):
    """Where the domains' signs agree: Parascandolo et al., 2021, "Learning
    Explanations that are Hard to Vary", https://arxiv.org/abs/2009.00329
    """

    HPARAMS = {"tau": between(0, 1, 1.0, lambda r: r.uniform(0.5, 1.0))}

    def mask(self, g):
        return (g.sign().mean(0).abs() >= self.hparams["tau"]).to(g.dtype)


@register
class SANDMask(MaskedGradients):
    """ANDMask made smooth, and stricter where gradients differ in size: Shahtalebi et
    al., 2021, https://arxiv.org/abs/2106.02266

    At its default tau of 1 no sign agreement is above it and nothing trains.
    """

    HPARAMS = {
        "tau": between(0, 1, 1.0, lambda r: r.uniform(0.0, 1.0)),
        "k": at_least(0, 1e1, lambda r: 10 ** r.uniform(-3, 5)),
    }

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.register_buffer("update_count", torch.tensor([0]))  # upstream's, unused
        if hparams["tau"] >= 1:
            warnings.warn(
                f"SANDMask trains nothing at tau {hparams['tau']}; set hyperparameter "
                "tau below 1.",
                stacklevel=2,
            )

    def mask(self, g):
        variance = g.var(0) if len(g) > 1 else torch.full_like(g[0], 1e-17)
        agreement = g.sign().mean(0).abs() - self.hparams["tau"]
        mask = (self.hparams["k"] / variance * agreement).tanh().clamp_min(0)
        return mask.nan_to_num(1e-17)


@register
class IGA(ComparedGradients):
    """The gradients' variance as penalty: Koyama & Yamaguchi, 2021, "When is
    invariance useful in an Out-of-Distribution Generalization problem?",
    https://arxiv.org/abs/2008.01883
    """

    HPARAMS = {"penalty": at_least(0, 1000.0, lambda r: 10 ** r.uniform(1, 5))}

    def loss(self, minibatches):
        R, gradients = self.domain_gradients(minibatches, create_graph=True)
        penalty = sum(((g - g.mean(0).detach()) ** 2).sum() for _, g in gradients)
        loss = R.mean()
        objective = loss + self.hparams["penalty"] * penalty
        return objective, {"loss": loss, "penalty": penalty}


def linear_variance(z, delta) -> torch.Tensor:
    """The variance (C (F + 1),) over items of a linear head's gradients.

    An item's is the outer product of delta (n, C), the slope of its loss by its logits,
    and of [z, 1] (n, F + 1); its square is that of the squares.
    """
    z = torch.cat([z, torch.ones_like(z[:, :1])], 1)
    mean, of_squares = delta.T @ z / len(z), (delta**2).T @ z**2 / len(z)
    return (of_squares - mean**2).flatten()


def item_gradients(head: nn.Module, z, y) -> torch.Tensor:
    """The gradient (n, K) of each item's cross-entropy by the head's K parameters."""

    def loss(parameters, z, y):
        logits = torch.func.functional_call(head, parameters, (z[None],))
        return F.cross_entropy(logits, y[None])

    of_item = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    gradients = of_item(dict(head.named_parameters()), z, y)
    return torch.cat([g.flatten(1) for g in gradients.values()], 1)


@register
class Fishr(Annealed):
    """The classifier's gradients should vary alike in all domains: Rame et al., 2022,
    "Fishr", https://arxiv.org/abs/2109.02934

    m_d, a running average of the variance over items of a domain's gradients, is
    compared with the domains' mean.
    """

    NEW_STATE = ("variances",)
    ANNEALED = {"lambda": "penalty_anneal_iters"}
    HPARAMS = {
        "lambda": at_least(0, 1000.0, lambda r: 10 ** r.uniform(1.0, 4.0)),
        "penalty_anneal_iters": at_least(
            0, 1500, lambda r: int(r.uniform(0.0, 5000.0))
        ),
        "ema": between(0, 1, 0.95, lambda r: r.uniform(0.90, 0.99)),
    }

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        n_parameters = sum(p.numel() for p in self.classifier.parameters())
        self.register_buffer("variances", torch.zeros(num_domains, n_parameters))

    def variance(self, z, logits, y) -> torch.Tensor:
        """Over a domain's items, of each parameter's gradient: (K,)."""
        if isinstance(self.classifier, nn.Linear):
            delta = logits.softmax(-1) - F.one_hot(y, logits.shape[1])
            return linear_variance(z, delta)
        return item_gradients(self.classifier, z, y).var(0, correction=0)

    def loss(self, minibatches):
        x, y = all_of(minibatches)
        z = self.featurizer(x)
        logits = self.classifier(z)
        parts = zip(*(split(t, minibatches) for t in (z, logits, y)), strict=True)
        v = torch.stack([self.variance(*part) for part in parts])  # (M, K)
        ema = self.hparams["ema"]
        m = ema * self.variances + (1 - ema) * v
        self.variances = m.detach()
        u = m / (1 - ema)
        penalty = ((u - u.mean(0)) ** 2).mean()
        nll = F.cross_entropy(logits, y)
        loss = nll + self.weight("lambda", before=0.0) * penalty
        return loss, {"loss": loss, "nll": nll, "penalty": penalty}


@register
class RSC(ERM):
    """The features that an answer leans on most are left out: Huang et al., 2020,
    "Self-Challenging Improves Cross-Domain Generalization",
    https://arxiv.org/abs/2007.02454

    Of each item the `rsc_f_drop_factor` of the features whose gradient is highest, but
    only of the `rsc_b_drop_factor` of the items that lose most confidence by it.
    """

    HPARAMS = {
        "rsc_f_drop_factor": between(0, 1, 1 / 3, lambda r: r.uniform(0, 0.5)),
        "rsc_b_drop_factor": between(0, 1, 1 / 3, lambda r: r.uniform(0, 0.5)),
    }

    def kept(self, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Which features (N, F) of which items stay."""
        z = z.detach().requires_grad_()
        logits = self.classifier(z)
        (g,) = torch.autograd.grad(logits.gather(1, y[:, None]).sum(), z)
        share = 100 * (1 - self.hparams["rsc_f_drop_factor"])
        # numpy's percentiles, interpolated: an entry that is one must not be below it.
        highest = torch.Tensor(np.percentile(g.cpu(), share, axis=1)).to(g.device)
        low = g < highest[:, None]
        with torch.no_grad():
            before, after = (
                p.softmax(1).gather(1, y[:, None])
                for p in (logits, self.classifier(z * low))
            )
        change = before - after  # (N, 1)
        share = 100 * (1 - self.hparams["rsc_b_drop_factor"])
        return low | (change < float(np.percentile(change.cpu(), share)))

    def loss(self, minibatches):
        x, y = all_of(minibatches)
        z = self.featurizer(x)
        loss = F.cross_entropy(self.classifier(z * self.kept(z, y)), y)
        return loss, {"loss": loss}
