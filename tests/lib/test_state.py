"""Any algorithm can stop after any step and go on in a new object."""

import copy

import pytest
import torch
from torch import nn

from domainbed.algorithms import Algorithm
from domainbed.lib.errors import InputError


class Toy(Algorithm):
    """Everything that a state must find, wherever it hangs."""

    def __init__(self, size=3):
        super().__init__((size,), 2, 1, {"lr": 0.1})
        self.net, self.other = nn.Linear(size, 2), nn.Linear(size, 2)
        self.optimizers = {
            "net": torch.optim.Adam(self.net.parameters(), lr=0.1),
            "others": [torch.optim.SGD(self.other.parameters(), lr=0.1, momentum=0.9)],
        }
        self.inner = nn.Module()
        self.inner.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01)
        self.inner.seen = 0
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizers["net"], 2, 0.5)
        self.count, self.penalty, self.history = 0, 1.0, []
        self.means = {"a": [torch.zeros(2), None]}
        self.late = None
        self.register_buffer("queue", torch.zeros(0, 2))

    def update(self, minibatches, unlabeled=None):
        ((x, _),) = minibatches
        self.count += 1
        self.inner.seen += len(x)
        self.penalty *= 0.9
        self.late = x.mean(0)
        y = self.net(x) + self.other(x)
        self.queue = torch.cat([self.queue, y.detach()])[-5:]
        self.means["a"] = [y.detach().mean(0), self.count]
        loss = y.pow(2).sum() * self.penalty + self.queue.sum() * self.count
        self.history.append(loss.item())
        every = [self.optimizers["net"], *self.optimizers["others"]]
        every.append(self.inner.optimizer)
        for optimizer in every:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in every:
            optimizer.step()
        self.schedule.step()
        return {"loss": loss.item()}


def batch(t):
    return [(torch.randn(4, 3, generator=torch.Generator().manual_seed(t)), None)]


def toy(seed):
    torch.manual_seed(seed)
    return Toy()


@pytest.mark.parametrize("stop", range(1, 6))
def test_it_ends_where_the_undisturbed_one_ends(stop, tmp_path):
    whole, first = toy(0), toy(0)
    for t in range(6):
        whole.update(batch(t))
    for t in range(stop):
        first.update(batch(t))
    torch.save(first.training_state(), tmp_path / "state.pt")
    second = toy(1)
    second.load_training_state(torch.load(tmp_path / "state.pt", weights_only=True))
    for t in range(stop, 6):
        second.update(batch(t))
    assert second.history == whole.history
    assert second.inner.seen == whole.inner.seen == 24
    assert second.count == second.means["a"][1] == 6
    assert torch.equal(second.means["a"][0], whole.means["a"][0])
    assert torch.equal(second.queue, whole.queue)
    assert torch.equal(second.late, whole.late)
    for own, other in zip(second.parameters(), whole.parameters(), strict=True):
        assert torch.equal(own, other)


def test_a_state_stays_what_it_was_when_training_goes_on():
    algorithm = toy(0)
    algorithm.update(batch(0))
    state = algorithm.training_state()
    plain = copy.deepcopy(state["plain"])
    algorithm.update(batch(1))
    assert state["plain"][("", "history")] == plain[("", "history")]
    assert state["plain"][("", "count")] == 1


def test_what_the_run_sets_is_no_state():
    algorithm = toy(0)
    algorithm.step, algorithm.given = 7, "all"
    state = algorithm.training_state()
    assert not {"step", "given", "hparams"} & {place[1] for place in state["plain"]}


def test_a_buffer_of_another_size_loads_and_stays_a_buffer():
    algorithm = toy(0)
    algorithm.update(batch(0))
    fresh = toy(1)
    fresh.load_state_dict(algorithm.state_dict())
    assert torch.equal(fresh.queue, algorithm.queue)
    assert "queue" in dict(fresh.named_buffers())


def test_an_optimiser_that_a_new_object_lacks_is_named():
    algorithm = toy(0)
    algorithm.late_optimizer = torch.optim.Adam(algorithm.parameters())
    with pytest.raises(InputError, match="a new Toy lacks late_optimizer"):
        toy(1).load_training_state(algorithm.training_state())
