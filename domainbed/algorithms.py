"""What an algorithm is, the registry of algorithms, and ERM.

A further family is a file `algorithms_<family>.py` beside this one: each class in it
that is decorated with `@register` is in ALGORITHMS. It states its own hyperparameters
in `hparam_rows`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from domainbed import networks
from domainbed.backbones import default_clip
from domainbed.lib.registry import Registry

Minibatches = list[tuple[torch.Tensor, torch.Tensor]]
Draw = Callable[[np.random.RandomState], Any]
HparamRows = dict[str, tuple[Any, Draw | None]]

REGISTRY = Registry("algorithm")
register = REGISTRY.register


def get_algorithm_class(name: str) -> type["Algorithm"]:
    """The algorithm of that name or alias; NotImplementedError if there is none."""
    return REGISTRY.get(name)


def __getattr__(name: str) -> Any:
    """ALGORITHMS, the names of all algorithms; and each of them by its name."""
    if name.startswith("__"):  # asked by the import of a family, which is half made
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    REGISTRY.load()
    if name == "ALGORITHMS":
        return REGISTRY.names
    if name in REGISTRY.names:
        return REGISTRY.get(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Algorithm(nn.Module):
    """A domain-generalisation method: it learns in `update`, it answers in `predict`.

    `input_shape` is one image's (channels, height, width) or a flat vector's (n,);
    `num_domains` counts the training domains. `hparams` is one draw from the
    hyperparameter registry, with the facts of the dataset (`class_names`) beside it.
    """

    MAX_STEPS: int | None = None  # training ends after so many steps at the latest
    TAKES_FEATURES = False  # x may be layer features of a frozen CLIP, (B, L, D)
    BATCH_MATTERS = False  # what `predict` says of an item depends on its batch
    AFTER: tuple[str, ...] = ()  # in a sweep, these algorithms' runs end before it
    ALIASES: tuple[str, ...] = ()  # further names under which it is found

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        num_domains: int,
        hparams: dict[str, Any],
    ):
        super().__init__()
        self.hparams = hparams

    @classmethod
    def hparam_rows(cls, dataset: str) -> HparamRows:
        """Its own hyperparameters on that dataset, beside or instead of the common
        ones: name -> (default, draw). `draw(r)` makes a random value from a
        numpy RandomState; None stands for "always the default".
        """
        return {
            # images, or what a frozen CLIP makes of them: features, layers
            "input": ("images", None),
            "clip_backbone": (default_clip(dataset), None),
            "feature_dtype": ("float16", None),  # of stored features
        }

    def update(
        self, minibatches: Minibatches, unlabeled: list[torch.Tensor] | None = None
    ) -> dict[str, float]:
        """Take one step; what it returns is logged.

        `minibatches` has an (x, y) for each training domain, `unlabeled` an x for each
        test domain when the task is domain adaptation.
        """
        raise NotImplementedError

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, C)."""
        raise NotImplementedError


@register
class ERM(Algorithm):
    """Empirical risk minimisation (Vapnik, 1998): all domains' examples together."""

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.featurizer = networks.Featurizer(input_shape, hparams)
        self.classifier = networks.Classifier(
            self.featurizer.n_outputs, num_classes, hparams["nonlinear_classifier"]
        )
        self.network = nn.Sequential(self.featurizer, self.classifier)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(),
            lr=hparams["lr"],
            weight_decay=hparams["weight_decay"],
        )

    @classmethod
    def hparam_rows(cls, dataset: str) -> HparamRows:
        # The Debug datasets exist for tests without network.
        return super().hparam_rows(dataset) | {
            "pretrained": (not dataset.startswith("Debug"), None),
            "backbone": ("", None),  # a timm model's name; without one, a ResNet
            "mlp_width": (256, None),  # of the network that takes vectors
            "mlp_depth": (3, None),
            "mlp_dropout": (0.0, None),
        }

    def update(self, minibatches, unlabeled=None):
        x = torch.cat([x for x, _ in minibatches])
        y = torch.cat([y for _, y in minibatches])
        loss = F.cross_entropy(self.predict(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item()}

    def predict(self, x):
        return self.network(x)


class TimmERM(ERM):
    """ERM on the timm model NAME; on the Debug datasets, on a tiny one of its kind."""

    NAME: str

    @classmethod
    def hparam_rows(cls, dataset):
        name = "test_vit" if dataset.startswith("Debug") else cls.NAME
        return super().hparam_rows(dataset) | {"backbone": (name, None)}


@register
class DeiT(TimmERM):
    """ERM on DeiT-B, distilled: Touvron et al., 2021, https://arxiv.org/abs/2012.12877

    timm averages the class and the distillation token, as the papers that compare on
    DomainBed do.
    """

    NAME = "deit_base_distilled_patch16_224"


@register
class HViT(TimmERM):
    """ERM on ViT-B with a ResNet-50 stem: Dosovitskiy et al., 2020,
    https://arxiv.org/abs/2010.11929

    Older timm kept a layer between the tokens and the head, which today's drops.
    """

    NAME = "vit_base_r50_s16_224.orig_in21k"
