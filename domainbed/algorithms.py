"""What an algorithm is, the registry of algorithms, and ERM.

A further family is a file `algorithms_<family>.py` beside this one: each class in it
that is decorated with `@register` is in ALGORITHMS. It states its own hyperparameters
in `HPARAMS`, or in `hparam_rows` where they depend on the dataset.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from domainbed import networks
from domainbed.backbones import Kind, default_clip
from domainbed.lib import state
from domainbed.lib.bounds import at_least, between
from domainbed.lib.errors import InputError
from domainbed.names import REGISTRY

Minibatches = list[tuple[torch.Tensor, torch.Tensor]]
Draw = Callable[[np.random.RandomState], Any]
HparamRows = dict[str, tuple[Any, Draw | None]]

Objective = tuple[torch.Tensor, dict[str, torch.Tensor | float]]
SMALL_IMAGES = ("Debug28", "RotatedMNIST", "ColoredMNIST")  # rows differ on these

register = REGISTRY.register


# What stands among `hparams` but is no hyperparameter: it is known of the dataset, the
# run's arguments, the tower or the method under another that is rebuilt.
FACTS = ("class_names", "run", "tower", "base")
# Attributes of an algorithm that a state leaves out: configuration, or the run's.
NO_STATE = ("hparams", "given", "step", "n_steps")


def all_of(minibatches: Minibatches) -> tuple[torch.Tensor, torch.Tensor]:
    """All domains' x and y, one after another."""
    x, y = zip(*minibatches, strict=True)
    return torch.cat(x), torch.cat(y)


def split(t: torch.Tensor, minibatches: Minibatches) -> tuple[torch.Tensor, ...]:
    """The rows of t, one for each item, of one domain after another."""
    return t.split([len(y) for _, y in minibatches])


def domain_labels(minibatches: Minibatches) -> torch.Tensor:
    """Each item's domain, from 0 on (N,)."""
    return torch.cat([torch.full_like(y, d) for d, (_, y) in enumerate(minibatches)])


def descend(objective: torch.Tensor, *optimizers: torch.optim.Optimizer) -> None:
    """A step of these optimizers on the objective."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    objective.backward()
    for optimizer in optimizers:
        optimizer.step()


def plain_numbers(logged: dict[str, torch.Tensor | float]) -> dict[str, float]:
    """What `update` returns."""
    return {
        name: value.item() if isinstance(value, torch.Tensor) else value
        for name, value in logged.items()
    }


def reads_stored(
    algorithm: "Algorithm | type[Algorithm]", hparams: dict[str, Any]
) -> bool:
    """Whether it trains on what a frozen CLIP makes of images, and on no images."""
    frozen = algorithm.TAKES_FEATURES and hparams["clip_transform"]
    return bool(frozen) or hparams.get("input", "images") != "images"


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
    TAKES_FEATURES = False  # instead of images it can take its `stored_kind`
    BATCH_MATTERS = False  # what `predict` says of an item depends on its batch
    # Whether it is shown examples of each class and domain before its first step, in
    # `support(domains)`, held-out ones before its steps in `watch(batches)` or before
    # each evaluation in `choose(batches)`.
    NEEDS_SUPPORT = WATCHES = CHOOSES = False
    MIN_DOMAINS = 1  # training domains without which it has no meaning
    AFTER: tuple[str, ...] = ()  # in a sweep, these algorithms' runs end before it
    ALIASES: tuple[str, ...] = ()  # further names under which it is found
    # How the names begin of what upstream's own saved models lack.
    NEW_STATE: tuple[str, ...] = ()
    EXTRA: str | None = None  # of this package's extras, the one that it needs
    FIXED_CLASSES = True  # it has weights for each class and can be asked for no others
    # Its own rows, beside those of the classes it derives from.
    HPARAMS: ClassVar[HparamRows] = {}

    given = "images"  # what x is: set by the run, "images" or the name of `stored_kind`
    step = 0  # set by the run before each update: the steps that were taken before it
    n_steps = 5001  # set by the run: the steps that it will have taken at its end

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        num_domains: int,
        hparams: dict[str, Any],
    ):
        super().__init__()
        if num_domains < self.MIN_DOMAINS:
            raise InputError(
                f"{type(self).__name__} needs at least {self.MIN_DOMAINS} training "
                f"domains, not {num_domains}; test on fewer (--test_envs)."
            )
        self.hparams = hparams

    @classmethod
    def hparam_rows(cls, dataset: str) -> HparamRows:
        """Its own hyperparameters on that dataset, beside or instead of the common
        ones: name -> (default, draw). `draw(r)` makes a random value from a
        numpy RandomState; None stands for "always the default".
        """
        rows: HparamRows = {
            # images, or what a frozen CLIP makes of them: features, layers
            "input": ("images", None),
            "clip_backbone": (default_clip(dataset), None),
            "feature_dtype": ("float16", None),  # of stored features
        }
        for base in reversed(cls.__mro__):
            rows |= vars(base).get("HPARAMS", {})
        return rows

    @classmethod
    def few_shot_rows(cls, dataset: str, shots: int) -> HparamRows:
        """What the few-shot task has instead of rows of the same name, or beside them.

        `epochs` is how often a run sees its shots, `schedule` how its learning rate
        goes: `constant`, `cosine` to 0 by step, `warm_cosine` by epoch as in CoOp.
        A `batch_size` of None is all shots at once.
        """
        return {"epochs": at_least(1, 100), "schedule": ("constant", None)}

    @property
    def facts(self) -> dict[str, Any]:
        """What `hparams` holds that nobody chose: those of FACTS that are known."""
        return {name: self.hparams[name] for name in FACTS if name in self.hparams}

    @property
    def as_released(self) -> bool:
        """Whether it is upstream's where that is not what its paper says."""
        return self.hparams.get("as_released", True)  # upstream's dict lacks the row

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

    @property
    def stored_kind(self) -> Kind:
        """What it can take instead of images, made of them by a frozen tower."""
        raise NotImplementedError

    def evaluated(self, step: int, accuracies: dict[str, float]) -> None:
        """Called after each evaluation, before the state is saved.

        `accuracies` are the record's, by the names of its splits (`env0_in_acc`, ...).
        """

    def training_state(self) -> dict[str, Any]:
        """All that a new object of the same arguments needs to go on from here.

        The module, every optimiser and scheduler wherever it hangs, plain counters: of
        tensors and plain types.
        """
        return state.training_state(self, NO_STATE)

    def load_training_state(self, saved: dict[str, Any]) -> None:
        """Go on from a `training_state`; buffers come back in the shape they had."""
        state.load_training_state(self, saved, NO_STATE)

    def load_state_dict(self, state_dict, *args, **kwargs):
        own = self.state_dict().items()
        state_dict = {n: v for n, v in own if n.startswith(self.NEW_STATE)} | state_dict
        state.fit_buffers(self, state_dict)
        return super().load_state_dict(state_dict, *args, **kwargs)


class OwnNetwork(Algorithm):
    """What trains networks of its own, from images or vectors on."""

    @classmethod
    def hparam_rows(cls, dataset: str) -> HparamRows:
        # The Debug datasets exist for tests without network.
        small = "test_vit" if dataset.startswith("Debug") else None
        return super().hparam_rows(dataset) | {
            "pretrained": (not dataset.startswith("Debug"), None),
            "backbone": ("", None),  # a timm model's name; without one, a ResNet
            "vit_model": (small or networks.DINOV2, None),  # of vit and dinov2
            # Of the network that takes vectors, 0 layers meaning the vectors as they
            # are; None: as the mlp_ rows of a method that has these, else 256, 3, 0.
            "vector_width": at_least(1, None),
            "vector_depth": at_least(0, None),
            "vector_dropout": between(0, 1, None),
        }

    def make_classifier(self, n_inputs: int, n_outputs: int) -> nn.Module:
        """A head on features."""
        nonlinear = self.hparams["nonlinear_classifier"]
        return networks.Classifier(n_inputs, n_outputs, nonlinear)

    def adam(self, lr: float, *modules: nn.Module) -> torch.optim.Adam:
        """Adam, its moments at zero, over all parameters of these modules."""
        parameters = [p for module in modules for p in module.parameters()]
        if not parameters:
            raise InputError(
                f"{type(self).__name__} trains its featurizer apart, and vectors as "
                "they are have none: hyperparameter vector_depth must be at least 1."
            )
        decay = self.hparams["weight_decay"]
        return torch.optim.Adam(parameters, lr, weight_decay=decay)


class Featurized(OwnNetwork):
    """A featurizer phi and a classifier w: x -> z = phi(x) (B, F) -> w(z) (B, C).

    What differs by its objective only defines `loss`, which `optimizer` lowers.
    """

    MIN_ITEMS = 1  # of each domain in a batch

    optimizer: torch.optim.Optimizer

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.featurizer = networks.Featurizer(input_shape, hparams)
        self.classifier = self.make_classifier(self.featurizer.n_outputs, num_classes)

    def make_optimizer(self, lr: float) -> torch.optim.Optimizer:
        """What steps phi and w."""
        return self.adam(lr, self.featurizer, self.classifier)

    def loss(self, minibatches: Minibatches) -> Objective:
        """What a step lowers, and what is logged, `loss` among it."""
        x, y = all_of(minibatches)
        loss = F.cross_entropy(self.predict(x), y)
        return loss, {"loss": loss}

    def update(self, minibatches, unlabeled=None):
        if min(len(y) for _, y in minibatches) < self.MIN_ITEMS:
            raise InputError(
                f"{type(self).__name__} needs at least {self.MIN_ITEMS} items of each "
                "domain in a batch; raise hyperparameter batch_size."
            )
        objective, logged = self.loss(minibatches)
        descend(objective, self.optimizer)
        return plain_numbers(logged)

    def predict(self, x):
        return self.classifier(self.featurizer(x))


@register
class ERM(Featurized):
    """Empirical risk minimisation (Vapnik, 1998): all domains' examples together."""

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.network = nn.Sequential(self.featurizer, self.classifier)
        self.optimizer = self.make_optimizer(hparams["lr"])

    def predict(self, x):
        return self.network(x)


class TimmERM(ERM):
    """ERM on the timm model NAME; on the Debug datasets, on a tiny one of its kind."""

    EXTRA = "timm"
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
