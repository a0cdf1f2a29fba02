"""--precision: of the products inside a tower, and of what is stored."""

import json

import pytest
import torch

from domainbed import training
from domainbed.lib.precision import PRECISIONS, computed_in
from domainbed.scripts import sweep, train


def test_bfloat16_rounds_products_and_not_weights():
    layer, x = torch.nn.Linear(64, 8), torch.randn(4, 64)
    exact = layer(x)
    with computed_in("bfloat16", "cpu"):
        rounded = layer(x)
    assert rounded.dtype == torch.bfloat16
    assert layer.weight.dtype == torch.float32
    assert 0 < (rounded.float() - exact).abs().max() < 0.05


def test_tf32_holds_inside_only():
    allowed = torch.backends.cuda.matmul.allow_tf32
    with computed_in("tf32", "cpu"):
        assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cuda.matmul.allow_tf32 == allowed
    x = torch.randn(4, 4)
    with computed_in("float32", "cpu"):
        assert torch.equal(x @ x, torch.mm(x, x))


def run_of(tmp_path, algorithm, *flags, **hparams):
    words = ["--dataset", "EmojiDG", "--algorithm", algorithm, "--num_workers", "0"]
    words += ["--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "run")]
    words += ["--hparams", json.dumps(hparams), *flags]
    return training.Run(train.parse_args(words))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data folder: features that one test stores are read by the next."""
    return tmp_path_factory.mktemp("data")


def test_features_of_another_precision_are_other_entries(pacs, tmp_path):
    stored = {}
    for precision in PRECISIONS:
        words = ["--dataset", "PACS", "--data_dir", str(pacs), "--algorithm", "LFA"]
        words += ["--hparams", "clip_backbone=emoji", "--precision", precision]
        stored[precision] = training.Run(train.parse_args(words)).stored[0]
    files = {precision: own.z.filename for precision, own in stored.items()}
    assert len({*files.values()}) == 3
    exact, rounded = (
        torch.from_numpy(stored[p].z.copy()).float() for p in files if p != "tf32"
    )
    assert 0 < (exact - rounded).abs().max() < 0.2


def test_training_through_a_tower_is_rounded_and_from_the_store_is_not(pacs):
    seen = {}
    for algorithm in ("FineTuneCLIP", "LFA"):
        words = ["--dataset", "PACS", "--data_dir", str(pacs), "--algorithm", algorithm]
        words += ["--hparams", "clip_backbone=emoji", "batch_size=2"]
        run = training.Run(train.parse_args([*words, "--precision", "bfloat16"]))
        logits = run.algorithm.logits
        run.algorithm.logits = lambda x, a=algorithm, f=logits: seen.setdefault(a, f(x))
        run.update(0, next(run.task.batches(run)))
    assert seen["FineTuneCLIP"].dtype == torch.bfloat16
    assert seen["LFA"].dtype == torch.float32


@pytest.mark.parametrize("algorithm", ["ZeroShotCLIP", "LinearProbeCLIP", "LFA"])
def test_bfloat16_features_change_no_probes_accuracy(data, algorithm):
    """By at most 0.2 points on EmojiDG, over all of its images."""
    accuracy = {}
    for precision in ("float32", "bfloat16"):
        run = run_of(data, algorithm, "--precision", precision, lr=0.01)
        batches = run.task.batches(run)
        for step in range(60):
            run.update(step, next(batches))
        accuracies = run.evaluate()
        sizes = {f"{s.name}_acc": len(s.keys) for s in run.splits}
        right = sum(accuracies[name] * n for name, n in sizes.items())
        accuracy[precision] = 100 * right / sum(sizes.values())
    assert accuracy["bfloat16"] == pytest.approx(accuracy["float32"], abs=0.2)


def test_a_sweep_says_it_to_its_jobs_only_when_asked(tmp_path):
    words = ["launch", "--output_dir", str(tmp_path), "--data_dir", "d"]
    words += ["--datasets", "EmojiDG", "--algorithms", "LFA", "--n_trials", "1"]
    plain, rounded = (
        sweep.jobs_of(sweep.parse_args([*words, *more]))[0]
        for more in ([], ["--precision", "bfloat16"])
    )
    assert "precision" not in plain.train_args
    assert "--precision bfloat16" in rounded.command_str
    assert plain.output_dir != rounded.output_dir
