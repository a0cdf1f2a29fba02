"""Feature files: what they hold is read as written, and what is wrong is said."""

import json
import os

import numpy as np
import pytest

from domainbed.lib import feature_file
from domainbed.lib.errors import InputError
from domainbed.lib.feature_file import read, write

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(6, 3, 4)).astype(np.float16)
ARRAYS = {
    "labels": np.array([0, 1, 2, 2, 1, 0], np.int16),
    "domains": np.array([0, 0, 0, 1, 1, 1], np.uint8),
    "class_names": np.array(["cat", "dog", "élan"]),
    "domain_names": np.array(["photo", "sketch"]),
    "ids": np.array([f"{i}.png" for i in range(6)]),
    "prompts": np.array([f"{a} {b}" for a in ("a", "the") for b in ("x", "y", "z")]),
    "t": RNG.normal(size=(6, 2, 5)).astype(np.float32),
    "image_projection": RNG.normal(size=(4, 7)).astype(np.float32),
    "text_projection": RNG.normal(size=(5, 7)).astype(np.float32),
    "scale": np.array(14.0, np.float32),
    "backbone": np.array("0123456789abcdef"),
    "n_steps": np.array(501),
    "checkpoint_freq": np.array(100),
}


@pytest.fixture(params=feature_file.ENDINGS)
def path(tmp_path, request):
    return tmp_path / f"features{request.param}"


def test_what_was_written_is_read(path):
    write(path, [Z[:2], Z[2:]], ARRAYS)
    file = read(path)
    assert np.array_equal(file.z, Z) and file.z.dtype == Z.dtype
    for name in ("labels", "domains", "ids", "prompts", "t"):
        assert np.array_equal(getattr(file, name), ARRAYS[name]), name
    for name in ("image_projection", "text_projection"):
        assert np.array_equal(getattr(file, name), ARRAYS[name]), name
    assert file.class_names == ["cat", "dog", "élan"]
    assert file.domain_names == ["photo", "sketch"]
    known = file.scale, file.backbone, file.n_steps, file.checkpoint_freq
    assert known == (14, "0123456789abcdef", 501, 100)
    assert os.listdir(path.parent) == [path.name]
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()


def test_a_link_stays_one(path, tmp_path):
    (tmp_path / "there").mkdir()
    path.symlink_to(tmp_path / "there" / path.name)
    write(path, [Z], ARRAYS)
    assert path.is_symlink() and np.array_equal(read(path).z, Z)


def umask():
    now = os.umask(0)
    os.umask(now)
    return now


def test_z_stays_on_the_disk_unless_it_is_compressed(tmp_path, monkeypatch):
    write(tmp_path / "a.npz", [Z], ARRAYS)
    np.savez_compressed(tmp_path / "b.npz", z=Z, **ARRAYS)
    np.savez(tmp_path / "c.npz", z=np.asfortranarray(Z), **ARRAYS)
    mapped, whole, fortran = (read(tmp_path / f"{name}.npz") for name in "abc")
    assert isinstance(mapped.z, np.memmap) and isinstance(fortran.z, np.memmap)
    assert not isinstance(whole.z, np.memmap)
    assert np.array_equal(whole.z, Z) and np.array_equal(fortran.z, Z)
    assert mapped.digest == whole.digest == fortran.digest
    monkeypatch.setattr(feature_file, "CHUNK", 48)  # two rows
    write(tmp_path / "d.npz", [Z[:1], Z[1:]], ARRAYS)
    assert (tmp_path / "d.npz").read_bytes() == (tmp_path / "a.npz").read_bytes()


def test_the_digest_names_the_content_in_whatever_file(tmp_path):
    write(tmp_path / "a.npz", [Z], ARRAYS)
    write(tmp_path / "a.safetensors", [Z], ARRAYS)
    own = read(tmp_path / "a.npz").digest
    assert read(tmp_path / "a.safetensors").digest == own
    others = [{"z": Z + 1}, {"labels": 2 - ARRAYS["labels"]}]
    others += [{name: ARRAYS[name][::-1]} for name in ("class_names", "ids", "t")]
    others.append({"scale": np.array(15.0, np.float32)})
    for other in others:
        np.savez(tmp_path / "b.npz", **{"z": Z} | ARRAYS | other)
        assert read(tmp_path / "b.npz").digest != own, other.keys()


def test_what_may_be_missing(tmp_path):
    few = {name: ARRAYS[name] for name in feature_file.NEEDED if name != "z"}
    np.savez(tmp_path / "a.npz", z=Z[:, 0], t=Z[:3, 1], **few)
    file = read(tmp_path / "a.npz")
    assert file.z.shape == (6, 1, 4) and file.t.shape == (3, 1, 4)
    assert np.array_equal(file.image_projection, np.eye(4))
    assert np.array_equal(file.text_projection, np.eye(4))
    assert (file.scale, file.prompts, file.ids, file.backbone) == (
        100,
        None,
        None,
        None,
    )
    assert file.fingerprint == file.digest
    np.savez(tmp_path / "a.npz", z=Z[:, 0], **few)
    assert read(tmp_path / "a.npz").t is None  # the file has changed
    assert "no texts" in read(tmp_path / "a.npz").content


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"z": None}, r"has no array z; it holds backbone, .*layout"),
        ({"z": None, "Z": Z}, r"has no array z; .* Did you mean 'Z'\?"),
        ({"domain_names": None}, "has no array domain_names"),
        ({"z": Z.astype(float)}, r"z of float64 .*must be of float16 or float32"),
        ({"z": Z[0, 0]}, r"z of float16 and shape \(4,\); .* shape \(N, L, D\)"),
        ({"z": Z[:0]}, r"shape \(0, 3, 4\)"),
        ({"labels": ARRAYS["labels"][:5]}, r"labels .*shape \(5,\);.* shape \(6\)"),
        ({"labels": np.array([0, 1, 2, 3, 1, 0])}, "has 3 in labels, at item 3;.*to 2"),
        ({"labels": np.array([0, 1, 2, 2, 1, -1])}, "has -1 in labels, at item 5"),
        ({"labels": np.full(6, 0.5)}, "labels of float64"),
        ({"domains": np.full(6, 2)}, "has 2 in domains, .*domain_names has 2"),
        ({"class_names": np.array(["a", "a", "b"])}, "class_names a, a, b; .*alike"),
        ({"class_names": np.array(["a"]), "labels": np.zeros(6, int)}, "at least 2"),
        ({"class_names": np.arange(3)}, "class_names of int64"),
        ({"class_names": np.array(["a", None, 1])}, "cannot be read: Object arrays"),
        ({"z": np.full((6, 1, 4), None)}, "cannot be read: z holds Python objects"),
        ({"t": ARRAYS["t"][:3]}, r"t of float32 and shape \(3, 2, 5\);.*\(6, K, W\)"),
        ({"t": ARRAYS["t"] * np.float32(np.nan)}, "numbers in t that are not finite"),
        ({"scale": np.array(np.nan)}, "numbers in scale that are not finite"),
        ({"text_projection": np.eye(5)}, r"text_projection .*\(5, 5\);.*\(5, 7\)"),
        ({"image_projection": np.eye(5)}, r"image_projection .*\(5, 5\);.*\(4, E\)"),
        ({"ids": np.array(["a"])}, r"ids of str and shape \(1,\)"),
    ],
)
def test_bad_files_are_refused(tmp_path, changes, says):
    arrays = {"z": Z} | ARRAYS | changes
    held = {name: array for name, array in arrays.items() if array is not None}
    np.savez(tmp_path / "a.npz", **held)
    with pytest.raises(InputError, match=says):
        read(tmp_path / "a.npz")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_features_that_are_not_finite_are_found(tmp_path, monkeypatch, dtype, value):
    monkeypatch.setattr(feature_file, "CHUNK", 48)
    z = Z.astype(dtype)
    z[:] = np.finfo(dtype).max
    np.savez(tmp_path / "a.npz", z=z, **ARRAYS)
    read(tmp_path / "a.npz").check_finite()
    z[4, 1, 2] = value
    np.savez(tmp_path / "b.npz", z=z, **ARRAYS)
    with pytest.raises(InputError, match=r"z, item 4 \(4.png\), not finite"):
        read(tmp_path / "b.npz").check_finite()


def test_what_is_no_feature_file(path, tmp_path):
    with pytest.raises(InputError, match="there is no feature file"):
        read(path)
    for content in (b"", b"PK", b"\x80\x04N.", b"x" * 100):
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read"):
            read(path)
    for use in (read, lambda path: write(path, [Z], ARRAYS)):
        with pytest.raises(InputError, match=r"ends in \.npz or \.safetensors"):
            use(tmp_path / "a.npy")


def test_tensors_of_others_are_read(tmp_path):
    from safetensors.numpy import save_file

    names = {n: json.dumps(ARRAYS[n].tolist()) for n in ("class_names", "domain_names")}
    held = {"z": Z, "labels": ARRAYS["labels"], "domains": ARRAYS["domains"]}
    save_file(held, tmp_path / "a.safetensors", names | {"format": "pt"})
    assert read(tmp_path / "a.safetensors").class_names == ["cat", "dog", "élan"]
    save_file(held, tmp_path / "b.safetensors", names | {"class_names": "cat"})
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "b.safetensors")


def test_a_full_disk_leaves_nothing(path, monkeypatch):
    path.write_bytes(b"older")

    def refuse(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_file, f"to_{path.suffix[1:]}", refuse)
    with pytest.raises(OSError, match="No space"):
        write(path, [Z], ARRAYS)
    assert os.listdir(path.parent) == [path.name]
    assert path.read_bytes() == b"older"
