"""What is a picture, and how wide ones are read."""

import errno
import os

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from domainbed.lib.errors import InputError
from domainbed.lib.pictures import ENDINGS, pictures, plain, read_image, subfolders
from domainbed.lib.texts import read_text


def names(folder):
    return [path.removeprefix(f"{folder}/") for path in pictures(folder)]


def test_litter_is_no_picture_at_any_depth(tmp_path):
    there = ["b.jpg", "a.PNG", "deep/c.webp", "deep/er/d.tiff"]
    litter = ["._b.jpg", ".ipynb_checkpoints/b-checkpoint.jpg", "deep/@eaDir/c.jpg"]
    litter += ["__MACOSX/e.jpg", "deep/.thumbs/c.jpg", "f.gif", "$RECYCLE.BIN/g.jpg"]
    litter += ["#snapshot/h.jpg", "@__thumb/i.jpg", "~snapshot/j.jpg", "@Recycle/k.jpg"]
    for name in there + litter:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert names(tmp_path) == ["a.PNG", "b.jpg", "deep/c.webp", "deep/er/d.tiff"]
    assert subfolders(tmp_path) == ["deep"]


def test_pictures_end_as_torchvision_has_it():
    assert ENDINGS == IMG_EXTENSIONS


def test_no_folder_is_read_twice(tmp_path):
    for name in ("set/cat/0.jpg", "set/cat/more/1.jpg", "elsewhere/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    cat = tmp_path / "set" / "cat"
    for name, to in (("up", ".."), ("itself", "."), ("again", "more")):
        (cat / name).symlink_to(to)
    (cat / "other").symlink_to(tmp_path / "elsewhere")
    found = [name.split("/")[-1] for name in names(cat)]
    assert sorted(found) == ["0.jpg", "1.jpg", "2.jpg"]


def test_a_pipe_is_no_picture_that_is_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.jpg")
    with pytest.raises(
        InputError, match=r"cannot read the image .*x.jpg: .*not a file"
    ):
        read_image(str(tmp_path / "x.jpg"))


def test_a_folder_that_nobody_may_look_into_is_not_empty(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    scandir = os.scandir

    def refusing(place):
        if str(place).endswith("deep"):
            raise PermissionError(errno.EACCES, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(InputError, match=r"for pictures in .*deep: Permission denied"):
        pictures(tmp_path)


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled(ending, tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / f"x.{ending}")
    pixels = np.array(read_image(str(tmp_path / f"x.{ending}")))
    assert (pixels == (ramp >> 8)[..., None]).all()


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_a_range_that_nobody_knows_is_refused(dtype, tmp_path):
    Image.fromarray(np.ones((4, 4), dtype)).save(tmp_path / "x.tif")
    with pytest.raises(InputError, match=r"x.tif: .*32 bits .* 8 or 16 bits"):
        read_image(str(tmp_path / "x.tif"))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr"])
def test_narrow_modes_are_as_pillow_converts_them(mode, tmp_path):
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    picture = picture.convert(mode)
    # Pillow 12 cannot read the YCbCr that it writes without compression.
    picture.save(tmp_path / "x.tif", compression="tiff_lzw")
    read = np.array(read_image(str(tmp_path / "x.tif")))
    assert (read == np.array(Image.open(tmp_path / "x.tif").convert("RGB"))).all()


def test_spellings_are_one_name():
    assert plain("Real World") == plain("real_world") == "realworld"
    assert plain("cafe\u0301") == plain("Caf\u00e9")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_as_windows_saves_it(encoding, tmp_path):
    (tmp_path / "x").write_bytes("für\r\nalle\n".encode(encoding))
    assert read_text(tmp_path / "x") == "für\nalle\n"


def test_text_in_another_encoding_is_named(tmp_path):
    (tmp_path / "x").write_bytes("für".encode("latin-1"))
    with pytest.raises(InputError, match=r"/x is not in UTF-8 .* byte 1"):
        read_text(tmp_path / "x")
    for encoding in ("utf-16-le", "utf-32"):
        (tmp_path / "x").write_bytes("--steps".encode(encoding))
        with pytest.raises(InputError, match=r"/x is not in UTF-8, but perhaps UTF-16"):
            read_text(tmp_path / "x")
