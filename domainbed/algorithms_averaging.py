"""Averages of a network's weights, and ERM++, which answers with one.

Letters: n steps so far.
"""

import copy
import itertools
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from domainbed.algorithms import ERM, Minibatches, all_of, register
from domainbed.lib.bounds import at_least
from domainbed.lib.schedules import set_learning_rate

FALLS = 3  # of the learning rate, in ERM++'s search for it


class LARS(torch.optim.Optimizer):
    """Momentum SGD whose step on a tensor is as long as a share of its weights.

    Layer-wise adaptive rate scaling: You et al., 2017,
    https://arxiv.org/abs/1708.03888. Tensors of fewer than two dimensions are spared
    that and weight decay.
    """

    TRUST, MOMENTUM = 1e-3, 0.9

    def __init__(self, parameters, lr: float, weight_decay: float = 0.0):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                step = p.grad if p.ndim < 2 else self.scaled(p, group["weight_decay"])
                momentum = self.state[p].setdefault("mu", torch.zeros_like(p))
                momentum.mul_(self.MOMENTUM).add_(step)
                p.sub_(group["lr"] * momentum)

    def scaled(self, p: torch.Tensor, weight_decay: float) -> torch.Tensor:
        """The decayed gradient at TRUST times the weights' norm; as it is if either is
        zero.
        """
        step = p.grad + weight_decay * p
        ours, its = p.norm(), step.norm()
        factor = torch.where((ours > 0) & (its > 0), self.TRUST * ours / its, 1.0)
        return factor * step


@torch.no_grad()
def average_in(average: nn.Module, network: nn.Module, count: int) -> None:
    """Let `average`, a mean over `count` states of the network, hold one more.

    Statistics of batch norm count as weights do; whole numbers are copied.
    """
    for mean, new in zip(
        average.state_dict().values(), network.state_dict().values(), strict=True
    ):
        if mean.is_floating_point():
            new = (count * mean + new) / (count + 1)
        mean.copy_(new)


@register
class ERMPlusPlus(ERM):
    """Well-tuned ERM: Teterwak et al., 2023, "ERM++", https://arxiv.org/abs/2304.01973

    The classifier trains alone for `linear_steps` steps and one more. It answers with
    the average of the weights since step AVERAGED_FROM, whose own statistics of batch
    norm are taken from the batches.
    """

    AVERAGED_FROM = 600
    HPARAMS = {"linear_lr": at_least(0, 5e-5, lambda r: 10 ** r.uniform(-5, -3.5))}

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.linear_optimizer = self.optimizer_of(self.classifier, hparams["linear_lr"])
        self.network_sma = copy.deepcopy(self.network).requires_grad_(False)
        self.global_iter = self.sma_count = 0
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, patience=1, factor=0.1
        )
        self.lr_schedule: list[float] = []

    def make_optimizer(self, lr):
        return self.optimizer_of(self.network, lr)

    def optimizer_of(self, module: nn.Module, lr: float) -> torch.optim.Optimizer:
        kind = LARS if self.hparams["lars"] else torch.optim.Adam
        decay = self.hparams["weight_decay"]
        return kind(module.parameters(), lr=lr, weight_decay=decay)

    @property
    def linear(self) -> bool:
        """Whether the classifier trains alone."""
        return self.global_iter <= self.hparams["linear_steps"]

    def update(self, minibatches, unlabeled=None):
        x, y = all_of(minibatches)
        loss = F.cross_entropy(self.network(x), y)
        self.network.zero_grad()
        loss.backward()
        (self.linear_optimizer if self.linear else self.optimizer).step()
        self.global_iter += 1
        self.sma_count += self.global_iter >= self.AVERAGED_FROM
        average_in(self.network_sma, self.network, self.sma_count)
        if not self.hparams["freeze_bn"]:
            with torch.no_grad():
                self.network_sma.train()(x)
        return {"loss": loss.item()}

    def predict(self, x):
        return self.network_sma.eval()(x)

    def set_lr(
        self,
        eval_loaders_iid: Sequence[Iterable[Minibatches]] = (),
        schedule: list[float] | None = None,
        device: str | torch.device = "cpu",
    ) -> list[float]:
        """At a checkpoint, set the rate of the whole network.

        It is the schedule's first, and what is left of that is given back. Without one
        it falls tenfold where the average's loss on the loaders stopped falling, and
        all rates so far are given back; what would be the third fall is 0, the end.
        While the classifier trains alone nothing changes.
        """
        if self.linear:
            return self.lr_schedule if schedule is None else schedule
        if schedule is not None:
            set_learning_rate(self.optimizer, schedule[0])
            return schedule[1:] or schedule  # the last rate stays
        self.scheduler.step(self.held_out_loss(eval_loaders_iid, device))
        (rate,) = self.scheduler.get_last_lr()
        rates = [*self.lr_schedule, rate]
        falls = sum(a != b for a, b in itertools.pairwise(rates))
        self.lr_schedule.append(rate if falls < FALLS else 0.0)
        return self.lr_schedule

    @torch.no_grad()
    def held_out_loss(self, loaders, device) -> float:
        """The mean over loaders of the mean over batches."""
        means = []
        for loader in loaders:
            losses = [
                F.cross_entropy(self.predict(x.to(device)), y.to(device))
                for x, y in loader
            ]
            means.append(torch.stack(losses).mean())
        return torch.stack(means).mean().item()
