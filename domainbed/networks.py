"""Featurizers and heads of the methods that train a network of their own."""

from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from domainbed.lib.errors import InputError, did_you_mean
from domainbed.lib.optional import require

NOT_HERE = ("dinov2", "vit", "vit_attn_tune", "lars")  # upstream's own experiments


def Featurizer(input_shape: tuple[int, ...], hparams: dict[str, Any]) -> nn.Module:
    """A network from inputs of that shape to features (B, n_outputs).

    The hparam `backbone` names a timm model. Without it flat vectors get an MLP,
    28 x 28 images a small convolutional network, all others a ResNet-18 or -50.
    """
    for name in NOT_HERE:
        if hparams.get(name):
            raise InputError(f"hyperparameter {name!r} can only be False here.")
    if len(input_shape) == 1:
        if hparams.get("backbone"):
            raise InputError(
                f"the backbone {hparams['backbone']!r} takes images, not vectors; "
                "leave hyperparameter input at 'images'."
            )
        return vector_network(input_shape[0], hparams)
    if hparams.get("backbone"):
        return TimmModel(input_shape, hparams)
    if input_shape[1:] == (28, 28):
        return MNIST_CNN(input_shape)
    return ResNet(input_shape, hparams)


def vector_network(n_inputs: int, hparams: dict[str, Any]) -> nn.Module:
    """An MLP of the rows vector_*; without a value, of mlp_* as upstream's has it."""
    rows = {
        f"mlp_{name}": hparams[f"vector_{name}"]
        for name in ("width", "depth", "dropout")
        if hparams.get(f"vector_{name}") is not None
    }
    if rows.get("mlp_depth") == 0:
        return Vectors(n_inputs)
    rows = hparams | rows
    return MLP(n_inputs, rows.get("mlp_width", 256), rows)


class Vectors(nn.Identity):
    """Vectors (B, n_outputs) as they are."""

    def __init__(self, n_outputs: int):
        super().__init__()
        self.n_outputs = n_outputs


def Classifier(
    in_features: int, out_features: int, is_nonlinear: bool = False
) -> nn.Module:
    """A linear layer, or three with ReLU between (widths halved each time)."""
    if not is_nonlinear:
        return nn.Linear(in_features, out_features)
    return nn.Sequential(
        nn.Linear(in_features, in_features // 2),
        nn.ReLU(),
        nn.Linear(in_features // 2, in_features // 4),
        nn.ReLU(),
        nn.Linear(in_features // 4, out_features),
    )


class MLP(nn.Module):
    """`mlp_depth` linear layers of `mlp_width`, with dropout and ReLU in between."""

    def __init__(self, n_inputs: int, n_outputs: int, hparams: dict[str, Any]):
        super().__init__()
        width = hparams.get("mlp_width", 256)
        depth = hparams.get("mlp_depth", 3)
        self.dropout = nn.Dropout(hparams.get("mlp_dropout", 0.0))
        self.input = nn.Linear(n_inputs, width)
        self.hiddens = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 2))
        self.output = nn.Linear(width, n_outputs)
        self.n_outputs = n_outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.input, *self.hiddens):
            x = F.relu(self.dropout(layer(x)))
        return self.output(x)


class MNIST_CNN(nn.Module):
    """DomainBed's network for 28 x 28 images: four convolutions, mean over places."""

    n_outputs = 128

    def __init__(self, input_shape: tuple[int, ...]):
        super().__init__()
        widths = [(input_shape[0], 64, 1), (64, 128, 2), (128, 128, 1), (128, 128, 1)]
        blocks = [
            nn.Sequential(
                nn.Conv2d(n_in, n_out, 3, stride, padding=1),
                nn.ReLU(),
                nn.GroupNorm(8, n_out),
            )
            for n_in, n_out, stride in widths
        ]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x).mean((2, 3))


class Pooled(nn.Module):
    """A network without its last layer; its batch norm is frozen if `freeze_bn`."""

    network: nn.Module
    n_outputs: int

    def __init__(self, hparams: dict[str, Any]):
        super().__init__()
        self.freeze_bn = hparams["freeze_bn"]

    def train(self, mode: bool = True) -> "Pooled":
        super().train(mode)
        if self.freeze_bn:
            for module in self.network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self


class TimmModel(Pooled):
    """A timm model's pooled features; images are resized to the size it was made for.

    They stay normalised for ImageNet whatever its own statistics are, as in DomainBed.
    `pretrained` downloads its weights, or names a file with them.
    """

    def __init__(self, input_shape: tuple[int, ...], hparams: dict[str, Any]):
        super().__init__(hparams)
        timm = require("timm", "timm")
        name, pretrained = hparams["backbone"], hparams["pretrained"]
        if not timm.is_model(name):
            raise InputError(
                f"timm has no model {name!r}."
                + did_you_mean(name, timm.list_models(pretrained=True))
            )
        try:
            self.network = timm.create_model(
                name,
                pretrained=pretrained is True,
                num_classes=0,
                in_chans=input_shape[0],
            )
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"cannot get weights for timm's {name} ({reason(error)}); set "
                "hyperparameter pretrained to false or to the path of a checkpoint."
            ) from error
        if isinstance(pretrained, str):
            load_all_but_head(self.network, read_weights(pretrained))
        # Some networks have a layer between their features and the head.
        width = getattr(self.network, "head_hidden_size", None)
        self.n_outputs = width or self.network.num_features
        self.size = self.network.pretrained_cfg["input_size"][1:]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[2:] != self.size:
            x = F.interpolate(x, self.size, mode="bicubic", antialias=True)
        return self.network(x)


class ResNet(Pooled):
    """A ResNet-18 or -50, with dropout on its features."""

    def __init__(self, input_shape: tuple[int, ...], hparams: dict[str, Any]):
        super().__init__(hparams)
        small = hparams["resnet18"]
        network = (
            torchvision.models.resnet18 if small else torchvision.models.resnet50
        )()
        self.n_outputs = network.fc.in_features
        network.fc = nn.Identity()
        # An upstream dict of hparams has no such row; upstream always pretrains.
        if pretrained := hparams.get("pretrained", True):
            load_all_but_head(network, pretrained_weights(pretrained, hparams))
        channels = input_shape[0]
        if channels != 3:
            network.conv1 = other_channels(network.conv1, channels)
        self.network = network
        self.dropout = nn.Dropout(hparams["resnet_dropout"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.network(x))


def reason(error: Exception) -> str:
    """What the error says, in one line that is not too long; else what it is."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def read_weights(path: str) -> dict[str, torch.Tensor]:
    """A state dict from a safetensors or PyTorch file, also if a key holds it there."""
    try:
        if path.endswith(".safetensors"):
            return safetensors.torch.load_file(path)
        saved = torch.load(path, map_location="cpu", weights_only=True)
        return saved.get("state_dict", saved.get("model", saved))
    except Exception as error:  # a file that is no checkpoint can fail in any way
        raise InputError(
            f"cannot read the weights in {path}, given as pretrained: {reason(error)}"
        ) from error


def load_all_but_head(network: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Fill a network that has no head; what the weights hold beyond it is left out."""
    try:
        missing = network.load_state_dict(weights, strict=False).missing_keys
    except RuntimeError as error:  # of other shapes
        raise InputError(
            f"the pretrained weights do not fit: {reason(error)}"
        ) from error
    if missing:
        raise InputError(
            f"the pretrained weights are of another network: {missing[0]} and "
            f"{len(missing) - 1} more are missing."
        )


def other_channels(conv: nn.Conv2d, channels: int) -> nn.Conv2d:
    """A first convolution for `channels` inputs with the RGB weights, repeated."""
    new = nn.Conv2d(channels, conv.out_channels, 7, stride=2, padding=3, bias=False)
    with torch.no_grad():
        for i in range(channels):
            new.weight[:, i] = conv.weight[:, i % 3]
    return new


def pretrained_weights(pretrained: bool | str, hparams: dict[str, Any]) -> dict:
    """A ResNet's state dict: from that path, or downloaded from its makers.

    ResNet-50 comes as timm's `resnet50.ram_in1k` (AugMix) if `resnet50_augmix`.
    """
    if isinstance(pretrained, str):
        return read_weights(pretrained)
    try:
        if hparams["resnet18"]:
            weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
        elif hparams["resnet50_augmix"]:
            name = "resnet50.ram_in1k"  # its layers are named as torchvision's
            timm = require("timm", "timm")
            return timm.create_model(name, pretrained=True).state_dict()
        else:
            weights = torchvision.models.ResNet50_Weights.IMAGENET1K_V1
        return weights.get_state_dict(progress=False)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"cannot get pretrained ResNet weights ({reason(error)}); set "
            "hyperparameter pretrained to false or to the path of a state dict."
        ) from error
