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
from domainbed.lib.cuda_graph import GraphedStep
from domainbed.lib.errors import InputError

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


def prompts_of(template: str, class_names: list[str]) -> list[str]:
    """The template with each class name at its {name}; underscores become spaces."""
    if not isinstance(template, str) or "{name}" not in template:
        raise InputError(
            f"the prompt {template!r} has no {{name}} for the class's name."
        )
    return [template.replace("{name}", name.replace("_", " ")) for name in class_names]


class CLIPAlgorithm(Algorithm):
    """A frozen CLIP and something small on top that trains with SGD.

    A method sets its parameters in `build` and defines `logits(z)`; training and
    prediction share both. x may be images or their layer features z.
    """

    TAKES_FEATURES = True

    # Whether a GPU may record a step from stored features and replay it. A recording
    # repeats the Python of one step: counters, schedules and branches stay as they
    # were. So each class says it of its own steps; it is not inherited.
    RECORDABLE = False

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.num_classes = num_classes
        self.backbone = self.load_backbone()
        names = hparams.get("class_names")
        if names is None:
            names = [f"class {i}" for i in range(num_classes)]
            warnings.warn(f"no class names; prompts say {names[0]!r} ...", stacklevel=2)
        if len(names) != num_classes:
            raise InputError(
                f"class_names has {len(names)} names; there are {num_classes} classes."
            )
        self.prompts = self.write_prompts(names)
        with torch.no_grad():
            t = self.backbone.encode_text_layers(self.prompts)
        # Made from frozen weights: moved with the module, but not saved again.
        self.register_buffer("text_features", t, persistent=False)
        self.build()
        trainable = [p for p in self.parameters() if p.requires_grad]
        self.optimizer = self.make_optimizer(trainable) if trainable else None
        recordable = vars(type(self)).get("RECORDABLE", False)
        self.graphed_step = GraphedStep(self.take_step, self.optimizer, recordable)

    @classmethod
    def hparam_rows(cls, dataset):
        return {
            "clip_backbone": (default_clip(dataset), None),
            "clip_transform": (dataset not in TENSOR_DATASETS, None),
            "feature_dtype": ("float16", None),  # of stored features
            "prompt": ("a photo of a {name}", None),
            "lr": (1e-3, lambda r: 10 ** r.uniform(-4.5, -2.5)),
            "weight_decay": (0.0, None),
            "momentum": (0.1, lambda r: r.choice([0.0, 0.1, 0.2])),
        }

    def load_backbone(self) -> CLIPBackbone:
        """The towers that make the features."""
        return load_clip(self.hparams["clip_backbone"])

    def write_prompts(self, class_names: list[str]) -> list[str]:
        """A prompt for each class."""
        template = self.hparams["prompt"]
        if not isinstance(template, str):
            raise InputError(
                f"{type(self).__name__} takes one prompt, not {template}; ZeroShotCLIP "
                "takes a list."
            )
        return prompts_of(template, class_names)

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
        return self.backbone.encode_image_layers(self.images(x))

    def images(self, x: torch.Tensor) -> torch.Tensor:
        """Images as CLIP takes them; InputError if x are none."""
        if x.ndim != 4:
            frozen = self.TAKES_FEATURES
            what = (
                "was told no kind of features" if frozen else "trains its image tower"
            )
            raise InputError(
                f"{type(self).__name__} {what} and needs images (B, channels, H, W), "
                f"not {tuple(x.shape)}."
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


@register
class ZeroShotCLIP(CLIPAlgorithm):
    """CLIP as it is: cosines of the last layers' projections. Nothing trains.

    `prompt` may be a list of templates: a class is then the mean of its unit text
    embeddings, the paper's ensemble (https://arxiv.org/abs/2103.00020, section 3.1.4).
    """

    ALIASES = ("ZSCLIP",)
    MAX_STEPS = 1

    def write_prompts(self, class_names):
        """A prompt for each template and class; number s C + c is template s's of c."""
        templates = self.hparams["prompt"]
        templates = [templates] if isinstance(templates, str) else templates
        if not templates:
            raise InputError("hyperparameter prompt is an empty list of templates.")
        return [prompt for s in templates for prompt in prompts_of(s, class_names)]

    def logits(self, z):
        image = unit(z[:, -1] @ self.backbone.image_projection)  # (B, E)
        text = unit(self.text_features[:, -1] @ self.backbone.text_projection)
        text = unit(text.unflatten(0, (-1, self.num_classes)).mean(0))  # (C, E)
        return self.backbone.scale * image @ text.T


@register
class ZeroShotCLIPName(ZeroShotCLIP):
    """Zero-shot CLIP asked with the bare class name: the papers' ZS-CLIP(C)."""

    ALIASES = ("ZSCLIP_C",)

    @classmethod
    def hparam_rows(cls, dataset):
        return super().hparam_rows(dataset) | {"prompt": ("{name}", None)}


@register
class LinearProbeCLIP(CLIPAlgorithm):
    """Zero-shot CLIP with both projections trained, D E + W E parameters.

    The LFA paper's linear probe. `layer` names the image layer it reads, counted from
    0 or, if negative, from the end.
    """

    ALIASES = ("LPCLIP",)
    RECORDABLE = True

    @classmethod
    def hparam_rows(cls, dataset):
        return super().hparam_rows(dataset) | {"layer": (-1, None)}

    def build(self):
        self.image_projection = nn.Parameter(self.backbone.image_projection.clone())
        self.text_projection = nn.Parameter(self.backbone.text_projection.clone())

    def logits(self, z):
        image = unit(z[:, self.hparams["layer"]] @ self.image_projection)  # (B, E)
        text = unit(self.text_features[:, -1] @ self.text_projection)  # (C, E)
        return self.backbone.scale * image @ text.T


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
    own query (self) and, weighing `beta`, with the image's (cross).
    """

    ALIASES = ("CLIP_LFA",)
    RECORDABLE = True

    @classmethod
    def hparam_rows(cls, dataset):
        return super().hparam_rows(dataset) | {
            "beta": (0.9, None),
            "rank": (None, None),
        }

    def build(self):
        rank = self.hparams["rank"]
        of_image, of_text = (
            self.backbone.image_projection,
            self.backbone.text_projection,
        )
        self.image_q, self.image_k, self.image_v = (
            Projection(of_image, rank) for _ in range(3)
        )
        self.self_q, self.self_k, self.self_v = (
            Projection(of_text, rank) for _ in range(3)
        )
        self.cross_k, self.cross_v = (Projection(of_text, rank) for _ in range(2))

    def logits(self, z):
        return self.plain_logits(z) if self.hparams["rank"] else self.fast_logits(z)

    def plain_logits(self, z: torch.Tensor) -> torch.Tensor:
        """The definition. For every image and class it holds a vector (E,)."""
        t, beta = self.text_features, self.hparams["beta"]
        q = self.image_q(z[:, -1])  # (B, E)
        image = unit(attend(q, self.image_k(z), self.image_v(z)))  # (B, E)
        own = unit(attend(self.self_q(t[:, -1]), self.self_k(t), self.self_v(t)))
        cross = unit(attend(q[:, None], self.cross_k(t), self.cross_v(t)))  # (B, C, E)
        mixed = beta * cross + (1 - beta) * own  # linear, so mixed before the product
        return self.backbone.scale * torch.einsum("be,bce->bc", image, mixed)

    def fast_logits(self, z: torch.Tensor) -> torch.Tensor:
        """The same numbers with about L times fewer operations.

        Only one query asks, so W_k goes to its side, and W_v behind the sum over
        layers: q (W_k)^T z_l and (sum_l a_l z_l) W_v. The cross branch needs its pooled
        vector, sum_l p_l v_l, only in a product and a norm: image . cross is
        sum_l p_l (image . v_l), |cross|^2 is p^T G p with G = V V^T of each class.
        """
        t, beta = self.text_features, self.hparams["beta"]
        q = self.image_q(z[:, -1])  # (B, E)
        image = unit(pool(q, z, self.image_k.weight, self.image_v.weight))  # (B, E)
        own = self.self_q(t[:, -1])
        own = unit(pool(own, t, self.self_k.weight, self.self_v.weight))  # (C, E)
        # weigh(q[:, None], t, ...), written so that it is one matrix product
        p = torch.einsum("bw,clw->bcl", q @ self.cross_k.weight.T, t)
        p = (p / q.shape[-1] ** 0.5).softmax(-1)  # (B, C, L)
        v = self.cross_v(t)  # (C, L, E)
        product = (p * torch.einsum("be,cle->bcl", image, v)).sum(-1)  # (B, C)
        norm = (p * torch.einsum("bcl,clm->bcm", p, v @ v.mT)).sum(-1).sqrt()
        mixed = beta * product / norm + (1 - beta) * image @ own.T
        return self.backbone.scale * mixed

    def last_layer_logits(self, z: torch.Tensor) -> torch.Tensor:
        """Class scores (B, C) of the same projections if only the last layers answer.

        Every attention lies wholly on the last layer, so the values are projected and
        compared as they are: what the other layers have to rescue where it is wrong.
        """
        t, beta = self.text_features[:, -1], self.hparams["beta"]  # (C, W)
        image = unit(self.image_v(z[:, -1]))  # (B, E)
        text = beta * unit(self.cross_v(t)) + (1 - beta) * unit(self.self_v(t))
        return self.backbone.scale * image @ text.T

    def layer_attention(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """How much each layer weighs: image (B, L), self (C, L), cross (B, C, L)."""
        z, t = self.features(x), self.text_features
        q = self.image_q(z[:, -1])
        return {
            "image": attention(q, self.image_k(z)),
            "self": attention(self.self_q(t[:, -1]), self.self_k(t)),
            "cross": attention(q[:, None], self.cross_k(t)),
        }
