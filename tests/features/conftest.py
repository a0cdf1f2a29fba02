"""A tiny PACS, and the emoji CLIP that makes its features."""

import pytest
from helpers import CLIP

from domainbed import datasets
from domainbed.backbones import load_clip


@pytest.fixture(scope="module")
def backbone():
    return load_clip("emoji")


@pytest.fixture
def photos(pacs):
    """The photo environment of a tiny PACS, 10 images, as CLIP sees it."""
    return datasets.PACS(str(pacs), [0], CLIP)[2]


@pytest.fixture
def count(monkeypatch, backbone):
    """How many images the backbone has encoded so far."""
    encoded = []
    encode = type(backbone).encode_image_layers

    def counting(self, x):
        encoded.append(len(x))
        return encode(self, x)

    monkeypatch.setattr(type(backbone), "encode_image_layers", counting)
    return lambda: sum(encoded)
