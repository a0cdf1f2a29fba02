from pathlib import Path

import pytest
import torch
from PIL import Image

from domainbed.scripts import save_images


def test_a_sheet_for_every_environment(pacs, tmp_path, capsys):
    out = tmp_path / "out"
    where = ["--data_dir", str(pacs), "--output_dir", str(out)]
    save_images.main([*where, "--datasets", "PACS", "Debug28", "--n", "4"])
    names = {path.name for path in out.iterdir()}
    assert {f"Debug28_env{i}_{i}.png" for i in range(3)} < names
    assert {"PACS_env2_photo.png", "PACS_env3_sketch.png"} < names
    assert len(names) == 7
    assert Image.open(out / "PACS_env0_art_painting.png").size == (906, 228)
    assert len(capsys.readouterr().out.splitlines()) == 7


def test_what_is_not_there_is_left_out_unless_asked_for(tmp_path, capsys):
    where = ["--data_dir", str(tmp_path / "none"), "--output_dir", str(tmp_path / "o")]
    save_images.main(where)
    out = capsys.readouterr().out
    assert "VLCS left out: VLCS is not at" in out
    assert Path(tmp_path / "o" / "EmojiDG_env0_fluent.png").exists()
    with pytest.raises(SystemExit) as ended:
        save_images.main([*where, "--datasets", "VLCS"])
    assert ended.value.code == 2


def test_no_pictures_are_no_sheet(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        save_images.main(["--output_dir", str(tmp_path / "o"), "--n", "0"])
    assert ended.value.code == 2
    assert "--n is 0; it must be at least 1." in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_pictures_have_three_channels_from_0_to_1(channels):
    data = [(5 * torch.randn(channels, 8, 8), 0) for _ in range(10)]
    x = save_images.pictures(data, 3)
    assert x.shape == (3, 3, 8, 8)
    assert (x.amin(), x.amax()) == (0, 1)
