"""Extraction: killed, waited for, on disks without room; whole or not at all."""

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers import CLIP

from domainbed import datasets
from domainbed.features import store
from domainbed.features.entries import entries, size_text
from domainbed.features.store import open_features
from domainbed.lib.errors import InputError

KILLED = """
import os, signal, sys
from pathlib import Path
from domainbed import datasets
from domainbed.features import store
from domainbed.backbones import CLIPBackbone, load_clip

store.BATCH, store.FLUSH = 1, 2
encode, encoded = CLIPBackbone.encode_image_layers, []

def dying(self, x):
    if len(encoded) == 1 + 5:  # the first, for the shape, is blank
        os.kill(os.getpid(), signal.SIGKILL)
    encoded.append(x)
    return encode(self, x)

CLIPBackbone.encode_image_layers = dying
hparams = {"data_augmentation": True, "clip_transform": True, "clip_backbone": "emoji"}
photos = datasets.PACS(sys.argv[1], [0], hparams)[2]
store.open_features(photos, load_clip("emoji"), Path(sys.argv[2]))
"""


def test_a_killed_extraction_continues(
    photos, backbone, pacs, tmp_path, count, monkeypatch
):
    folder = tmp_path / "store"
    command = [sys.executable, "-c", KILLED, str(pacs), str(folder)]
    ended = subprocess.run(command, stderr=subprocess.PIPE)
    assert ended.returncode == -9, ended.stderr
    (entry,) = entries(folder)
    assert (entry.whole, entry.done, entry.is_locked()) == (False, 4, False)
    monkeypatch.setattr(store, "BATCH", 1)
    resumed = open_features(photos, backbone, folder)
    assert count() == 6
    whole = open_features(photos, backbone, tmp_path / "whole")
    assert np.array_equal(resumed.z, whole.z)
    assert [entry.whole for entry in entries(folder)] == [True]


def test_only_what_is_known_to_be_done_is_kept(photos, backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "BATCH", 1)
    whole = np.array(open_features(photos, backbone, tmp_path).z)
    (entry,) = entries(tmp_path)
    for name, content in (("rows", "4"), ("rows", ""), ("z.npy", ""), ("y.npy", "x")):
        z = np.lib.format.open_memmap(entry.path / "z.npy", "r+")
        z[4:] = 0
        entry.path.rename(entry.part)
        (entry.part / "rows").write_text("4")
        (entry.part / name).write_text(content)
        assert np.array_equal(open_features(photos, backbone, tmp_path).z, whole)


@contextlib.contextmanager
def largest_file(size):
    """Files can be no larger inside, as on a disk without room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_found_before_anything_is_computed(
    photos, backbone, tmp_path, count
):
    with largest_file(8192), pytest.raises(InputError, match=r"\(File too large\)"):
        open_features(photos, backbone, tmp_path / "store")
    assert count() == 1  # a blank image, for the shape
    assert not entries(tmp_path / "store")


def test_space_is_reserved_not_only_promised(photos, backbone, tmp_path, monkeypatch):
    def full(file, offset, length):
        assert length == os.fstat(file).st_size > 10 * 8 * 128 * 2
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"No space left on device.*--feature_dir"):
        open_features(photos, backbone, tmp_path / "store")
    assert not entries(tmp_path / "store")


def test_the_size_is_said_before_and_refused_where_the_disk_lacks_it(
    pacs, backbone, tmp_path, monkeypatch, capsys
):
    photos, sketches = (datasets.PACS(str(pacs), [0], CLIP)[i] for i in (2, 3))
    both = ([photos, sketches], backbone, tmp_path / "store")
    size = 20 * 8 * 128 * 2
    free = shutil.disk_usage(tmp_path)._replace(free=size - 1)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: free)
        says = "20 images, 8 x 128 float16 each, take 0.0 MB, and .* has 0.0 MB left; "
        with pytest.raises(InputError, match=says):
            store.open_all(*both)
        assert not entries(tmp_path / "store")
        full.setattr(shutil, "disk_usage", lambda path: free._replace(free=size))
        store.open_all(*both)
    assert capsys.readouterr().err.count("the features of 20 images") == 1
    store.open_all(*both)
    assert not capsys.readouterr().err
    assert size_text(133_120 * 9_991) == "1.3 GB"
    assert size_text(31_000_000) == "31.0 MB"


def test_a_disk_that_fills_later_is_an_error_that_can_be_mended(
    photos, backbone, tmp_path, monkeypatch
):
    """A quota is looked at when the file is written; through a map that would kill."""
    encode = type(backbone).encode_image_layers
    monkeypatch.setattr(store, "BATCH", 2)
    monkeypatch.setattr(store, "FLUSH", 2)
    with contextlib.ExitStack() as limit:

        def filling(self, x):
            if len(x) == 2:  # not the blank one
                limit.enter_context(largest_file(8192))
            return encode(self, x)

        monkeypatch.setattr(type(backbone), "encode_image_layers", filling)
        with pytest.raises(InputError, match="File too large"):
            open_features(photos, backbone, tmp_path / "store")
    monkeypatch.setattr(type(backbone), "encode_image_layers", encode)
    (entry,) = entries(tmp_path / "store")
    assert not entry.whole
    resumed = open_features(photos, backbone, tmp_path / "store")
    whole = open_features(photos, backbone, tmp_path / "whole")
    assert np.array_equal(resumed.z, whole.z)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_read_only_store_is_read_but_not_written(
    photos, backbone, tmp_path, monkeypatch, number
):
    open_features(photos, backbone, tmp_path)

    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    for function in ("utime", "open", "mkdir", "rename"):
        monkeypatch.setattr(os, function, refuse)
    assert len(open_features(photos, backbone, tmp_path)) == 10
    with pytest.raises(InputError, match=f"{os.strerror(number)}.*--feature_dir"):
        open_features(photos, backbone, tmp_path, "float32")


def test_a_file_is_no_store(photos, backbone, tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(InputError, match="cannot store layer features in"):
            open_features(photos, backbone, folder)


def test_an_interrupted_extraction_continues(
    photos, backbone, tmp_path, count, monkeypatch
):
    monkeypatch.setattr(store, "BATCH", 1)
    whole = np.array(open_features(photos, backbone, tmp_path / "whole").z)
    broken = datasets.PACS(photos.root + "/../..", [0], CLIP)[2]
    path = Path(broken.samples[8][0])
    picture, times = path.read_bytes(), path.stat()

    def spoil(content):
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    monkeypatch.setattr(store, "FLUSH", 4)
    spoil(b"x" * len(picture))
    with pytest.raises(InputError, match="cannot read the image"):
        open_features(photos, backbone, tmp_path / "cut")
    (entry,) = entries(tmp_path / "cut")
    assert (entry.whole, entry.done) == (False, 8)
    spoil(picture)
    before = count()
    resumed = open_features(photos, backbone, tmp_path / "cut")
    assert count() - before == 2
    assert np.array_equal(resumed.z, whole)
    assert not list((tmp_path / "cut").glob("*/rows"))


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
    assert "waiting for the process that writes" in capsys.readouterr().err


@pytest.mark.parametrize(
    "dtype, factor, says",
    [
        ("float16", 1e5, r"photo/dog/0.png .* float16 .*feature_dtype=float32"),
        ("float32", float("nan"), r"photo/dog/0.png .* not finite.*another"),
    ],
)
def test_only_finite_features_are_stored(
    photos, backbone, tmp_path, monkeypatch, dtype, factor, says
):
    encode = type(backbone).encode_image_layers
    monkeypatch.setattr(
        type(backbone), "encode_image_layers", lambda self, x: encode(self, x) * factor
    )
    with pytest.raises(InputError, match=says):
        open_features(photos, backbone, tmp_path, dtype)
    assert not entries(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_where_locks_are_refused_features_are_extracted_all_the_same(
    photos, backbone, tmp_path, monkeypatch, number
):
    whole = open_features(photos, backbone, tmp_path / "whole")

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    features = open_features(photos, backbone, tmp_path / "unlocked")
    assert np.array_equal(features.z, whole.z)
    assert not [*(tmp_path / "unlocked").glob("*.heartbeat")]


def test_an_extraction_that_another_has_taken_over_makes_no_entry(
    photos, backbone, tmp_path, monkeypatch
):
    """It was stopped for long, and its lock is one that the other does not see."""
    monkeypatch.setattr(store, "BATCH", 1)
    monkeypatch.setattr(store, "FLUSH", 2)
    encode = type(backbone).encode_image_layers

    def overtaken(self, x):
        for beat in tmp_path.glob("*.heartbeat"):
            beat.write_text('{"host": "elsewhere", "pid": 1}')
        return encode(self, x)

    monkeypatch.setattr(type(backbone), "encode_image_layers", overtaken)
    with pytest.raises(InputError, match="process 1 on elsewhere"):
        open_features(photos, backbone, tmp_path)
    assert [entry.whole for entry in entries(tmp_path)] == [False]
