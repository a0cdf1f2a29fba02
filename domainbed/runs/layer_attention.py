"""Which layers a trained method listens to: a run's layer_attention.json.

A method says it in `layer_attention(x)`, weights that depend on the images, or in
`layers_used()`, weights that do not.
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
    in-split where it has no other. Where a method reads the states x_0 to x_L, the only
    list is states (L + 1 of the image tower).
    Weights that are the same for all images are {"used": {part: {states}}}, which sum
    to 1 over all parts.
    """
    algorithm, dataset = run.algorithm, run.dataset
    if hasattr(algorithm, "layers_used"):
        parts = algorithm.layers_used().items()
        return {"used": {name: {"states": rounded(w)} for name, w in parts}}
    if not hasattr(algorithm, "layer_attention"):
        return None
    environments, classes = defaultdict(Mean), defaultdict(Mean)
    of_texts: dict[int, list[float]] = {}  # a class's own weights, whatever the images
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
            of_texts = dict(enumerate(map(rounded, weights.pop("self", ()))))
            if "cross" in weights:
                own = torch.arange(len(labels)), labels
                weights["cross"] = weights["cross"][own]  # (B, L)
            for i, label in enumerate(labels.tolist()):
                of_image = {branch: rows[i] for branch, rows in weights.items()}
                environments[dataset.environment_name(env)].add(of_image)
                classes[label].add(of_image)
    algorithm.train()
    names = dataset.class_names or [f"class {i}" for i in range(dataset.num_classes)]
    own = {label: {"self": weights} for label, weights in of_texts.items()}
    return {
        "environments": {name: mean.plain() for name, mean in environments.items()},
        "classes": {
            name: classes[label].plain() | own.get(label, {})
            for label, name in enumerate(names)
        },
    }


def same_classes(dataset: Any, env: int) -> bool:
    """Whether the environment has the classes that were trained on."""
    own = getattr(dataset[env], "classes", dataset.class_names)
    return own == dataset.class_names


class Mean:
    """The mean of what images weigh the layers, by branch."""

    def __init__(self):
        self.n, self.sums = 0, defaultdict(float)

    def add(self, weights: dict[str, torch.Tensor]) -> None:
        self.n += 1
        for branch, layers in weights.items():
            self.sums[branch] = self.sums[branch] + layers.double()

    def plain(self) -> dict[str, list[float]]:
        """{branch: weights}, {} of no image."""
        return {branch: rounded(sums / self.n) for branch, sums in self.sums.items()}


def rounded(weights: torch.Tensor) -> list[float]:
    return [round(weight, 5) for weight in weights.tolist()]
