"""LFA on another method's finished run: what is frozen, what it answers."""

import pytest
import torch
from helpers import command

from domainbed import training
from domainbed.algorithms import get_algorithm_class
from domainbed.algorithms_lfa import LFA
from domainbed.hparams_registry import default_hparams
from domainbed.lib.errors import InputError
from domainbed.scripts import train

pytestmark = pytest.mark.filterwarnings("ignore:no class names")
BASES = {
    "LFAonCLIPAdapter": ("CLIPAdapter", {"up", "down"}),
    "LFAonCoOp": ("CoOp", {"context"}),
    "LFAonMaPLe": (
        "MaPLe",
        {"context", "deep_prompts", "couple_weight", "couple_bias"},
    ),
}
FLAGS = ["--steps", "3", "--no_tensorboard"]


@pytest.fixture
def sweep(tmp_path):
    """A folder in which BASE has been trained; gives a run's flags there."""

    def trained(name, hparams="lr=0.5"):
        base, _ = BASES[name]
        flags = [*FLAGS, "--hparams", "batch_size=4", hparams]
        train.main(command(tmp_path / "base", *flags, algorithm=base))
        (tmp_path / "own").mkdir()
        own = [*FLAGS, "--hparams", "batch_size=4", "base_run=auto"]
        return command(tmp_path / "own", *own, algorithm=name)

    return trained


@pytest.mark.parametrize("name", BASES)
def test_the_base_stays_as_its_run_left_it(name, sweep, tmp_path):
    run = training.Run(train.parse_args(sweep(name)))
    base = training.load_algorithm(tmp_path / "base")
    fresh = get_algorithm_class(BASES[name][0])(
        (3, 28, 28), 2, 2, default_hparams(BASES[name][0], "Debug28")
    )
    before = dict(base.named_parameters())
    assert {n for n, p in before.items() if p.requires_grad} == BASES[name][1]
    run.train()
    algorithm = run.algorithm
    for tensor in BASES[name][1]:
        assert torch.equal(getattr(algorithm, tensor), before[tensor])
    assert any(
        not torch.equal(before[tensor], getattr(fresh, tensor))
        for tensor in BASES[name][1]
    )
    trains = {n for n, p in algorithm.named_parameters() if p.requires_grad}
    lfa = LFA((3, 28, 28), 2, 2, default_hparams("LFA", "Debug28"))
    assert trains == {n for n, p in lfa.named_parameters() if p.requires_grad}
    loaded = training.load_algorithm(tmp_path / "own")
    x = torch.randn(3, 3, 28, 28)
    algorithm.given = "images"
    with torch.no_grad():
        torch.testing.assert_close(loaded.predict(x), algorithm.eval().predict(x))


@torch.no_grad()
def test_on_a_base_that_says_nothing_it_is_lfa():
    torch.manual_seed(0)
    own = default_hparams("LFAonCLIPAdapter", "Debug28")
    stacked = get_algorithm_class("LFAonCLIPAdapter")((3, 28, 28), 2, 2, own)
    lfa = LFA((3, 28, 28), 2, 2, default_hparams("LFA", "Debug28"))
    x = torch.randn(3, 3, 28, 28)
    assert not torch.allclose(stacked.predict(x), lfa.predict(x))
    stacked.hparams["adapter_ratio"] = 0.0
    torch.testing.assert_close(stacked.predict(x), lfa.predict(x))


@pytest.mark.parametrize("name", ["LFAonCoOp", "LFAonMaPLe"])
def test_towers_are_those_of_the_prompts(name, sweep, tmp_path):
    run = training.Run(train.parse_args(sweep(name)))
    base = training.load_algorithm(tmp_path / "base")
    x = torch.randn(3, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(run.algorithm.text_features, base.text_layers())
        torch.testing.assert_close(run.algorithm.features(x), base.features(x))


def test_without_a_finished_run_it_is_refused(tmp_path):
    flags = [*FLAGS, "--hparams", "base_run=auto"]
    with pytest.raises(InputError, match="LFAonCoOp builds on a finished CoOp run"):
        training.Run(
            train.parse_args(command(tmp_path / "own", *flags, algorithm="LFAonCoOp"))
        )
