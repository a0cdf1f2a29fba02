"""Measures of stored answers against plain restatements."""

import numpy as np
import pytest

from domainbed.runs import predictions
from domainbed.tables.answers import (
    Told,
    calibration_error,
    confusion,
    log_loss,
    lost,
    read,
)


def test_the_calibration_error_is_that_of_the_paper():
    """Over bins ((m - 1) / 15, m / 15]: |accuracy - confidence|, by their sizes."""
    r = np.random.default_rng(0)
    confidence = np.append(r.random(500), [1.0, 1 / 15, 2 / 15])
    right = r.random(503) < confidence**2
    expected = 0.0
    for m in range(1, 16):
        low, high = (m - 1) / 15, m / 15
        own = [i for i, c in enumerate(confidence) if low < c <= high]
        if own:
            accuracy = sum(right[i] for i in own) / len(own)
            sure = sum(confidence[i] for i in own) / len(own)
            expected += len(own) / 503 * abs(accuracy - sure)
    assert calibration_error(right, confidence) == pytest.approx(expected)
    assert calibration_error(right, confidence) > 0.1


def test_who_is_as_sure_as_right_has_no_calibration_error():
    right = np.array([True] * 3 + [False])
    assert calibration_error(right, np.full(4, 0.75)) == pytest.approx(0)
    assert calibration_error(right, np.full(4, 1.0)) == pytest.approx(0.25)
    assert calibration_error(right, np.zeros(4)) == pytest.approx(0.75)
    assert np.isnan(calibration_error(right, np.array([0.5, 0.5, np.nan, 1])))


def test_log_loss_is_summed_in_double_precision():
    logp = np.full(100_000, -2.5, np.float16)
    assert log_loss(logp) == 2.5  # in half precision the sum would be infinite
    assert log_loss(np.log([0.5, 0.25])) == pytest.approx(1.5 * np.log(2))


def test_lost_is_a_share_of_what_the_reference_has():
    reference = np.array([True, True, True, True, False, False])
    right = np.array([True, True, True, False, False, True])
    assert lost(reference, right) == 0.25
    assert lost(reference, reference) == 0
    assert np.isnan(lost(~reference[:4], right[:4]))


def kept(folder, names=None):
    """Five items of three classes, the last without an answer."""
    label, answer = np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 0, 3])
    noted = predictions.Answers(
        0, "in", np.array([1, 2, 3, 5, 6]), label, answer, *np.zeros((2, 5))
    )
    facts = {"data": "d", "classes": 3}
    if names is not None:
        facts["names"] = np.array(names)
    predictions.keep(folder / predictions.NAME, [noted], [9], facts, 4, 4)
    return read(folder, 0, 4)


def test_confusions_count_every_label_and_answer(tmp_path):
    told = kept(tmp_path, ["cat", "dog", "owl"])
    assert told.classes == ["cat", "dog", "owl"]
    assert told.right.tolist() == [True, False, True, False, False]
    counts = confusion(told)
    assert counts.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 1]]
    assert confusion(Told("", told.answers, told.classes)).sum() == 5


def test_classes_without_names_have_numbers(tmp_path):
    for names in (None, ["of", "another"]):
        assert kept(tmp_path, names).classes == ["class 0", "class 1", "class 2"]
    assert read(tmp_path, 0, 5) is None  # another step
    assert read(tmp_path, 1, 4) is None  # another environment
    assert read(tmp_path / "none", 0, 4) is None
