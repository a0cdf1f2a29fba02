"""What holds for every registered algorithm."""

import copy

import pytest
import torch

from domainbed import algorithms, datasets, hparams_registry
from domainbed.lib.errors import UnknownNameError
from domainbed.lib.registry import Registry
from domainbed.names import ORDER, REGISTRY, runs_after

pytestmark = pytest.mark.filterwarnings("ignore:no class names")

# Upstream's own have tests/test_zoo.py.
UPSTREAM = ORDER[1 : ORDER.index("URM") + 1]
OWN = [name for name in algorithms.ALGORITHMS if name not in UPSTREAM]


def build(name, dataset_name, n_domains=2, **changed):
    """The algorithm on a Debug dataset, its hyperparameters default but for some."""
    torch.manual_seed(0)
    hparams = hparams_registry.default_hparams(name, dataset_name) | changed
    dataset = datasets.get_dataset_class(dataset_name)("", [], hparams)
    shape, n_classes = dataset.input_shape, dataset.num_classes
    algorithm = algorithms.get_algorithm_class(name)(
        shape, n_classes, n_domains, hparams
    )
    return algorithm, dataset


def minibatches(dataset, sizes):
    """A batch of each size, one per training domain."""
    torch.manual_seed(1)
    return [
        (
            torch.randn(size, *dataset.input_shape),
            torch.randint(dataset.num_classes, (size,)),
        )
        for size in sizes
    ]


def trainable(algorithm):
    return {n: p for n, p in algorithm.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("sizes", [[2], [1, 2], [1, 1, 2], [1, 1, 1, 1, 2]], ids=len)
@pytest.mark.parametrize("dataset_name", ["Debug28", "Debug224"])
@pytest.mark.parametrize("name", OWN)
def test_any_number_of_domains_trains_and_predicts(name, dataset_name, sizes):
    algorithm, dataset = build(name, dataset_name, len(sizes))
    values = algorithm.update(minibatches(dataset, sizes))
    assert all(type(v) is float and v == v for v in values.values())
    assert "loss" in values
    algorithm.eval()
    x = torch.randn(3, *dataset.input_shape)
    with torch.no_grad():
        logits = algorithm.predict(x)
    assert logits.shape == (3, dataset.num_classes)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", OWN)
def test_only_what_trains_changes(name):
    algorithm, dataset = build(name, "Debug28", lr=0.01)  # no step too small to see
    frozen = {
        n: p.clone() for n, p in algorithm.named_parameters() if not p.requires_grad
    }
    before = {n: p.clone() for n, p in trainable(algorithm).items()}
    for _ in range(3):
        algorithm.update(minibatches(dataset, [4, 4]))
    after = dict(algorithm.named_parameters())
    assert all(torch.equal(after[n], p) for n, p in frozen.items())
    unchanged = [n for n, p in before.items() if torch.equal(after[n], p)]
    assert unchanged == []


@pytest.mark.parametrize("name", OWN)
def test_steps_on_one_batch_lower_its_loss(name):
    algorithm, dataset = build(name, "Debug28")
    batch = minibatches(dataset, [8, 8])
    losses = [algorithm.update(batch)["loss"] for _ in range(12)]
    if trainable(algorithm):
        assert losses[-1] < losses[0]
    else:
        assert losses[-1] == losses[0]


@pytest.mark.parametrize("name", algorithms.ALGORITHMS)
def test_an_answer_does_not_depend_on_the_rest_of_the_batch(name):
    if algorithms.get_algorithm_class(name).BATCH_MATTERS:
        return  # by definition
    algorithm, dataset = build(name, "Debug28")
    algorithm.update(minibatches(dataset, [4, 4]))
    algorithm.eval()
    x = torch.randn(5, *dataset.input_shape)
    with torch.no_grad():
        together = algorithm.predict(x)
        alone = torch.cat([algorithm.predict(row[None]) for row in x])
    # 4-bit layers compute in bfloat16, which some CPUs round by the batch's size.
    close = 2e-2 if algorithm.EXTRA == "qlora" else 1e-4
    torch.testing.assert_close(together, alone, rtol=close, atol=close)


@pytest.mark.parametrize("name", algorithms.ALGORITHMS)
def test_a_saved_algorithm_answers_the_same(name, tmp_path):
    algorithm, dataset = build(name, "Debug28")
    for _ in range(2):
        algorithm.update(minibatches(dataset, [4, 4]))
    torch.save(algorithm.state_dict(), tmp_path / "state.pt")
    other, _ = build(name, "Debug28")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    x = torch.randn(5, *dataset.input_shape)
    answers = []
    for one in (algorithm, other):
        torch.manual_seed(2)  # MTL draws noise
        with torch.no_grad():
            answers.append(one.eval().predict(x))
    assert torch.equal(*answers)


def test_erm_is_cross_entropy_over_all_domains_together():
    algorithm, dataset = build("ERM", "Debug28")
    batch = minibatches(dataset, [2, 6])
    reference = copy.deepcopy(algorithm.network)
    x, y = (torch.cat(part) for part in zip(*batch, strict=True))
    expected = torch.nn.functional.cross_entropy(reference(x), y).item()
    assert algorithm.update(batch)["loss"] == pytest.approx(expected)


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(NotImplementedError, match="Did you mean 'LFA'"):
        algorithms.get_algorithm_class("lfa")
    with pytest.raises(UnknownNameError):
        algorithms.get_algorithm_class("np")


def test_a_second_class_of_the_same_name_is_refused():
    with pytest.raises(ValueError, match="two algorithms are called 'ERM'"):
        algorithms.register(type("ERM", (algorithms.Algorithm,), {}))


def test_classes_are_attributes_of_the_module():
    assert algorithms.LFA is algorithms.get_algorithm_class("LFA")
    with pytest.raises(AttributeError, match="no attribute 'Missing'"):
        _ = algorithms.Missing


def test_the_order_is_said_in_one_place():
    """Upstream's first, then this project's; a name that ORDER lacks stands last."""
    names = algorithms.ALGORITHMS
    assert names == [name for name in ORDER if name in names]
    own = Registry("algorithm", ("B", "A"))
    for name in ("C", "A", "B"):
        own.register(type(name, (), {}))
    own.load()
    assert own.names == ["B", "A", "C"]


def test_what_the_sources_say_of_each_class_is_so():
    """Launchers and tables ask no class: to import one takes torch."""
    classes = REGISTRY.known()
    assert Registry("algorithm", ORDER).known() == classes
    assert [*classes] == algorithms.ALGORITHMS
    assert runs_after("CLIP_QLoRA_LFA") == algorithms.QLoRALFA.AFTER != ()
    with pytest.raises(UnknownNameError, match="Did you mean 'LFA'"):
        Registry("algorithm").find("lfa")


def test_a_registry_with_classes_at_hand_asks_them():
    own = Registry("algorithm")
    own.register(type("Mine", (), {"ALIASES": ("M",), "AFTER": ("ERM",)}))
    assert own.known() == {"Mine": {"ALIASES": ("M",), "AFTER": ("ERM",)}}
    assert own.find("M")["AFTER"] == ("ERM",)


def test_facts_are_told_apart_from_hyperparameters():
    hparams = hparams_registry.default_hparams("ZeroShotCLIP", "EmojiDG")
    facts = {"class_names": ["dog", "cat"], "run": {"output_dir": "x"}}
    algorithm = algorithms.ZeroShotCLIP((3, 48, 48), 2, 1, hparams | facts)
    assert algorithm.facts == facts
    assert algorithm.hparams["class_names"] == ["dog", "cat"]
