"""Methods that adapt a frozen CLIP: zero-shot, linear probe, LFA.

LFA: Layer-wise Feature Aggregation, https://github.com/MLAI-Yonsei/LFA
CLIP: Radford et al., 2021, https://arxiv.org/abs/2103.00020

Letters: B images, C classes, L layers, D image width, W text width, E joint embedding.
z (B, L, D) image layer features, t (C, L, W) text layer features.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import nn

from domainbed.algorithms import Algorithm, Minibatches, register
from domainbed.backbones import CLIPBackbone, Kind, default_clip, load_clip
from domainbed.lib.bounds import at_least, between, check_all
from domainbed.lib.cuda_graph import GraphedStep
from domainbed.lib.errors import InputError, check_choice

# LFA's projections, and whose features each reads.
LFA_PROJECTIONS = {"image_q": "image", "image_k": "image", "image_v": "image"}
LFA_PROJECTIONS |= {"self_q": "text", "self_k": "text", "self_v": "text"}
LFA_PROJECTIONS |= {"cross_k": "text", "cross_v": "text"}
STARTS = ("clip", "released")
IMAGENET_PROMPTS = [  # of LFA's code for few shots
    "itap of a {name}.",
    "a bad photo of the {name}.",
    "a origami {name}.",
    "a photo of the large {name}.",
    "a {name} in a video game.",
    "art of the {name}.",
    "a photo of the small {name}.",
    "a photo of a {name}.",
]
TENSOR_DATASETS = ("Debug28", "Debug224", "RotatedMNIST", "ColoredMNIST")


def unit(v: torch.Tensor) -> torch.Tensor:
    """v / |v| along the last axis."""
    return F.normalize(v, dim=-1)


def attention(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Weights over layers (..., L), softmax(q . k_l / sqrt(E)).

    q (..., E) and k (..., L, E); leading axes broadcast.
    """
    return (torch.einsum("...e,...le->...l", q, k) / k.shape[-1] ** 0.5).softmax(-1)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The layers' values (..., L, E) pooled to (..., E) by the query's attention."""
    return torch.einsum("...l,...le->...e", attention(q, k), v)


def weigh(q: torch.Tensor, layers: torch.Tensor, w_k: torch.Tensor) -> torch.Tensor:
    """attention(q, layers W_k), with W_k at the query's side.

    q (..., E), layers (..., L, D), w_k (D, E) -> (..., L).
    """
    scores = torch.einsum("...d,...ld->...l", q @ w_k.T, layers)
    return (scores / w_k.shape[1] ** 0.5).softmax(-1)


def pool(
    q: torch.Tensor, layers: torch.Tensor, w_k: torch.Tensor, w_v: torch.Tensor
) -> torch.Tensor:
    """attend(q, layers W_k, layers W_v), with W_v behind the sum: (..., E)."""
    return torch.einsum("...l,...ld->...d", weigh(q, layers, w_k), layers) @ w_v


def pooled_norm(p: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """|sum_l p_l v_l| (B, C) of weights p (B, C, L) and values v (C, L, E).

    It is the root of p^T G p, G = V V^T of each class, a small sum of large terms where
    layers cancel: so in double precision, and never below what float32 values resolve.
    """
    dtype, p, v = p.dtype, p.double(), v.double()
    square = (p * torch.einsum("bcl,clm->bcm", p, v @ v.mT)).sum(-1)
    with torch.no_grad():
        terms = torch.einsum("bcl,cl->bc", p, v.square().sum(-1))
        least = (torch.finfo(dtype).eps ** 2 * terms).clamp(min=1e-24)  # as in `unit`
    return torch.maximum(square, least).sqrt().to(dtype)


def prompts_of(template: str, class_names: list[str]) -> list[str]:
    """The template with each class name at its {name}; underscores become spaces."""
    if not isinstance(template, str) or "{name}" not in template:
        raise InputError(
            f"the prompt {template!r} has no {{name}} for the class's name."
        )
    return [template.replace("{name}", name.replace("_", " ")) for name in class_names]


def prompts_of_all(template: str | list[str], class_names: list[str]) -> list[str]:
    """A prompt for each template and class; number s C + c is template s's of c."""
    templates = [template] if isinstance(template, str) else template
    if not templates:
        raise InputError("hyperparameter prompt is an empty list of templates.")
    return [prompt for s in templates for prompt in prompts_of(s, class_names)]


class CLIPAlgorithm(Algorithm):
    """A frozen CLIP and something small on top that trains with SGD.

    A method sets its parameters in `build` and defines `logits(z)`; training and
    prediction share both. x may be images or their layer features z.
    """

    TAKES_FEATURES = True
    READS_LAYERS = False  # whether it asks the image's earlier layers, too,
    READS_TEXTS = True  # and what the text tower makes of prompts

    # Whether a GPU may record a step from stored features and replay it. A recording
    # repeats the Python of one step: counters, schedules and branches stay as they
    # were. So each class says it of its own steps; it is not inherited.
    RECORDABLE = False

    FIXED_CLASSES = NEEDS_SUPPORT = WATCHES = CHOOSES = False

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.num_domains = num_domains
        check_all(type(self).hparam_rows(""), hparams)
        self.backbone = self.load_backbone()
        names = hparams.get("class_names")
        if names is None:
            names = [f"class {i}" for i in range(num_classes)]
            warnings.warn(f"no class names; prompts say {names[0]!r} ...", stacklevel=2)
        if len(names) != num_classes:
            raise InputError(
                f"class_names has {len(names)} names; there are {num_classes} classes."
            )
        self.read_classes(names, hparams["prompt"])
        self.build()
        trainable = [p for p in self.parameters() if p.requires_grad]
        self.optimizer = self.make_optimizer(trainable) if trainable else None
        self.graphed_step = self.new_graphed_step()

    @classmethod
    def hparam_rows(cls, dataset):
        return {
            "clip_backbone": (default_clip(dataset), None),
            "clip_transform": (dataset not in TENSOR_DATASETS, None),
            "feature_dtype": ("float16", None),  # of stored features
            "prompt": ("a photo of a {name}", None),
            "lr": at_least(0, 1e-3, lambda r: 10 ** r.uniform(-4.5, -2.5)),
            "weight_decay": at_least(0, 0.0),
            "momentum": between(0, 1, 0.1, lambda r: r.choice([0.0, 0.1, 0.2])),
        }

    @classmethod
    def few_shot_rows(cls, dataset, shots):
        return {
            "lr": at_least(0, 2e-3, lambda r: 10 ** r.uniform(-4, -2)),
            "momentum": between(0, 1, 0.1),
            "weight_decay": at_least(0, 5e-4),
            "batch_size": at_least(1, 256 if dataset == "ImageNet" else 32),
            "epochs": at_least(1, {"EuroSAT": 200, "ImageNet": 40}.get(dataset, 100)),
            "schedule": ("warm_cosine", None),
        }

    def load_backbone(self) -> CLIPBackbone:
        """The towers that make the features."""
        return load_clip(self.hparams["clip_backbone"])

    def new_graphed_step(self) -> GraphedStep:
        """The step, with no recording yet."""
        recordable = vars(type(self)).get("RECORDABLE", False)
        return GraphedStep(self.take_step, self.optimizer, recordable)

    def ask(
        self, class_names: list[str], template: str | list[str] | None = None
    ) -> None:
        """Tell these classes apart from now on, as the template (by default the
        hyperparameter `prompt`) asks.

        Prompts and what is made of them are made anew, what trains stays. InputError
        if it has weights for each class and these are others.
        """
        if self.FIXED_CLASSES and list(class_names) != self.class_names:
            raise InputError(
                f"{type(self).__name__} has weights for each of its classes "
                f"({self.class_names[0]} ...) and cannot be asked for others "
                f"({class_names[0]} ...); a method on CLIP's texts can, such as LFA."
            )
        self.read_classes(class_names, template or self.hparams["prompt"])
        self.graphed_step = self.new_graphed_step()

    def read_classes(self, class_names: list[str], template: str | list[str]) -> None:
        self.class_names, self.num_classes = list(class_names), len(class_names)
        self.prompts = self.write_prompts(self.class_names, template)
        if self.READS_TEXTS:
            self.encode_prompts()

    def write_prompts(
        self, class_names: list[str], template: str | list[str]
    ) -> list[str]:
        """A prompt for each class."""
        if not isinstance(template, str):
            raise InputError(
                f"{type(self).__name__} takes one prompt, not {template}; ZeroShotCLIP "
                "and LFA take a list."
            )
        return prompts_of(template, class_names)

    def encode_prompts(self) -> None:
        """Make of the prompts what is the same at every step: t (C, L, W)."""
        with torch.no_grad():
            t = self.backbone.kept_text_layers(self.prompts)
        # Made from frozen weights: moved with the module, but not saved again.
        self.register_buffer("text_features", t, persistent=False)

    def build(self) -> None:
        """Make the parameters that train; there are none unless a method says so."""

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """What steps the parameters that train."""
        return torch.optim.SGD(
            parameters,
            lr=self.hparams["lr"],
            momentum=self.hparams["momentum"],
            weight_decay=self.hparams["weight_decay"],
        )

    def logits(self, z: torch.Tensor) -> torch.Tensor:
        """Class scores (B, C) of layer features z (B, L, D)."""
        raise NotImplementedError

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """z (B, L, D) of images (B, channels, height, width); x itself if it is z."""
        if self.given != "images":
            return x
        return self.stored_kind.encode(self.images(x))

    def images(self, x: torch.Tensor) -> torch.Tensor:
        """Images as CLIP takes them; InputError if x are none."""
        if x.ndim != 4:
            frozen = self.TAKES_FEATURES
            what = "was told no kind of" if frozen else "takes no stored"
            raise InputError(
                f"{type(self).__name__} {what} features and needs images "
                f"(B, channels, H, W), not {tuple(x.shape)}."
            )
        return x if self.hparams["clip_transform"] else self.backbone.from_imagenet(x)

    @property
    def stored_kind(self) -> Kind:
        return self.backbone.class_tokens

    def loss(self, minibatches: Minibatches) -> torch.Tensor:
        """What a step lowers: cross-entropy over all domains' examples together."""
        x = torch.cat([x for x, _ in minibatches])
        y = torch.cat([y for _, y in minibatches])
        return F.cross_entropy(self.logits(self.features(x)), y)

    def update(self, minibatches, unlabeled=None):
        tensors = [tensor for pair in minibatches for tensor in pair]
        step = self.take_step if self.given == "images" else self.graphed_step
        return {"loss": step(*tensors).item()}

    def take_step(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Step on x and y of each domain in turn; gives the loss."""
        loss = self.loss(list(zip(tensors[::2], tensors[1::2], strict=True)))
        if self.optimizer:
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return loss.detach()

    def predict(self, x):
        return self.logits(self.features(x))

    def drop(self, features: torch.Tensor) -> torch.Tensor:
        """Features with the share `dropout` of their entries at 0, in training only."""
        rate = self.hparams["dropout"]
        return F.dropout(features, rate) if rate and self.training else features


@register
class ZeroShotCLIP(CLIPAlgorithm):
    """CLIP as it is: cosines of the last layers' projections. Nothing trains.

    `prompt` may be a list of templates: a class is then the mean of its unit text
    embeddings, the paper's ensemble (https://arxiv.org/abs/2103.00020, section 3.1.4).
    """

    ALIASES = ("ZSCLIP",)
    MAX_STEPS = 1

    def write_prompts(self, class_names, template):
        return prompts_of_all(template, class_names)

    @classmethod
    def few_shot_rows(cls, dataset, shots):
        return {"epochs": at_least(1, 1), "schedule": ("constant", None)}

    def class_embeddings(self) -> torch.Tensor:
        """The classes' texts, unit vectors (C, E)."""
        text = unit(self.text_features[:, -1] @ self.backbone.text_projection)
        return unit(text.unflatten(0, (-1, self.num_classes)).mean(0))

    def logits(self, z):
        image = unit(z[:, -1] @ self.backbone.image_projection)  # (B, E)
        return self.backbone.scale * image @ self.class_embeddings().T


@register
class ZeroShotCLIPName(ZeroShotCLIP):
    """Zero-shot CLIP asked with the bare class name: the papers' ZS-CLIP(C)."""

    ALIASES = ("ZSCLIP_C",)

    @classmethod
    def hparam_rows(cls, dataset):
        return super().hparam_rows(dataset) | {"prompt": ("{name}", None)}

    @classmethod
    def few_shot_rows(cls, dataset, shots):
        return super().few_shot_rows(dataset, shots) | {"prompt": ("{name}", None)}


@register
class LinearProbeCLIP(CLIPAlgorithm):
    """Zero-shot CLIP with both projections trained, D E + W E parameters.

    The LFA paper's linear probe. `layer` names the image layer it reads, counted from
    0 or, if negative, from the end. `dropout` acts on the unit embeddings.
    """

    ALIASES = ("LPCLIP",)
    RECORDABLE = True

    @classmethod
    def hparam_rows(cls, dataset):
        return super().hparam_rows(dataset) | {
            "layer": (-1, None),
            "train_text": (True, None),  # whether the text's projection trains, too
            "dropout": between(0, 1, 0.0),
        }

    @classmethod
    def few_shot_rows(cls, dataset, shots):
        return super().few_shot_rows(dataset, shots) | {
            "train_text": (False, None),
            "dropout": between(0, 1, 0.2),
        }

    def build(self):
        self.READS_LAYERS = self.hparams["layer"] != -1
        self.image_projection = nn.Parameter(self.backbone.image_projection.clone())
        self.text_projection = nn.Parameter(
            self.backbone.text_projection.clone(), self.hparams["train_text"]
        )

    def logits(self, z):
        image = unit(z[:, self.hparams["layer"]] @ self.image_projection)  # (B, E)
        text = unit(self.text_features[:, -1] @ self.text_projection)  # (C, E)
        return self.backbone.scale * self.drop(image) @ self.drop(text).T


class Projection(nn.Module):
    """x W, (..., in) -> (..., E). W starts as given and trains.

    With a rank, W stays frozen and dropout(up(down(x))) is added to it, without bias.
    """

    def __init__(self, weight: torch.Tensor, rank: int | None):
        super().__init__()
        n_in, n_out = weight.shape
        self.weight = nn.Parameter(weight.clone(), requires_grad=rank is None)
        self.low_rank = rank and nn.Sequential(
            nn.Linear(n_in, rank, bias=False),
            nn.Linear(rank, n_out, bias=False),
            nn.Dropout(0.25),  # the released code's rate
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x @ self.weight
        return y + self.low_rank(x) if self.low_rank else y


@register
class LFA(CLIPAlgorithm):
    """Layer-wise feature aggregation: the last layer asks, every layer answers.

    Eight projections train, each a copy of CLIP's own: 3 D E + 5 W E parameters. The
    image's query pools the image's layers; each class pools its text's layers with its
    own query (self) and, weighing `beta`, with the image's (cross). Of several prompts
    the pooled vectors are averaged.

    `start` released is that of LFA's code for few shots: queries and keys at random,
    within 1 / sqrt of their inputs' number. `dropout` acts on the layer features.
    """

    ALIASES = ("CLIP_LFA",)
    READS_LAYERS = True
    RECORDABLE = True

    @classmethod
    def hparam_rows(cls, dataset):
        return super().hparam_rows(dataset) | {
            "beta": between(0, 1, 0.9),
            "rank": at_least(1, None),
            "start": ("clip", None),
            "dropout": between(0, 1, 0.0),
        }

    @classmethod
    def few_shot_rows(cls, dataset, shots):
        rows = {"start": ("released", None), "dropout": between(0, 1, 0.2)}
        if dataset == "ImageNet":
            rows["prompt"] = (IMAGENET_PROMPTS, None)
        return super().few_shot_rows(dataset, shots) | rows

    def write_prompts(self, class_names, template):
        return prompts_of_all(template, class_names)

    def build(self):
        start = check_choice(self.hparams, "start", STARTS)
        of_image = self.backbone.image_projection
        of_text = self.backbone.text_projection
        for name, own in LFA_PROJECTIONS.items():
            weight = of_image if own == "image" else of_text
            if start == "released" and not name.endswith("_v"):
                bound = len(weight) ** -0.5
                weight = torch.empty_like(weight).uniform_(-bound, bound)
            setattr(self, name, Projection(weight, self.hparams["rank"]))

    def logits(self, z):
        z, t = self.drop(z), self.drop(self.text_features)
        plain = self.hparams["rank"] or len(t) > self.num_classes
        return self.plain_logits(z, t) if plain else self.fast_logits(z, t)

    def adapt(self, image: torch.Tensor) -> torch.Tensor:
        """The image's pooled vector (B, E) as it is compared; CLIP-Adapter's place."""
        return image

    def plain_logits(self, z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The definition. For every image and class it holds a vector (E,)."""
        t, beta = t.unflatten(0, (-1, self.num_classes)), self.hparams["beta"]
        q = self.image_q(z[:, -1])  # (B, E)
        image = self.adapt(attend(q, self.image_k(z), self.image_v(z)))  # (B, E)
        own = attend(self.self_q(t[:, :, -1]), self.self_k(t), self.self_v(t))
        cross = attend(q[:, None, None], self.cross_k(t), self.cross_v(t))
        own, cross = unit(own.mean(0)), unit(cross.mean(1))  # (C, E), (B, C, E)
        mixed = beta * cross + (1 - beta) * own  # linear, so mixed before the product
        return self.backbone.scale * torch.einsum("be,bce->bc", unit(image), mixed)

    def fast_logits(self, z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The same numbers with about L times fewer operations.

        Only one query asks, so W_k goes to its side, and W_v behind the sum over
        layers: q (W_k)^T z_l and (sum_l a_l z_l) W_v. The cross branch needs its pooled
        vector, sum_l p_l v_l, only in a product and a norm: image . cross is
        sum_l p_l (image . v_l), |cross|^2 is p^T G p with G = V V^T of each class.
        """
        beta = self.hparams["beta"]
        q = self.image_q(z[:, -1])  # (B, E)
        image = self.adapt(pool(q, z, self.image_k.weight, self.image_v.weight))
        image = unit(image)  # (B, E)
        own = self.self_q(t[:, -1])
        own = unit(pool(own, t, self.self_k.weight, self.self_v.weight))  # (C, E)
        # weigh(q[:, None], t, ...), written so that it is one matrix product
        p = torch.einsum("bw,clw->bcl", q @ self.cross_k.weight.T, t)
        p = (p / q.shape[-1] ** 0.5).softmax(-1)  # (B, C, L)
        v = self.cross_v(t)  # (C, L, E)
        product = (p * torch.einsum("be,cle->bcl", image, v)).sum(-1)  # (B, C)
        mixed = beta * product / pooled_norm(p, v) + (1 - beta) * image @ own.T
        return self.backbone.scale * mixed

    def last_layer_logits(self, z: torch.Tensor) -> torch.Tensor:
        """Class scores (B, C) of the same projections if only the last layers answer.

        Every attention lies wholly on the last layer, so the values are projected and
        compared as they are: what the other layers have to rescue where it is wrong.
        """
        t, beta = self.text_features[:, -1], self.hparams["beta"]  # (C, W)
        t = t.unflatten(0, (-1, self.num_classes)).mean(0)
        image = unit(self.adapt(self.image_v(z[:, -1])))  # (B, E)
        text = beta * unit(self.cross_v(t)) + (1 - beta) * unit(self.self_v(t))
        return self.backbone.scale * image @ text.T

    def layer_attention(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """How much each layer weighs: image (B, L), self (C, L), cross (B, C, L).

        Of several prompts it is their mean.
        """
        z = self.features(x)
        t = self.text_features.unflatten(0, (-1, self.num_classes))
        q = self.image_q(z[:, -1])
        return {
            "image": attention(q, self.image_k(z)),
            "self": attention(self.self_q(t[:, :, -1]), self.self_k(t)).mean(0),
            "cross": attention(q[:, None, None], self.cross_k(t)).mean(1),
        }
