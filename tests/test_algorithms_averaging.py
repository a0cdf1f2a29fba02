"""ERM++: its average of weights, and LARS."""

import torch
from test_zoo import batches, build, take

from domainbed import algorithms, algorithms_averaging


def test_ermplusplus_averages_from_a_step_on(monkeypatch):
    cls = algorithms.get_algorithm_class("ERMPlusPlus")
    monkeypatch.setattr(cls, "AVERAGED_FROM", 3)
    algorithm = build("ERMPlusPlus", linear_steps=1)
    first = [p.clone() for p in algorithm.featurizer.parameters()]
    history = []
    for n, minibatches in enumerate(batches([4, 4, 4], n=5), 1):
        take(algorithm, [minibatches])
        own = [p.clone() for p in algorithm.featurizer.parameters()]
        # linear_steps and one more
        assert all(map(torch.equal, own, first)) == (n <= 2)
        history.append([p.detach().clone() for p in algorithm.network.parameters()])
    last = history[-4:]  # the second step's, which it held, and three more
    for i, p in enumerate(algorithm.network_sma.parameters()):
        mean = torch.stack([weights[i] for weights in last]).mean(0)
        torch.testing.assert_close(p.data, mean)
    x = torch.randn(4, 10)
    assert torch.equal(algorithm.predict(x), algorithm.network_sma(x))


def test_lars_is_momentum_sgd_on_a_bias():
    one = torch.nn.Parameter(torch.randn(5))
    other = torch.nn.Parameter(one.detach().clone())
    lars = algorithms_averaging.LARS([one], lr=0.1, weight_decay=0.5)
    sgd = torch.optim.SGD([other], lr=0.1, momentum=0.9)
    for _ in range(3):
        for p, optimizer in ((one, lars), (other, sgd)):
            p.grad = p.detach() ** 2
            optimizer.step()
    torch.testing.assert_close(one, other)


def test_lars_steps_by_the_weights_norm():
    p = torch.nn.Parameter(torch.ones(2, 2))
    p.grad = torch.full((2, 2), 7.0)
    algorithms_averaging.LARS([p], lr=1.0).step()
    torch.testing.assert_close(p.data, torch.full((2, 2), 1 - 1e-3))


def test_ermplusplus_takes_lars():
    algorithm = build("ERMPlusPlus", lars=True, linear_steps=0)
    logged = take(algorithm, batches([4, 4, 4], n=3))
    assert logged[2]["loss"] != logged[0]["loss"]
    assert isinstance(algorithm.optimizer, algorithms_averaging.LARS)
