"""Penalties on how far apart the domains' features are.

Letters: M training domains, N items of all domains, z (., F) features, R_d a domain's
risk.
"""

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from domainbed.algorithms import ERM, Featurized, all_of, domain_labels, register
from domainbed.algorithms_risk import joint, risks
from domainbed.lib.bounds import at_least
from domainbed.lib.divergences import gaussian_mmd, mean_cov


class Matching(ERM):
    """The mean of the penalties of all pairs of domains, `mmd_gamma` times."""

    HPARAMS = {"mmd_gamma": at_least(0, 1.0, lambda r: 10 ** r.uniform(-1, 1))}

    @staticmethod
    def distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Between samples (n, F) and (m, F)."""
        raise NotImplementedError

    def penalty(self, features: list[torch.Tensor]) -> torch.Tensor:
        pairs = itertools.combinations(features, 2)
        distances = [self.distance(a, b) for a, b in pairs]
        return torch.stack(distances).mean() if distances else torch.zeros(())

    def loss(self, minibatches):
        features = [self.featurizer(x) for x, _ in minibatches]
        logits = [self.classifier(z) for z in features]
        loss, penalty = risks(logits, minibatches).mean(), self.penalty(features)
        objective = loss + self.hparams["mmd_gamma"] * penalty
        return objective, {"loss": loss, "penalty": penalty}


@register
class MMD(Matching):
    """The maximum mean discrepancy: Li et al., 2018, "Domain Generalization with
    Adversarial Feature Learning", its penalty alone, without the adversary,
    https://openaccess.thecvf.com/content_cvpr_2018/papers/Li_Domain_Generalization_With_CVPR_2018_paper.pdf
    """

    distance = staticmethod(gaussian_mmd)


@register
class CORAL(Matching):
    """Means and covariances: Sun & Saenko, 2016, "Deep CORAL",
    https://arxiv.org/abs/1607.01719
    """

    MIN_ITEMS = 2
    distance = staticmethod(mean_cov)


class CausIRL(Matching):
    """Each domain's features cut in two at random, all heads matched with all tails:
    Chevalley et al., 2022, "Invariant Causal Mechanisms through Distribution
    Matching", https://arxiv.org/abs/2206.11646
    """

    def penalty(self, features):
        cuts = [np.random.randint(0, len(z)) for z in features]
        both = list(zip(features, cuts, strict=True))
        heads = torch.cat([z[:cut] for z, cut in both])
        tails = torch.cat([z[cut:] for z, cut in both])
        if min(len(heads), len(tails)) < 2:
            return torch.zeros(())
        return torch.nan_to_num(self.distance(heads, tails))


@register
class CausIRL_MMD(CausIRL, MMD):
    """By the maximum mean discrepancy."""


@register
class CausIRL_CORAL(CausIRL, CORAL):
    """By means and covariances."""

    MIN_ITEMS = 1


def bottleneck(
    s: torch.Tensor, among: torch.Tensor, chosen: torch.Tensor
) -> torch.Tensor:
    """The log share, per row of similarities s (n, N), that the chosen entries have
    among the others: log (sum of exp s over `chosen` / that over `among`).
    """
    outside = -torch.inf
    share = s.masked_fill(~chosen, outside).logsumexp(1)
    return share - s.masked_fill(~among, outside).logsumexp(1)


@register
class CAD(Featurized):
    """A contrastive domain bottleneck: Ruan et al., 2022, "Optimal Representations for
    Covariate Shift", https://arxiv.org/abs/2201.00057

    An item's neighbours, by softmax over similarities, should be of other domains
    (`is_flipped`) or not of its own. As released, only items count that have another of
    their label, and not flipped, an item is among its own neighbours, at similarity 0.
    """

    HPARAMS = {
        "lmbda": at_least(
            0, 0.1, lambda r: r.choice([1e-4, 1e-3, 1e-2, 1e-1, 1, 1e1, 1e2])
        ),
        "temperature": at_least(1e-6, 0.1, lambda r: r.choice([0.05, 0.1])),
        "is_normalized": (False, None),
        "is_project": (False, None),
        "is_flipped": (True, None),
    }
    BASE_TEMPERATURE = 0.07

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.project = nn.Identity()
        if hparams["is_project"]:
            width = self.featurizer.n_outputs
            self.project = nn.Sequential(
                nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 128)
            )
        self.optimizer = self.make_optimizer(hparams["lr"])

    def make_optimizer(self, lr):
        return self.adam(lr, self.featurizer, self.classifier, self.project)

    @staticmethod
    def compared(same_label, same_domain, itself):
        """What each item (N, N) is compared among, and what of it is of its domain."""
        return ~itself, same_domain

    def penalty(self, z, y, d):
        """Of features z (N, F), their labels and the numbers of their domains."""
        z = self.project(z)
        if self.hparams["is_normalized"]:
            z = F.normalize(z, dim=1)
        temperature = self.hparams["temperature"]
        itself = torch.eye(len(y), dtype=torch.bool, device=y.device)
        s = (z @ z.T / temperature).masked_fill(itself, 0.0)
        same_label, same_domain = y[:, None] == y, d[:, None] == d
        among, own = self.compared(same_label, same_domain, itself)
        chosen = among & ~same_domain if self.hparams["is_flipped"] else own
        rows = (same_label & ~itself).any(1) & chosen.any(1)
        if not rows.any():
            return z.new_zeros(())
        share = bottleneck(s[rows], among[rows], chosen[rows])
        sign = -1 if self.hparams["is_flipped"] else 1
        return sign * temperature / self.BASE_TEMPERATURE * share.mean()

    def loss(self, minibatches):
        _, y = all_of(minibatches)
        z = torch.cat(joint(self.featurizer, minibatches))
        clf_loss = F.cross_entropy(self.classifier(z), y)
        bn_loss = self.penalty(z, y, domain_labels(minibatches))
        loss = clf_loss + self.hparams["lmbda"] * bn_loss
        return loss, {"clf_loss": clf_loss, "bn_loss": bn_loss, "total_loss": loss}


@register
class CondCAD(CAD):
    """CAD of the same paper, of items with one label: a softmax in each class."""

    @staticmethod
    def compared(same_label, same_domain, itself):
        among = same_label & ~itself
        return among, among & same_domain
