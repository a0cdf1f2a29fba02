"""`Features:FILE`: what a frozen encoder made of images, without the images.

The file's layout is `lib/feature_file.py`'s; `features export` writes one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from domainbed.datasets import MADE, MultipleDomainDataset
from domainbed.lib.errors import InputError
from domainbed.lib.feature_file import FeatureFile, read

if TYPE_CHECKING:
    import torch

PREFIX = "Features:"  # FEATURES of the backbones, whose import takes torch


class FeatureEnvironment:
    """The items of one domain: (z (L, D) in float32, label)."""

    def __init__(self, z: np.ndarray, targets: list[int]):
        self.z, self.targets = z, targets

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        import torch

        return torch.tensor(self.z[index]).float(), self.targets[index]


class FeaturesDataset(MultipleDomainDataset):
    """The domains of a feature file; `input_shape` is an image's, (L, D)."""

    CHECKPOINT_FREQ = 300
    FILE: FeatureFile

    def __init__(self, root, test_envs, hparams):
        file = self.FILE
        file.check_finite()
        self.input_shape, self.class_names = file.z.shape[1:], file.class_names
        self.num_classes = len(file.class_names)
        allowed = hparams.get("allow_missing_classes", False)
        self.datasets = [self.domain(i, allowed) for i in range(len(file.domain_names))]

    def domain(self, i: int, missing_allowed: bool) -> FeatureEnvironment:
        """Domain i's items in the file's order; InputError if it lacks some."""
        file = self.FILE
        places = np.flatnonzero(file.domains == i)
        targets = file.labels[places].tolist()
        lacking = sorted({*range(self.num_classes)} - {*targets})
        if len(lacking) == self.num_classes or (lacking and not missing_allowed):
            raise InputError(
                f"{file.path} has no image of domain {file.domain_names[i]}, class "
                f"{file.class_names[lacking[0]]}; where a domain has some of the "
                "classes, --allow_missing_classes goes on."
            )
        first, last = places[0], places[-1] + 1
        together = last - first == len(places)  # then they need not be read yet
        return FeatureEnvironment(
            file.z[first:last] if together else file.z[places], targets
        )


def features(path: Path) -> type[FeaturesDataset]:
    """The dataset in that file."""
    file = read(path)
    facts: dict[str, Any] = {"FILE": file, "ENVIRONMENTS": tuple(file.domain_names)}
    steps = {"N_STEPS": file.n_steps, "CHECKPOINT_FREQ": file.checkpoint_freq}
    facts |= {name: n for name, n in steps.items() if n}
    return type(f"{PREFIX}{path}", (FeaturesDataset,), facts)


MADE[PREFIX] = features
