"""What tests share: small data folders, and no network."""

import gzip
import json
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest_plugins = ["download_web"]  # fixtures of a web server and its archives
CONTRACT = Path(__file__).parent / "golden" / "contract"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any connection but to this machine fails, as it does for an offline user."""
    connect = socket.socket.connect

    def local_only(self, address):
        if self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1"):
            return connect(self, address)
        raise OSError(f"tests use no network, but asked for {address}")

    monkeypatch.setattr(socket.socket, "connect", local_only)
    # Names are looked up before connecting; an offline machine fails there.
    monkeypatch.setattr(socket, "getaddrinfo", _no_lookup)


def _no_lookup(*args, **kwargs):
    raise socket.gaierror("tests use no network")


def make_image_folder(
    root: Path, environments: list[str], classes: list[str], n: int = 5
) -> Path:
    """root/environment/class/i.png, n random 24 x 20 pictures in each class."""
    rng = np.random.RandomState(0)
    for environment in environments:
        for name in classes:
            folder = root / environment / name
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = rng.randint(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


@pytest.fixture
def pacs(tmp_path) -> Path:
    """A data folder with a tiny PACS: 4 domains, 2 classes, 5 images in each."""
    domains = ["art_painting", "cartoon", "photo", "sketch"]
    make_image_folder(tmp_path / "data" / "PACS", domains, ["dog", "house"])
    return tmp_path / "data"


def unpacked_sweep(name: str, folder: Path) -> Path:
    """The contract's sample sweep of that name, as result folders."""
    with gzip.open(CONTRACT / f"{name}.json.gz") as file:
        runs = json.load(file)
    for run, text in runs.items():
        (folder / run).mkdir(parents=True)
        (folder / run / "results.jsonl").write_text(text)
        (folder / run / "done").write_text("done")
    return folder
