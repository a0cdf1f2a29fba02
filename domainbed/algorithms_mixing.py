"""Objectives that mix examples or their features.

Letters: M training domains, N items of all of them, C classes, F features; z = phi(x)
(N, F), p = w(z) (N, C).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from domainbed import networks
from domainbed.algorithms import (
    ERM,
    OwnNetwork,
    all_of,
    descend,
    plain_numbers,
    register,
)
from domainbed.lib.bounds import at_least
from domainbed.lib.errors import InputError


@register
class Mixup(ERM):
    """Examples of two domains, mixed: Yan et al., 2020, "Improve Unsupervised Domain
    Adaptation with Mixup Training", https://arxiv.org/abs/2001.00677

    The domains stand in a random cycle; each is mixed with the next one.
    """

    HPARAMS = {"mixup_alpha": at_least(1e-6, 0.2, lambda r: 10 ** r.uniform(-1, 1))}

    def loss(self, minibatches):
        order = torch.randperm(len(minibatches)).tolist()
        losses = []
        for i, j in zip(order, order[1:] + order[:1], strict=True):
            n = min(len(minibatches[d][1]) for d in (i, j))
            (x_i, y_i), (x_j, y_j) = ([t[:n] for t in minibatches[d]] for d in (i, j))
            share = np.random.beta(*[self.hparams["mixup_alpha"]] * 2)
            p = self.predict(share * x_i + (1 - share) * x_j)
            of_i, of_j = F.cross_entropy(p, y_i), F.cross_entropy(p, y_j)
            losses.append(share * of_i + (1 - share) * of_j)
        loss = torch.stack(losses).mean()
        return loss, {"loss": loss}


@register
class SagNet(OwnNetwork):
    """A style that tells no class: Nam et al., 2021, "Reducing Domain Gap by Reducing
    Style Bias", https://arxiv.org/abs/1910.11645

    An item's style is the mean and the variance of its features, its content what is
    left. A content head learns while styles are mixed, a style head while contents
    are swapped, and the featurizer so that the style head cannot tell.
    """

    HPARAMS = {"sag_w_adv": at_least(0, 0.1, lambda r: 10 ** r.uniform(-2, 1))}

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.network_f = networks.Featurizer(input_shape, hparams)
        n_features = self.network_f.n_outputs
        self.network_c = self.make_classifier(n_features, num_classes)
        self.network_s = self.make_classifier(n_features, num_classes)
        self.optimizer_f = self.adam(hparams["lr"], self.network_f)
        self.optimizer_c = self.adam(hparams["lr"], self.network_c)
        self.optimizer_s = self.adam(hparams["lr"], self.network_s)

    @staticmethod
    def randomize(z: torch.Tensor, what: str) -> torch.Tensor:
        """Features (N, F) with other items' `style` mixed in, or their `content`."""
        share = torch.rand(len(z), 1).to(z.device)
        other = torch.randperm(len(z))
        var, mean = torch.var_mean(z, -1, keepdim=True)
        content = (z - mean) / (var + 1e-5).sqrt()
        if what == "style":
            mean = share * mean + (1 - share) * mean[other]
            var = share * var + (1 - share) * var[other]
        else:
            content = content[other].detach()
        return content * (var + 1e-5).sqrt() + mean

    def update(self, minibatches, unlabeled=None):
        x, y = all_of(minibatches)

        p = self.network_c(self.randomize(self.network_f(x), "style"))
        loss_c = F.cross_entropy(p, y)
        descend(loss_c, self.optimizer_f, self.optimizer_c)

        with torch.no_grad():
            z = self.network_f(x)
        p = self.network_s(self.randomize(z, "content"))
        loss_s = F.cross_entropy(p, y)
        descend(loss_s, self.optimizer_s)

        p = self.network_s(self.randomize(self.network_f(x), "content"))
        loss_adv = -self.hparams["sag_w_adv"] * p.log_softmax(1).mean()
        descend(loss_adv, self.optimizer_f)

        return plain_numbers({"loss_c": loss_c, "loss_s": loss_s, "loss_adv": loss_adv})

    def predict(self, x):
        return self.network_c(self.network_f(x))


@register
class SelfReg(ERM):
    """Items of a class near each other: Kim et al., 2021, "SelfReg: Self-supervised
    Contrastive Regularization", https://arxiv.org/abs/2104.09841

    Each item is held near another of its class and near a mixture of two, in logits
    and, through the projection cdpl, in features. `as_released` cdpl is not trained;
    the paper's stochastic weight averaging and curriculum are left out.
    """

    HPARAMS = {"as_released": (True, None)}

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        if num_domains * hparams["batch_size"] < 2:
            raise InputError("SelfReg needs two items in a batch; raise batch_size.")
        n = self.featurizer.n_outputs
        width = n if n == 2048 else 2 * n
        self.cdpl = nn.Sequential(
            nn.Linear(n, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, n),
            nn.BatchNorm1d(n),
        )
        if not self.as_released:
            self.optimizer.add_param_group({"params": self.cdpl.parameters()})

    @staticmethod
    def partners(y: torch.Tensor) -> list[torch.Tensor]:
        """Two permutations (N,) within each class of items sorted by label."""
        _, counts = y.unique_consecutive(return_counts=True)
        start, pairs = 0, []
        for n in counts.tolist():
            pairs.append([start + torch.randperm(n) for _ in range(2)])
            start += n
        return [torch.cat(parts).to(y.device) for parts in zip(*pairs, strict=True)]

    def loss(self, minibatches):
        share = np.random.beta(0.5, 0.5)
        x, y = all_of(minibatches)
        y, order = y.sort()
        z = self.featurizer(x[order])
        u, p = self.cdpl(z), self.classifier(z)
        one, two = self.partners(y)

        def mixed(t):
            return share * t[one] + (1 - share) * t[two]

        to_one = F.mse_loss(p, p[one]) + 0.3 * F.mse_loss(z, u[one])
        to_mixed = F.mse_loss(p, mixed(p)) + 0.3 * F.mse_loss(z, mixed(u))
        nearness = share * to_one + (1 - share) * to_mixed
        loss = F.cross_entropy(p, y)
        loss = loss + loss.detach().clamp(max=1) * nearness
        return loss, {"loss": loss}
