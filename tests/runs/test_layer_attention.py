"""layer_attention.json: means over the right images, of a real run."""

import numpy as np
import pytest
import torch

from domainbed import training
from domainbed.runs import layer_attention
from domainbed.scripts import train


def make_run(tmp_path, *flags, algorithm="LFA"):
    of = ["--dataset", "EmojiDG", "--algorithm", algorithm, "--no_feature_store"]
    folders = ["--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "run")]
    return training.Run(train.parse_args([*of, *folders, *flags]))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def test_means_are_over_the_images_of_a_domain_and_of_a_class(data, monkeypatch):
    monkeypatch.setattr(layer_attention, "MOST_IMAGES", 40)
    run = make_run(data)
    summary = layer_attention.summarise(run)
    assert run.algorithm.training
    assert [*summary["environments"]] == [*run.dataset.ENVIRONMENTS]
    assert [*summary["classes"]] == run.dataset.class_names
    outs = [split for split in run.splits if split.part == "out"]
    images, crosses, labels = [], [], []
    run.algorithm.eval()
    for split in outs:
        items = run.items(split, to_train=False)
        x, y = zip(*(items[i] for i in range(40)), strict=True)
        with torch.no_grad():
            weights = run.algorithm.layer_attention(torch.stack(x))
        images.append(weights["image"])
        crosses.append(weights["cross"][range(40), list(y)])
        labels += y
    for env, own in enumerate(summary["environments"].values()):
        expected = images[env].mean(0).tolist()
        assert own["image"] == pytest.approx(expected, abs=1e-4)
        assert own["cross"] == pytest.approx(crosses[env].mean(0).tolist(), abs=1e-4)
    label = labels[0]
    name = run.dataset.class_names[label]
    of_class = torch.cat(crosses)[[y == label for y in labels]]
    own = summary["classes"][name]
    assert own["cross"] == pytest.approx(of_class.mean(0).tolist(), abs=1e-4)
    assert own["self"] == pytest.approx(weights["self"][label].tolist(), abs=1e-4)
    for one in [*summary["environments"].values(), *summary["classes"].values()]:
        for weights in one.values():
            assert np.sum(weights) == pytest.approx(1, abs=1e-3)


def test_a_class_that_was_not_seen_has_self_alone(data, monkeypatch):
    monkeypatch.setattr(layer_attention, "MOST_IMAGES", 1)  # 4 images, 17 classes
    classes = layer_attention.summarise(make_run(data))["classes"]
    seen = [name for name, weights in classes.items() if "image" in weights]
    assert 1 <= len(seen) <= 4
    assert all("self" in weights for weights in classes.values())


def test_without_validation_images_it_looks_at_the_others(data, monkeypatch):
    monkeypatch.setattr(layer_attention, "MOST_IMAGES", 3)
    summary = layer_attention.summarise(make_run(data, "--holdout_fraction", "0"))
    assert len(summary["environments"]) == 4


def test_a_method_without_layer_attention_has_no_summary(data):
    assert layer_attention.summarise(make_run(data, algorithm="ZeroShotCLIP")) is None


def test_states_are_weighed_by_domain_and_class(data, monkeypatch):
    monkeypatch.setattr(layer_attention, "MOST_IMAGES", 2)
    summary = layer_attention.summarise(make_run(data, algorithm="UniPT"))
    for own in summary["environments"].values():
        assert own.keys() == {"states"}
        assert sum(own["states"]) == pytest.approx(1, abs=1e-3)
    assert {} in summary["classes"].values()  # not seen


def test_what_all_images_use_needs_none_of_them(data, monkeypatch):
    monkeypatch.setattr(layer_attention, "FastDataLoader", None)
    summary = layer_attention.summarise(make_run(data, algorithm="VQT"))
    parts = summary["used"]
    assert parts.keys() == {"queries", "class token"}
    assert sum(sum(own["states"]) for own in parts.values()) == pytest.approx(
        1, abs=1e-3
    )
