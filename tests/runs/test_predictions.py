"""Every tested image's answer is kept, and is what the accuracies were counted from."""

import json
import math

import numpy as np
import pytest
import torch
from helpers import command

from domainbed import evaluation
from domainbed.lib import misc
from domainbed.lib.claim import Claim
from domainbed.lib.errors import InputError
from domainbed.runs import predictions
from domainbed.scripts import sweep, train

pytestmark = pytest.mark.filterwarnings("ignore:no class names")


def records(folder):
    lines = (folder / "results.jsonl").read_text().splitlines()
    return {record["step"]: record for record in map(json.loads, lines)}


def chosen(records):
    """The step that training-domain validation chooses, of runs that test on 0."""
    return max(
        records,
        key=lambda s: (records[s]["env1_out_acc"] + records[s]["env2_out_acc"], -s),
    )


@pytest.fixture
def run(tmp_path):
    train.main(
        command(tmp_path / "run", "--test_envs", "0", "--uda_holdout_fraction", "0.3")
    )
    return tmp_path / "run"


def test_answers_have_the_records_accuracies(run):
    of = records(run)
    arrays = predictions.load(run / predictions.NAME)
    steps = {name.rsplit("_", 1)[1] for name in arrays if "answer_logp" in name}
    assert steps == {"8", str(chosen(of))}
    for step in map(int, steps):
        for part in ("in", "out"):
            own = predictions.read(arrays, 0, part, step)
            right = own.answer == own.label
            assert right.mean() == pytest.approx(of[step][f"env0_{part}_acc"])
            assert np.allclose(own.answer_logp[right], own.label_logp[right])
            assert (own.answer_logp >= own.label_logp).all()
    assert predictions.read(arrays, 0, "in", 3) is None
    assert predictions.read(arrays, 1, "in", 8) is None  # not tested
    assert not (arrays["env0_part"] > 2).any()
    tested = (arrays["env0_part"] > 0).sum()
    assert tested == len(arrays["env0_part"]) - 3  # the unlabeled are not tested


def test_another_folder_may_forgo_them(tmp_path):
    train.main(command(tmp_path, "--no_predictions"))
    assert not (tmp_path / predictions.NAME).exists()
    words = ["launch", "--no_predictions", "--output_dir", "o", "--data_dir", "d"]
    words += ["--datasets", "EmojiDG", "--algorithms", "LFA"]
    job = sweep.jobs_of(sweep.parse_args(words))[0]
    assert "--no_predictions" in job.command_str


def test_all_that_a_run_writes_is_checked_to_be_its_own(tmp_path, monkeypatch):
    """At the last moment: it may be stopped, and go on when another has its place."""
    by, whole = {}, misc.write_whole

    def write(path, content, check=None):
        if path.parent == tmp_path and not path.name.startswith("heartbeat"):
            by[path.name] = getattr(check, "__self__", None)
        whole(path, content, *filter(None, [check]))

    monkeypatch.setattr(misc, "write_whole", write)
    train.main(command(tmp_path, "--test_envs", "0"))
    assert {"run.json", "state.pt", predictions.NAME, "model.pkl", "done"} <= {*by}
    assert {type(own) for own in by.values()} == {Claim}


@pytest.mark.parametrize("n", [2, 3])
def test_an_interrupted_run_keeps_the_same(n, tmp_path, interrupt):
    train.main(command(tmp_path / "whole"))
    restore = interrupt("keep_predictions", n, after=True)
    with pytest.raises(SystemExit):
        train.main(command(tmp_path / "parts"))
    restore()
    train.main(command(tmp_path / "parts"))
    whole, parts = (
        (tmp_path / name / predictions.NAME).read_bytes() for name in ("whole", "parts")
    )
    assert parts == whole


@pytest.mark.parametrize("chosen", [4, 8])
def test_a_step_that_is_kept_twice_leaves_the_same_file(chosen, tmp_path):
    file, n = tmp_path / predictions.NAME, np.arange(3)
    noted = predictions.Answers(0, "in", n, n, n, -n / 2, -n / 2)

    def keep(step):
        predictions.keep(file, [noted], [3], {"data": "d", "classes": 3}, step, chosen)
        return file.read_bytes()

    keep(4)
    assert keep(8) == keep(8)


def answers(logits, labels):
    return [
        part.tolist()
        for part in evaluation.answered(torch.tensor(logits), torch.tensor(labels))
    ]


def test_one_column_is_class_1_against_0():
    label, answer, best, own = answers([[2.0], [-2.0]], [1, 1])
    assert (label, answer) == ([1, 1], [1, 0])
    assert best == pytest.approx([-math.log1p(math.exp(-2))] * 2)
    assert own == pytest.approx([best[0], best[0] - 2])


def test_nan_is_no_answer(tmp_path):
    _, answer, best, own = answers([[0.0, math.nan, 1.0], [0.0, 0.0, 1.0]], [0, 0])
    assert answer == [3, 2]
    assert math.isnan(best[0]) and math.isnan(own[0])
    noted = predictions.Answers(
        0,
        "in",
        np.arange(2),
        np.zeros(2),
        np.array(answer),
        np.array(best),
        np.array(own),
    )
    file = tmp_path / predictions.NAME
    predictions.keep(file, [noted], [2], {"data": "d", "classes": 3}, 5, 5)
    kept = predictions.read(predictions.load(file), 0, "in", 5)
    assert kept.answer.tolist() == [3, 2]
    assert np.isnan(kept.answer_logp[0])


def test_an_image_takes_ten_bytes_at_most(tmp_path):
    r = np.random.default_rng(0)
    n = 50_000
    labels = r.integers(345, size=n)
    noted = predictions.Answers(
        0,
        "in",
        r.permutation(n),
        labels,
        r.integers(345, size=n),
        *-r.exponential(2, (2, n)),
    )
    file = tmp_path / predictions.NAME
    predictions.keep(file, [noted], [n], {"data": "d", "classes": 345}, 300, 300)
    assert file.stat().st_size <= 10 * n
    kept = predictions.read(predictions.load(file), 0, "in", 300)
    assert np.array_equal(kept.label, labels[np.argsort(noted.place)])


def test_a_log_probability_has_no_infinity(tmp_path):
    noted = predictions.Answers(0, "in", *([0],) * 3, np.array([0.0]), np.array([-1e6]))
    file = tmp_path / predictions.NAME
    predictions.keep(file, [noted], [1], {"data": "d", "classes": 2}, 0, 0)
    kept = predictions.read(predictions.load(file), 0, "in", 0)
    assert np.isfinite(kept.label_logp).all()


def test_a_broken_file_is_named(tmp_path):
    file = tmp_path / predictions.NAME
    for content in (b"", b"PK\3\4 cut", b"x" * 100):
        file.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read"):
            predictions.load(file)
