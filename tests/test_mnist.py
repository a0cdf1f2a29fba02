"""RotatedMNIST and ColoredMNIST from MNIST's own files, IDX as LeCun wrote them."""

import json
import struct

import numpy as np
import pytest
import torch

from domainbed import datasets
from domainbed.scripts import train

N = {"train": 120, "t10k": 60}


def write_idx(path, array):
    """0, 0, the type's code (8: bytes), the number of axes; each axis; the bytes."""
    header = struct.pack(">HBB", 0, 8, array.ndim)
    header += struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.tobytes())


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    """A folder with small files of MNIST: a digit is a bar at its own height."""
    root = tmp_path_factory.mktemp("data")
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.RandomState(0)
    for part, n in N.items():
        labels = rng.permutation(np.arange(n) % 10).astype(np.uint8)
        images = rng.randint(0, 60, (n, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[4 + 2 * label : 6 + 2 * label] = 255
        write_idx(raw / f"{part}-images-idx3-ubyte", images)
        write_idx(raw / f"{part}-labels-idx1-ubyte", labels)
    return root


def test_every_digit_of_both_files_is_in_one_environment(mnist):
    torch.manual_seed(0)
    dataset = datasets.RotatedMNIST(str(mnist), [0], {})
    assert [len(environment) for environment in dataset] == [30] * 6
    x, y = dataset[0].tensors  # upright
    bars = (x[:, 0] == 1).all(2)
    assert bars.sum(1).tolist() == [2] * len(y)
    assert (bars.double().argmax(1) == 4 + 2 * y).all()
    labels = torch.cat([environment.tensors[1] for environment in dataset])
    assert labels.bincount().tolist() == [18] * 10


@pytest.mark.parametrize("dataset", ["RotatedMNIST", "ColoredMNIST"])
@pytest.mark.parametrize("algorithm", ["ERM", "IRM", "VREx", "GroupDRO"])
def test_what_upstream_shows_first_learns(mnist, tmp_path, dataset, algorithm):
    command = ["--dataset", dataset, "--algorithm", algorithm, "--test_envs", "2"]
    command += ["--data_dir", str(mnist), "--output_dir", str(tmp_path), "--steps"]
    command += [
        "21",
        "--checkpoint_freq",
        "10",
        "--hparams",
        "batch_size=8",
        "lr=0.003",
    ]
    train.main([*command, "--num_workers", "0", "--no_tensorboard", "--quiet"])
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    first, *_, last = map(json.loads, lines)
    n = len(getattr(datasets, dataset).ENVIRONMENTS)
    names = {f"env{i}_{part}_acc" for i in range(n) for part in ("in", "out")}
    assert names <= first.keys()
    risk = "nll" if "nll" in first else "loss"  # without what IRM and VREx add
    assert last[risk] < first[risk]
