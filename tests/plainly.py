"""An algorithm beside a plain statement of its step: both shall do the same."""

import copy

import pytest
import torch
from helpers import float64
from test_zoo import SHAPES, batches, build, take


def assert_steps(name, plain, sizes=(4, 5, 6), n=4, inputs="vectors", **changed):
    """That `name` logs and answers what `plain(copy, minibatches)` makes of its copy.

    `plain` takes one step on the copy's own networks and optimizers and returns what
    is to be logged. Both draw the same random numbers.
    """
    with float64():
        algorithm = build(name, inputs, len(sizes), **changed)
        reference = copy.deepcopy(algorithm)
        # The copies' optimizers hold the copies' parameters.
        reference.update = lambda minibatches: plain(reference, minibatches)
        steps = batches(sizes, inputs, n)
        for step, minibatches in enumerate(steps):
            (logged,), (expected,) = (
                take(one, [minibatches], step) for one in (algorithm, reference)
            )
            assert logged == pytest.approx(expected, rel=1e-8, abs=1e-12)
        x = torch.randn(5, *SHAPES[inputs])
        answers = []
        for one in (algorithm, reference):
            torch.manual_seed(0)
            answers.append(one.eval().predict(x))
        torch.testing.assert_close(*answers, rtol=1e-8, atol=1e-12)
    return algorithm


def step(loss, *optimizers):
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    return loss.item()
