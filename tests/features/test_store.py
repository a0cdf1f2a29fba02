"""Stored features: the same numbers, never stale, never half-made."""

import copy
import json
import mmap
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from domainbed import inputs, training
from domainbed.algorithms import get_algorithm_class
from domainbed.backbones import CLIPBackbone, read_clip
from domainbed.features import store
from domainbed.features.entries import Entry, entries, key_of
from domainbed.features.store import StoredFeatures, describe, open_features
from domainbed.hparams_registry import default_hparams
from domainbed.lib.errors import InputError
from domainbed.lib.fast_data_loader import FastDataLoader, InfiniteDataLoader
from domainbed.lib.transforms import EVALUATE
from domainbed.scripts import train


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
    assert (made, count()) == (11, 11)  # one image more, for the shape
    assert np.array_equal(first.z, again.z)


def test_the_key_is_the_same_in_every_process(photos, backbone):
    facts = store.describe(photos, backbone, "float16")
    assert " at 0x" not in facts["transform"]
    assert "_convert_image_to_rgb" in facts["transform"]


def test_whatever_changes_gives_a_new_entry(photos, backbone, tmp_path):
    def stored():
        open_features(photos, backbone, tmp_path)
        return len(list(tmp_path.glob("*/z.npy")))

    assert stored() == 1
    os.utime(photos.samples[3][0], (1, 1))  # a file's time
    assert stored() == 2
    photos.transform = EVALUATE  # another transform, and too large an image
    photos.transform.transforms[0].size = (48, 48)
    assert stored() == 3
    open_features(photos, backbone, tmp_path, "float32")
    assert len(list(tmp_path.glob("*/z.npy"))) == 4
    model, preprocess = read_clip("emoji")
    other = CLIPBackbone(copy.deepcopy(model), preprocess)
    with torch.no_grad():
        other.model.visual.proj.add_(1e-3)
    open_features(photos, other, tmp_path)
    assert len(list(tmp_path.glob("*/z.npy"))) == 5
    facts = [json.loads(path.read_text()) for path in tmp_path.glob("*/facts.json")]
    assert {f["backbone"] for f in facts} == {backbone.fingerprint, other.fingerprint}
    EVALUATE.transforms[0].size = (224, 224)


@pytest.mark.parametrize(
    "name, value",
    [("layers", "last"), ("classes", ["dog", "elk"]), ("images", 9)],
)
def test_the_key_digests_what_an_entry_holds(photos, backbone, name, value):
    facts = describe(photos, backbone, "float16")
    assert facts[name] != value
    assert key_of(facts | {name: value}) != key_of(facts)


def test_a_strict_fingerprint_is_of_the_files_contents(photos, backbone, tmp_path):
    path = Path(photos.samples[3][0])
    picture, times = path.read_bytes(), path.stat()

    def key(strict):
        return key_of(describe(photos, backbone, "float16", strict))

    before = {strict: key(strict) for strict in (True, False)}
    assert before[True] != before[False]
    os.utime(path, (1, 1))
    assert key(True) == before[True]
    path.write_bytes(picture[:-1] + b"x")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert key(True) != before[True]
    assert key(False) == before[False]
    open_features(photos, backbone, tmp_path / "store", strict=True)
    assert [entry.key for entry in entries(tmp_path / "store")] == [key(True)]


def test_an_image_that_is_gone_is_named(photos, backbone):
    os.unlink(photos.samples[3][0])
    with pytest.raises(InputError, match=r"cannot read the image .*dog/3.png: No such"):
        describe(photos, backbone, "float16")


def test_an_entry_is_complete_in_itself(photos, backbone, tmp_path):
    stored = open_features(photos, backbone, tmp_path)
    (entry,) = entries(tmp_path)
    z, y = entry.arrays()
    assert np.array_equal(z, stored.z)
    assert y.tolist() == stored.targets.tolist() == photos.targets
    assert entry.facts == describe(photos, backbone, "float16")
    assert entry.facts["classes"] == ["dog", "house"]
    assert sorted(path.name for path in entry.path.iterdir()) == [
        "facts.json",
        "y.npy",
        "z.npy",
    ]


def test_the_number_of_threads_changes_no_bit(
    photos, backbone, tmp_path, monkeypatch, count
):
    before = torch.get_num_threads()
    encode, threads = type(backbone).encode_image_layers, []

    def watching(self, x):
        threads.append(torch.get_num_threads())
        return encode(self, x)

    monkeypatch.setattr(type(backbone), "encode_image_layers", watching)
    stored = []
    for n in ("1", "2"):
        monkeypatch.setenv("OMP_NUM_THREADS", n)
        stored.append(open_features(photos, backbone, tmp_path / n, "float32").z)
    assert threads[1::2] == [1, 2]  # after each blank image, for the shape
    assert torch.get_num_threads() == before
    assert np.array_equal(*stored)


def cut(path):
    os.truncate(path, path.stat().st_size - 1)


def spoil_label(path):
    np.save(path, np.full(10, 2))


def rename_class(path):
    path.write_text(path.read_text().replace("house", "horse"))


def other_numbers(path):
    np.save(path, np.load(path).astype("float32"))


@pytest.mark.parametrize(
    "name, damage",
    [
        ("z.npy", cut),
        ("z.npy", lambda path: path.write_text("")),
        ("z.npy", lambda path: path.write_text("PK\3\4")),
        ("z.npy", other_numbers),
        ("z.npy", os.unlink),
        ("y.npy", cut),
        ("y.npy", spoil_label),
        ("facts.json", os.unlink),
        ("facts.json", lambda path: path.write_text("{")),
        ("facts.json", lambda path: path.write_text("[]")),
        ("facts.json", lambda path: path.write_bytes(b"\xff")),
        ("facts.json", rename_class),
    ],
)
def test_a_damaged_entry_says_what_to_do(photos, backbone, tmp_path, name, damage):
    open_features(photos, backbone, tmp_path)
    (entry,) = entries(tmp_path)
    damage(entry.path / name)
    with pytest.raises(InputError) as raised:
        open_features(photos, backbone, tmp_path)
    sentence = str(raised.value)
    assert sentence.startswith(f"the stored features in {entry.path} are damaged (")
    assert name in sentence
    assert f"domainbed.scripts.features prune --feature_dir {tmp_path} " in sentence
    assert "\n" not in sentence


def test_features_of_an_adapted_tower_have_their_own_entry(photos, backbone, tmp_path):
    for extra in ("transformers", "peft", "bitsandbytes"):
        pytest.importorskip(extra, reason="needs the extra qlora")
    hparams = default_hparams("QLoRACLIP", "EmojiDG") | {"quant": "none"}
    hparams["class_names"] = ["dog", "house"]
    qlora = get_algorithm_class("QLoRACLIP")((3, 48, 48), 2, 3, hparams).backbone
    adapted = open_features(photos, qlora.freeze(), tmp_path)  # adapters start at 0
    plain = open_features(photos, backbone, tmp_path)
    assert len(entries(tmp_path)) == 2
    assert np.allclose(adapted.z, plain.z, atol=0.02)


def test_memory_does_not_grow_with_the_store(photos, backbone, tmp_path):
    """Nothing on the way to a batch reads more of z than the batch."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs Linux's account of memory")
    facts = describe(photos, backbone, "float16") | {"images": 200_000}
    entry = Entry(tmp_path / key_of(facts))
    entry.path.mkdir()
    (entry.path / "facts.json").write_text(json.dumps(facts))
    np.save(entry.path / "y.npy", np.zeros(200_000, int))
    path = entry.path / "z.npy"
    shape = (200_000, 12, 1536)
    np.lib.format.open_memmap(path, "w+", "float16", shape)[[5, -1]] = 1
    if path.stat().st_blocks * 512 > 1e9:
        pytest.skip("the file system knows no holes in files")

    def own_memory():
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("RssAnon:")[1].split()[0])

    before = own_memory()
    z, y = entry.arrays()
    stored = StoredFeatures(z, y, range(len(z))).subset(range(5, 200_000))
    first, _ = stored.gather(range(1024))
    batches = [stored.gather([i, -1 - i])[0] for i in range(32)]
    assert isinstance(stored.z, np.memmap)
    assert first[0].eq(1).all() and batches[0].eq(1).all() and not first[1:].any()
    assert path.stat().st_size > 7e9
    assert own_memory() - before < 2e8


@pytest.mark.parametrize("offset", [0, 128, 5000, 300_000])
def test_what_a_batch_asks_the_kernel_for_is_its_rows(offset, tmp_path, monkeypatch):
    path, rng = tmp_path / "z", np.random.default_rng(0)
    rows = rng.integers(0, 255, (40, 3, 1234), np.uint8).view(np.float16)
    path.write_bytes(bytes(offset) + rows.tobytes())
    z = np.memmap(path, "float16", "r", offset, rows.shape)
    keys = np.array([0, 7, 39])
    for key, (start, length) in zip(keys, store.pages_of(z, keys), strict=True):
        asked = z.base[start : start + length]
        assert start % mmap.PAGESIZE == 0
        assert asked.endswith(rows[key].tobytes())
        assert len(asked) < rows[key].nbytes + mmap.PAGESIZE
    asked = []
    monkeypatch.setattr(store, "pages_of", lambda z, keys: asked.extend(keys) or [])
    StoredFeatures(z, range(40), range(10, 40)).gather([0, 3])
    assert asked == [10, 13]


def test_features_are_kept_with_the_data_where_that_can_be(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    data = tmp_path / "data"
    data.mkdir()
    assert store.default_feature_dir(str(data)) == data / "features"
    cache = tmp_path / "home" / ".cache" / "domainbed" / "features"
    assert store.default_feature_dir(None) == cache
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert store.default_feature_dir(str(data)) == cache


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
        batches = zip(*run.loaders("train"), strict=True)
        values = [run.algorithm.update(next(batches))["loss"] for _ in range(50)]
        return values, run.evaluate()

    from_store, accuracies = losses()
    assert list((pacs / "features").glob("*/z.npy"))
    from_pixels, expected = losses("--no_feature_store")
    assert from_store == pytest.approx(from_pixels, rel=rtol)
    assert accuracies == expected


@pytest.mark.parametrize("what", ["images", "features", "layers"])
def test_features_in_memory_give_the_same_bits(pacs, tmp_path, monkeypatch, what):
    """Read once where they fit a tenth of free memory, by memory map else."""
    algorithm = "LFA" if what == "images" else "ERM"
    hparams = {"clip_backbone": "emoji", "batch_size": 2}
    if what != "images":
        hparams["input"] = what
    flags = ["--dataset", "PACS", "--data_dir", str(pacs), "--algorithm", algorithm]
    args = train.parse_args([*flags, "--hparams", json.dumps(hparams)])
    size = sum(features.size for features in training.Run(args).stored)

    def trained(free):
        monkeypatch.setattr(inputs, "free_bytes", lambda device: free)
        run = training.Run(args)
        batches = run.task.batches(run)
        losses = [run.update(step, next(batches))["loss"] for step in range(5)]
        stored = getattr(run.at_hand[0], "stored", run.at_hand[0])
        return isinstance(stored.z, torch.Tensor), losses, run.evaluate()

    held, *numbers = trained(10 * size)
    mapped, *expected = trained(10 * size - 1)
    assert (held, mapped) == (True, False)
    assert numbers == expected
