"""Which layers a trained LFA listens to: the content of a run's layer_attention.json.

One pass over a sample of what the run evaluates on; see LFA.layer_attention.
"""

from collections import defaultdict
from typing import Any

import torch

from domainbed.lib.fast_data_loader import FastDataLoader

MOST_IMAGES = 512  # of an environment
BATCH = 64  # images; their cross weights are (B, C, L)


@torch.no_grad()
def summarise(run: Any) -> dict[str, dict[str, dict[str, list[float]]]] | None:
    """Mean weights over layers of a `training.Run`; None if its method has none.

    {"environments": {name: {image, cross}}, "classes": {name: {image, self, cross}}}:
    image (L of the image tower), self and cross (L of the text tower) are lists. cross
    is what an image gives the text of its own class. A class of which no image was
    seen has only self. The images are those of each environment's out-split, or of its
    in-split where it has no other.
    """
    algorithm, dataset = run.algorithm, run.dataset
    if not hasattr(algorithm, "layer_attention"):
        return None
    environments, classes = defaultdict(Mean), defaultdict(Mean)
    splits = {
        split.env: split
        for split in run.splits
        if split.role != "unlabeled" and same_classes(dataset, split.env)
    }
    algorithm.eval()
    for env, split in splits.items():
        sample = split._replace(keys=split.keys[:MOST_IMAGES])
        items = run.items(sample, to_train=False)
        for x, labels in FastDataLoader(items, BATCH, run.workers(1)):
            weights = algorithm.layer_attention(x.to(run.device))
            own = weights["self"]  # (C, L), whatever the images are
            cross = weights["cross"][torch.arange(len(labels)), labels]  # (B, L)
            of_images = zip(labels.tolist(), weights["image"], cross, strict=True)
            for label, *pair in of_images:
                environments[dataset.environment_name(env)].add(*pair)
                classes[label].add(*pair)
    algorithm.train()
    names = dataset.class_names or [f"class {i}" for i in range(dataset.num_classes)]
    return {
        "environments": {name: mean.plain() for name, mean in environments.items()},
        "classes": {
            name: classes[label].plain() | {"self": rounded(own[label])}
            for label, name in enumerate(names)
        },
    }


def same_classes(dataset: Any, env: int) -> bool:
    """Whether the environment has the classes that were trained on."""
    own = getattr(dataset[env], "classes", dataset.class_names)
    return own == dataset.class_names


class Mean:
    """The mean of what images weigh the layers of both towers."""

    def __init__(self):
        self.n, self.image, self.cross = 0, 0.0, 0.0

    def add(self, image: torch.Tensor, cross: torch.Tensor) -> None:
        self.n += 1
        self.image = self.image + image.double()
        self.cross = self.cross + cross.double()

    def plain(self) -> dict[str, list[float]]:
        """{image, cross}, {} of no image."""
        if not self.n:
            return {}
        return {
            "image": rounded(self.image / self.n),
            "cross": rounded(self.cross / self.n),
        }


def rounded(weights: torch.Tensor) -> list[float]:
    return [round(weight, 5) for weight in weights.tolist()]
