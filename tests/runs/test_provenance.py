"""What a run was made from: its data as they have always been named, its code."""

import os
from pathlib import Path

from domainbed.datasets import get_dataset_class
from domainbed.lib import misc
from domainbed.runs.provenance import dataset_fingerprint, git_state


def test_the_fingerprint_is_of_names_and_labels_wherever_the_files_lie(
    pacs, monkeypatch
):
    """The digest of `environment path-in-it label`, in the dataset's order."""
    own = [
        f"{i} {Path(file).relative_to(env.root)} {y}"
        for i, env in enumerate(dataset(str(pacs)))
        for file, y in env.samples
    ]
    assert len(own) == 40
    monkeypatch.chdir(pacs)
    for place in (str(pacs), f"{pacs}/", os.curdir):
        assert dataset_fingerprint(dataset(place)) == misc.digest(own)
    moved = pacs.rename(pacs.with_name("moved"))
    assert dataset_fingerprint(dataset(str(moved))) == misc.digest(own)
    (moved / "PACS" / "photo" / "dog" / "0.png").unlink()
    assert dataset_fingerprint(dataset(str(moved))) != misc.digest(own)


def dataset(root):
    return get_dataset_class("PACS")(root, [0], {"data_augmentation": False})


def test_a_killed_git_is_asked_again(tmp_path, monkeypatch):
    """Without an answer a run would seem to be made from other code than its sweep's.

    Found by tools/torture, which takes any child of a run for a loader.
    """
    killed = tmp_path / "killed"
    git = tmp_path / "git"
    git.write_text(
        f"#!/bin/sh\n[ -e {killed} ] && echo 1234 && exit\n>{killed}\nkill -9 $$\n"
    )
    git.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    git_state.cache_clear()
    assert git_state() == "1234"
    git.write_text("#!/bin/sh\necho 1234\nexit 128\n")
    git_state.cache_clear()
    assert git_state() is None
    git_state.cache_clear()
