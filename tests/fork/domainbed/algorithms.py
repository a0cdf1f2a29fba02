"""The least of a DomainBed of others: how its algorithms are found, and ERM."""

import torch
import torch.nn.functional as F

from domainbed import networks

ALGORITHMS = [
    "ERM",
]


def get_algorithm_class(algorithm_name):
    if algorithm_name not in globals():
        raise NotImplementedError(f"no algorithm {algorithm_name}")
    return globals()[algorithm_name]


class Algorithm(torch.nn.Module):
    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__()
        self.hparams = hparams

    def update(self, minibatches, unlabeled=None):
        raise NotImplementedError

    def predict(self, x):
        raise NotImplementedError


class ERM(Algorithm):
    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        n_inputs = torch.Size(input_shape).numel()
        self.network = networks.MLP(n_inputs, num_classes, hparams)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(),
            lr=hparams["lr"],
            weight_decay=hparams["weight_decay"],
        )

    def update(self, minibatches, unlabeled=None):
        x, y = (torch.cat(parts) for parts in zip(*minibatches, strict=True))
        loss = F.cross_entropy(self.predict(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item()}

    def predict(self, x):
        return self.network(x.flatten(1))
