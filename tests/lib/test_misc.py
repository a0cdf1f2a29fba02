import errno
import json
import math
import os

import numpy as np
import pytest
import torch
from helpers import CONTRACT
from torch.utils.data import Subset, TensorDataset

from domainbed.lib import misc
from domainbed.lib.shots import scores


class Fixed(torch.nn.Module):
    """`predict(x)` is x: the test writes the logits."""

    def predict(self, x):
        assert not self.training
        return x


@pytest.mark.parametrize(
    "size, n, seed, keys",
    json.loads((CONTRACT / "golden.json").read_text())["split_dataset"],
)
def test_splits_are_upstreams(size, n, seed, keys):
    first, _ = misc.split_dataset(TensorDataset(torch.arange(size)), n, seed)
    assert first.indices == keys


def test_split_dataset_is_a_partition_with_n_first():
    data = TensorDataset(torch.arange(10))
    first, rest = misc.split_dataset(data, 3, seed=5)
    assert len(first) == 3
    assert sorted([*first.indices, *rest.indices]) == list(range(10))


@pytest.mark.parametrize("n", [-1, 11])
def test_split_dataset_refuses_more_than_there_is(n):
    with pytest.raises(ValueError, match=f"cannot take {n} of 10"):
        misc.split_dataset(TensorDataset(torch.arange(10)), n)


def test_balanced_weights_give_every_class_the_same_sum():
    y = torch.tensor([0, 0, 0, 1, 2, 2])
    data = TensorDataset(torch.zeros(6, 1), y)
    weights = misc.make_weights_for_balanced_classes(data)
    assert weights.tolist() == pytest.approx([1 / 9] * 3 + [1 / 3] + [1 / 6] * 2)
    subset = misc.make_weights_for_balanced_classes(Subset(data, [3, 0]))
    assert subset.tolist() == [0.5, 0.5]


def test_accuracy_weighs_items_in_the_loaders_order():
    logits = torch.tensor([[1.0, 0], [0, 1], [1, 0]])
    y = torch.tensor([0, 0, 0])  # right, wrong, right
    batches = [(logits[:2], y[:2]), (logits[2:], y[2:])]
    network = Fixed()
    assert misc.accuracy(network, batches, None, "cpu") == pytest.approx(2 / 3)
    assert misc.accuracy(network, batches, [1, 8, 1], "cpu") == pytest.approx(0.2)
    assert network.training


def test_accuracy_of_one_column_reads_its_sign():
    batches = [(torch.tensor([[2.0], [-1], [-3]]), torch.tensor([1, 1, 0]))]
    assert misc.accuracy(Fixed(), batches, None, "cpu") == pytest.approx(2 / 3)


def test_logits_that_are_nan_are_no_class_0():
    def network(logits):
        module = torch.nn.Module()
        module.predict = lambda x: logits[x]
        return module

    logits = torch.tensor([[1.0, 0.0], [math.nan, math.nan], [2.0, 0.0]])
    x, y = torch.tensor([0, 1, 2]), torch.zeros(3, dtype=int)
    assert math.isnan(misc.accuracy(network(logits), [(x, y)], None, "cpu"))
    assert misc.accuracy(network(logits), [(x[::2], y[::2])], None, "cpu") == 1
    column = torch.tensor([[-1.0], [math.nan], [1.0]])
    assert math.isnan(misc.accuracy(network(column), [(x, y)], None, "cpu"))
    guessed = misc.guesses(network(logits), [(x, y)], "cpu")
    assert guessed == ([0, misc.NO_GUESS, 0], [0, 0, 0])
    assert all(map(math.isnan, scores(*guessed).values()))


def test_plain_values_survive_json_unchanged():
    values = {"i": np.int64(3), "f": np.float64(0.1), "b": np.bool_(True), "n": None}
    plain = misc.plain(values)
    assert plain == {"i": 3, "f": 0.1, "b": True, "n": None}
    assert [type(v) for v in plain.values()] == [int, float, bool, type(None)]


def test_write_whole_keeps_a_link_and_what_is_no_file(tmp_path):
    """As root it made a file of /dev/null, for every program of the machine."""
    (tmp_path / "there").mkdir()
    for name, leads_to in (("old", "there/file"), ("new", "there/none yet")):
        (tmp_path / name).symlink_to(leads_to)
        (tmp_path / "there" / "file").touch()
        misc.write_whole(tmp_path / name, name)
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / leads_to).read_text() == name
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    misc.write_whole(pipe, "said")
    assert os.read(reader, 9) == b"said"
    os.close(reader)
    assert pipe.is_fifo()
    with pytest.raises(IsADirectoryError):
        misc.write_whole(tmp_path / "there", "")
    assert len([*tmp_path.iterdir()]) == 4


def test_write_whole_asks_when_all_but_the_place_is_done(tmp_path):
    path = tmp_path / "state"
    misc.write_whole(path, "old")

    def taken():
        assert (tmp_path / "state.part").read_text() == "new"
        raise OSError(errno.EPERM, "another's")

    with pytest.raises(OSError, match="another's"):
        misc.write_whole(path, "new", taken)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["state"]


def test_write_whole_leaves_the_old_file_when_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "state"
    misc.write_whole(path, "old")

    def fail(file):
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(misc.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        misc.write_whole(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["state"]
