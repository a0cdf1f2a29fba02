"""The fingerprint of a dataset, as it has always been."""

import os
from pathlib import Path

from domainbed.datasets import get_dataset_class
from domainbed.lib import misc
from domainbed.runs.provenance import dataset_fingerprint


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
