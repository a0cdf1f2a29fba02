"""Paths that people give."""

import argparse
from pathlib import Path

import pytest

from domainbed.lib.errors import InputError
from domainbed.lib.paths import output_folder, user_path


def test_the_home_folder_is_known(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert user_path("~/x") == "/home/me/x"
    assert user_path("./~x") == "./~x"


@pytest.mark.parametrize("text", ["", "~nobody.here/x"])
def test_no_path_is_refused(text, capsys):
    """The empty one meant the present folder, the other a new folder of that name."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", type=user_path)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--output_dir", text])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "is empty" in said or "there is no user 'nobody.here'" in said
    assert not Path(text or "none").exists()


def test_a_place_where_no_folder_can_be_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot make --output_dir \S+/file/x: Not a"):
        output_folder(str(tmp_path / "file" / "x"))
    made = output_folder(str(tmp_path / "new" / "folder"))
    assert made.is_dir() and made == output_folder(str(made))
