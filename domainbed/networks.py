"""Featurizers and heads of the methods that train a network of their own."""

from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from domainbed.lib.errors import InputError, did_you_mean, one_line
from domainbed.lib.optional import require
from domainbed.lib.vision import torchvision

DINOV2 = "vit_base_patch14_dinov2.lvd142m"  # ViT-B/14


def Featurizer(input_shape: tuple[int, ...], hparams: dict[str, Any]) -> nn.Module:
    """A network from inputs of that shape to features (B, n_outputs).

    The hparam `backbone` names a timm model. Without it flat vectors get an MLP,
    28 x 28 images a small convolutional network, 32 x 32 ones a Wide ResNet, all others
    a ResNet-18 or -50, or DINOv2's ViT if `vit` and `dinov2`.
    """
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
    if input_shape[1:] == (32, 32):
        return WideResNet(input_shape)
    if wants_vit(hparams):
        return DinoV2(input_shape, hparams)
    return ResNet(input_shape, hparams)


def wants_vit(hparams: dict[str, Any]) -> bool:
    """Whether `vit` and `dinov2` are True; InputError if one is without the other."""
    vit, dinov2, attn = (
        hparams.get(name, False) for name in ("vit", "dinov2", "vit_attn_tune")
    )
    if vit != dinov2 or (attn and not vit):
        raise InputError(
            "hyperparameters vit and dinov2 are both needed for the one ViT there is, "
            "DINOv2's, and vit_attn_tune needs it; set both to true, or name a timm "
            "model as backbone."
        )
    return vit


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


class WideBlock(nn.Module):
    """A residual block that normalises first; its second convolution has the stride."""

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(n_in)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, stride, padding=1)
        same = stride == 1 and n_in == n_out
        shortcut = [] if same else [nn.Conv2d(n_in, n_out, 1, stride)]
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        return out + self.shortcut(x)


class WideResNet(nn.Module):
    """DomainBed's network for 32 x 32 images: a Wide ResNet-16-2, mean over places.

    Zagoruyko & Komodakis, 2016, https://arxiv.org/abs/1605.07146
    """

    n_outputs = 128

    def __init__(self, input_shape: tuple[int, ...]):
        super().__init__()
        self.conv1 = nn.Conv2d(input_shape[0], 16, 3, padding=1)
        self.layer1 = nn.Sequential(WideBlock(16, 32, 1), WideBlock(32, 32, 1))
        self.layer2 = nn.Sequential(WideBlock(32, 64, 2), WideBlock(64, 64, 1))
        self.layer3 = nn.Sequential(WideBlock(64, 128, 2), WideBlock(128, 128, 1))
        self.bn1 = nn.BatchNorm2d(128, momentum=0.9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return F.relu(self.bn1(x)).mean((2, 3))


class Pooled(nn.Module):
    """A network without its last layer; its batch norm is frozen if `freeze_bn`.

    A subclass ends its constructor with `self.train()`: frozen from the first step on.
    """

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
        self.network = timm_model(
            hparams["backbone"], hparams["pretrained"], in_chans=input_shape[0]
        )
        # Some networks have a layer between their features and the head.
        width = getattr(self.network, "head_hidden_size", None)
        self.n_outputs = width or self.network.num_features
        self.size = self.network.pretrained_cfg["input_size"][1:]
        self.train()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[2:] != self.size:
            x = F.interpolate(x, self.size, mode="bicubic", antialias=True)
        return self.network(x)


class DinoV2(nn.Module):
    """A ViT's class tokens of its last four blocks and mean patch token: 5 D features.

    DINOv2: Oquab et al., 2023, https://arxiv.org/abs/2304.07193. With `vit_attn_tune`
    only its attention trains.
    """

    def __init__(self, input_shape: tuple[int, ...], hparams: dict[str, Any]):
        super().__init__()
        if input_shape[0] != 3:
            raise InputError(
                f"DINOv2 takes images of 3 channels, not {input_shape[0]}; set "
                "hyperparameters vit and dinov2 to false."
            )
        # An upstream dict of hparams has neither row; upstream always pretrains.
        name, pretrained = (
            hparams.get("vit_model", DINOV2),
            hparams.get("pretrained", True),
        )
        self.network = timm_model(name, pretrained, dynamic_img_size=True)
        self.n_outputs = 5 * self.network.num_features
        self.dropout = nn.Dropout(hparams["vit_dropout"])
        if hparams["vit_attn_tune"]:
            for name, parameter in self.network.named_parameters():
                parameter.requires_grad_("attn" in name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layers = self.network.get_intermediate_layers(
            x, n=4, return_prefix_tokens=True, norm=True
        )
        tokens = [prefix[:, 0] for _, prefix in layers]  # after each of the blocks
        return self.dropout(torch.cat([*tokens, layers[-1][0].mean(1)], 1))


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
        self.train()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.network(x))


def timm_model(name: str, pretrained: bool | str, **options: Any) -> nn.Module:
    """The timm model of that name without its head, with weights downloaded or read."""
    timm = require("timm", "timm")
    if not timm.is_model(name):
        raise InputError(
            f"timm has no model {name!r}."
            + did_you_mean(name, timm.list_models(pretrained=True))
        )
    try:
        network = timm.create_model(
            name, pretrained=pretrained is True, num_classes=0, **options
        )
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"cannot get weights for timm's {name} ({one_line(error, 200)}); set "
            "hyperparameter pretrained to false or to the path of a checkpoint."
        ) from error
    if isinstance(pretrained, str):
        load_all_but_head(network, read_weights(pretrained))
    return network


def read_weights(path: str) -> dict[str, torch.Tensor]:
    """A state dict from a safetensors or PyTorch file, also if a key holds it there."""
    try:
        if path.endswith(".safetensors"):
            return safetensors.torch.load_file(path)
        saved = torch.load(path, map_location="cpu", weights_only=True)
        return saved.get("state_dict", saved.get("model", saved))
    except Exception as error:  # a file that is no checkpoint can fail in any way
        raise InputError(
            f"cannot read the weights in {path}, given as pretrained: "
            f"{one_line(error, 200)}"
        ) from error


def load_all_but_head(network: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Fill a network that has no head; what the weights hold beyond it is left out."""
    try:
        missing = network.load_state_dict(weights, strict=False).missing_keys
    except RuntimeError as error:  # of other shapes
        raise InputError(
            f"the pretrained weights do not fit: {one_line(error, 200)}"
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
            f"cannot get pretrained ResNet weights ({one_line(error, 200)}); set "
            "hyperparameter pretrained to false or to the path of a state dict."
        ) from error
