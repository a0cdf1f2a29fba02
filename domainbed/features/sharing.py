"""A dataset's stored features as one file, for who has no images or other encoders."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from domainbed.algorithms_lfa import prompts_of
from domainbed.backbones import CLIPBackbone
from domainbed.datasets import ImageEnvironment, MultipleDomainDataset
from domainbed.features.store import StoredFeatures
from domainbed.lib import feature_file

# What most methods ask, and what ZeroShotCLIPName does.
TEMPLATES = ("a photo of a {name}", "{name}")


@torch.no_grad()
def share(
    path: Path,
    dataset: MultipleDomainDataset,
    stored: Sequence[StoredFeatures],
    backbone: CLIPBackbone,
    last_only: bool = False,
    templates: Sequence[str] = TEMPLATES,
) -> None:
    """Write the feature file of a dataset's class tokens and its classes' texts.

    The backbone, which made them, is on the CPU, where a run encodes its prompts.
    """
    chosen = slice(-1, None) if last_only else slice(None)
    prompts = [prompts_of(template, dataset.class_names) for template in templates]
    # One template at a time, as a run asks: other batches round in other ways.
    t = torch.cat([backbone.encode_text_layers(own) for own in prompts])
    sizes = [len(own) for own in stored]
    numbers = {
        "labels": np.concatenate([own.targets.numpy() for own in stored]),
        "domains": np.repeat(np.arange(len(stored)), sizes),
        "t": t[:, chosen].numpy(),
        "image_projection": backbone.image_projection.numpy(),
        "text_projection": backbone.text_projection.numpy(),
        "scale": backbone.scale.numpy(),
        "n_steps": np.array(dataset.N_STEPS),
        "checkpoint_freq": np.array(dataset.CHECKPOINT_FREQ),
    }
    texts = {
        "class_names": dataset.class_names,
        "domain_names": [*dataset.ENVIRONMENTS],
        "ids": [name for env in dataset for name in names_of(env)],
        "prompts": [prompt for own in prompts for prompt in own],
        "backbone": backbone.fingerprint,
    }
    arrays = numbers | {name: np.array(text) for name, text in texts.items()}
    feature_file.write(path, [own.z[:, chosen] for own in stored], arrays)


def names_of(environment: ImageEnvironment) -> list[str]:
    """Its images' paths below its folder."""
    return [
        Path(path).relative_to(environment.root).as_posix()
        for path, _ in environment.samples
    ]
