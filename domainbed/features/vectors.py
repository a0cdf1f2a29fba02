"""A dataset seen through a frozen CLIP: vectors, for algorithms that train on any.

With the hparam `input` any algorithm that takes flat vectors, ERM first, runs on what
the feature store holds:

    images      (default) no CLIP
    features    the image's embedding, the last layer projected: (E,)
    layers      the features of all layers, one after another: (L D,)
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from domainbed.backbones import CLIPBackbone
from domainbed.features.store import StoredFeatures
from domainbed.lib.errors import UnknownNameError

INPUTS = ("images", "features", "layers")


def check_input(what: Any) -> str:
    """The value of the hparam `input`; InputError if it is not one that there is."""
    if what not in INPUTS:
        raise UnknownNameError("value of the hyperparameter input:", what, INPUTS)
    return what


def vector_size(backbone: CLIPBackbone, what: str) -> int:
    """E for `features`, L D for `layers`."""
    width, n_embed = backbone.image_projection.shape
    return n_embed if what == "features" else backbone.n_image_layers * width


class Vectors(Dataset):
    """An environment's (vector, label) pairs, in float32.

    With a projection (D, E) the vectors are embeddings, without one all layers' z.
    """

    def __init__(self, stored: StoredFeatures, projection: torch.Tensor | None):
        self.stored, self.projection = stored, projection

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        x, y = self.gather([index])
        return x[0], int(y[0])

    def gather(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors (B, n) and labels (B,) of the items at these indices."""
        z, y = self.stored.gather(indices)
        if self.projection is None:
            return z.flatten(1), y
        return z[:, -1] @ self.projection, y

    def subset(self, keys: Sequence[int]) -> "Vectors":
        """The items at these indices."""
        return Vectors(self.stored.subset(keys), self.projection)

    @property
    def size(self) -> int:
        """Bytes of what they are made of, as stored."""
        return self.stored.size

    def on(self, device: torch.device | str) -> "Vectors":
        """The same, made in that device's memory of features there."""
        projection = self.projection
        if projection is not None:
            projection = projection.to(device)
        return Vectors(self.stored.on(device), projection)
