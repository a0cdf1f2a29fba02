"""What every test has: fixtures, and no network."""

import socket
from pathlib import Path

import helpers
import pytest
import torch
from helpers import Interrupted, make_image_folder

from domainbed import algorithms, datasets, training

pytest_plugins = ["download_web"]  # fixtures of a web server and its archives


@pytest.fixture(autouse=True)
def one_thread():
    """As in a run: sums in another order end in other digits, and which test set the
    number of threads last would decide them.
    """
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What is kept for the next process is kept for this session's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


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


@pytest.fixture
def own_registries(monkeypatch):
    """Algorithms and datasets that a test registers are forgotten after it."""
    for module in (algorithms, datasets):
        registry = module.REGISTRY
        registry.load()
        monkeypatch.setattr(registry, "names", list(registry.names))
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))


@pytest.fixture
def float64():
    """Everything is computed in float64."""
    with helpers.float64():
        yield


@pytest.fixture
def pacs(tmp_path) -> Path:
    """A data folder with a tiny PACS: 4 domains, 2 classes, 5 images in each."""
    domains = ["art_painting", "cartoon", "photo", "sketch"]
    make_image_folder(tmp_path / "data" / "PACS", domains, ["dog", "house"])
    return tmp_path / "data"


@pytest.fixture
def interrupt(monkeypatch):
    """Make the n-th call of a method of Run raise, before or after its work."""

    def at(name, n, after=False):
        calls, method = [], getattr(training.Run, name)

        def interrupted(self, *args):
            calls.append(None)
            if len(calls) == n and not after:
                raise Interrupted
            result = method(self, *args)
            if len(calls) == n:
                raise Interrupted
            return result

        monkeypatch.setattr(training.Run, name, interrupted)
        return lambda: monkeypatch.setattr(training.Run, name, method)

    return at
