"""Stored features: the same numbers, never stale, never half-made."""

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from domainbed import datasets, feature_store, training
from domainbed.backbones import load_clip
from domainbed.feature_store import open_features
from domainbed.lib.errors import InputError
from domainbed.lib.fast_data_loader import FastDataLoader, InfiniteDataLoader
from domainbed.scripts import train

CLIP = {"data_augmentation": True, "clip_transform": True, "clip_backbone": "emoji"}


@pytest.fixture(scope="module")
def backbone():
    return load_clip("emoji")


@pytest.fixture
def photos(pacs):
    """The photo environment of a tiny PACS, 10 images, as CLIP sees it."""
    return datasets.PACS(str(pacs), [0], CLIP)[2]


@pytest.fixture
def count(monkeypatch, backbone):
    """How many images the backbone has encoded so far."""
    encoded = []
    encode = type(backbone).encode_image_layers

    def counting(self, x):
        encoded.append(len(x))
        return encode(self, x)

    monkeypatch.setattr(type(backbone), "encode_image_layers", counting)
    return lambda: sum(encoded)


@pytest.mark.parametrize("dtype, rtol", [("float32", 1e-5), ("float16", 1e-3)])
def test_stored_features_are_the_backbones(photos, backbone, tmp_path, dtype, rtol):
    stored = open_features(photos, backbone, tmp_path, dtype)
    assert isinstance(stored.z, np.memmap)
    assert stored.z.dtype == dtype
    x = torch.stack([x for x, _ in photos])
    with torch.no_grad():
        expected = backbone.encode_image_layers(x)
    z, y = stored.gather([7, 0, 7])
    assert z.dtype == torch.float32
    torch.testing.assert_close(z, expected[[7, 0, 7]], rtol=rtol, atol=10 * rtol)
    assert y.tolist() == [1, 0, 1]
    part = stored.subset([4, 9, 2]).subset([1, 2])
    assert [y for _, y in (part[0], part[1])] == [1, 0]
    assert torch.equal(part.gather([0, 1])[0], stored.gather([9, 2])[0])


def test_loaders_gather_what_they_would_read_one_by_one(photos, backbone, tmp_path):
    stored = open_features(photos, backbone, tmp_path)

    class OneByOne(torch.utils.data.Dataset):
        __getitem__, __len__ = stored.__getitem__, stored.__len__

    def first(data):
        drawn = iter(InfiniteDataLoader(data, None, 4, 0, seed=3))
        return [next(drawn) for _ in range(3)] + [*FastDataLoader(data, 4, 0)]

    for (z, y), (z_single, y_single) in zip(
        first(stored), first(OneByOne()), strict=True
    ):
        assert torch.equal(z, z_single)
        assert torch.equal(y, y_single)


def test_a_second_run_computes_nothing(photos, backbone, tmp_path, count):
    first = open_features(photos, backbone, tmp_path)
    made = count()
    again = open_features(photos, backbone, tmp_path)
    assert (made, count()) == (11, 11)  # one image more, for its shape
    assert np.array_equal(first.z, again.z)


def test_the_key_is_the_same_in_every_process(photos, backbone):
    facts = feature_store.describe(photos, backbone, "float16")
    assert " at 0x" not in facts["transform"]
    assert "_convert_image_to_rgb" in facts["transform"]


def test_whatever_changes_gives_a_new_entry(photos, backbone, tmp_path, pacs, count):
    def entries():
        open_features(photos, backbone, tmp_path)
        return len(list(tmp_path.glob("*/z.npy")))

    assert entries() == 1
    os.utime(photos.samples[3][0], (1, 1))  # a file's time
    assert entries() == 2
    photos.transform = datasets.EVALUATE  # another transform, and too large an image
    photos.transform.transforms[0].size = (48, 48)
    assert entries() == 3
    open_features(photos, backbone, tmp_path, "float32")
    assert len(list(tmp_path.glob("*/z.npy"))) == 4
    other = load_clip("emoji")
    with torch.no_grad():
        other.model.visual.proj.add_(1e-3)
    open_features(photos, other, tmp_path)
    assert len(list(tmp_path.glob("*/z.npy"))) == 5
    facts = [json.loads(path.read_text()) for path in tmp_path.glob("*/facts.json")]
    assert {f["backbone"] for f in facts} == {backbone.fingerprint, other.fingerprint}
    datasets.EVALUATE.transforms[0].size = (224, 224)


def test_an_interrupted_extraction_continues(
    photos, backbone, tmp_path, count, monkeypatch
):
    monkeypatch.setattr(feature_store, "BATCH", 1)
    whole = np.array(open_features(photos, backbone, tmp_path / "whole").z)
    broken = datasets.PACS(photos.root + "/../..", [0], CLIP)[2]
    path = Path(broken.samples[8][0])
    picture, times = path.read_bytes(), path.stat()

    def spoil(content):
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    monkeypatch.setattr(feature_store, "FLUSH", 4)
    spoil(b"x" * len(picture))
    with pytest.raises(InputError, match="cannot read the image"):
        open_features(photos, backbone, tmp_path / "cut")
    assert not list((tmp_path / "cut").glob("*/facts.json"))
    spoil(picture)
    before = count()
    resumed = open_features(photos, backbone, tmp_path / "cut")
    assert count() - before == 1 + 2  # the shape's image; 8 of 10 were done
    assert np.array_equal(resumed.z, whole)


def test_one_extracts_while_others_wait(photos, backbone, tmp_path, count, capsys):
    made = []
    threads = [
        threading.Thread(
            target=lambda: made.append(open_features(photos, backbone, tmp_path))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count() == 11
    assert len(made) == 4


def test_a_store_that_cannot_be_written_says_so(
    photos, backbone, tmp_path, monkeypatch
):
    def no_space(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "open_memmap", no_space)
    with pytest.raises(InputError, match=r"No space left on device.*--feature_dir"):
        open_features(photos, backbone, tmp_path)
    assert not list(tmp_path.glob("*/facts.json"))


def test_features_are_kept_with_the_data_where_that_can_be(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    data = tmp_path / "data"
    data.mkdir()
    assert feature_store.default_feature_dir(str(data)) == data / "features"
    cache = tmp_path / "home" / ".cache" / "domainbed" / "features"
    assert feature_store.default_feature_dir(None) == cache
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert feature_store.default_feature_dir(str(data)) == cache


def test_an_unknown_dtype_is_named(photos, backbone, tmp_path):
    with pytest.raises(InputError, match="feature_dtype is 'int8'; it can be float16"):
        open_features(photos, backbone, tmp_path, "int8")


@pytest.mark.parametrize("dtype, rtol", [("float32", 1e-4), ("float16", 1e-2)])
def test_runs_from_pixels_and_from_the_store_agree(pacs, tmp_path, dtype, rtol):
    hparams = {"clip_backbone": "emoji", "feature_dtype": dtype, "batch_size": 2}
    flags = ["--dataset", "PACS", "--data_dir", str(pacs), "--algorithm", "LFA"]
    flags += ["--hparams", json.dumps(hparams)]

    def losses(*more):
        run = training.Run(train.parse_args([*flags, *more]))
        batches = zip(*run.loaders("in"), strict=True)
        values = [run.algorithm.update(next(batches))["loss"] for _ in range(50)]
        return values, run.evaluate()

    from_store, accuracies = losses()
    assert list((pacs / "features").glob("*/z.npy"))
    from_pixels, expected = losses("--no_feature_store")
    assert from_store == pytest.approx(from_pixels, rel=rtol)
    assert accuracies == expected
