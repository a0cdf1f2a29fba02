"""CLIP towers that return the features of every layer.

Letters: B images, C prompts, L layers, T tokens, D image width, W text width, E joint
embedding. OpenAI's code: https://github.com/openai/CLIP (on PyPI as clip-anytorch).
"""

import copy
import functools
import hashlib
import urllib.error
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.transforms import Compose, Normalize
from torchvision.transforms.functional import InterpolationMode, resize

from domainbed.lib.errors import InputError, UnknownNameError

with warnings.catch_warnings():  # clip imports pkg_resources, which says it is ageing
    warnings.simplefilter("ignore")
    import clip as openai_clip
    from clip import tokenize
    from clip.model import CLIP, VisionTransformer

EMOJI_CLIP = Path(__file__).parents[1] / "assets" / "emoji_clip.pt"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class CLIPBackbone(nn.Module):
    """A frozen CLIP in eval mode and float32; all sizes are read from the model.

    Its weights are not saved with what trains: a state dict holds their fingerprint,
    and loading it into another backbone is an error.
    """

    def __init__(self, model: CLIP, preprocess: Compose):
        super().__init__()
        if not isinstance(model.visual, VisionTransformer):
            raise InputError(
                "a ResNet CLIP has no residual token layers; give clip_backbone a "
                "vision transformer such as 'ViT-B/16'"
            )
        self.model = model.float().eval().requires_grad_(False)
        self.normalize: Normalize = preprocess.transforms[-1]
        self.resolution: int = model.visual.input_resolution
        self.register_load_state_dict_post_hook(forgive_missing_weights)

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits that name the weights: of their names and float32 bytes."""
        return fingerprint_of(self.model.state_dict())

    @property
    def image_projection(self) -> torch.Tensor:
        """CLIP's own (D, E)."""
        return self.model.visual.proj

    @property
    def text_projection(self) -> torch.Tensor:
        """CLIP's own (W, E)."""
        return self.model.text_projection

    @property
    def n_image_layers(self) -> int:
        """L of the image tower."""
        return len(self.model.visual.transformer.resblocks)

    @property
    def token_embedding(self) -> nn.Embedding:
        """A row of width W for each token."""
        return self.model.token_embedding

    @property
    def scale(self) -> torch.Tensor:
        """What multiplies a cosine to make a logit; 100 in OpenAI's models."""
        return self.model.logit_scale.exp()

    def encode_image_layers(self, x: torch.Tensor) -> torch.Tensor:
        """z (B, L, D): the class token after every block, through ln_post."""
        visual = self.model.visual
        layers = [tokens[0] for tokens in image_blocks(visual, visual.conv1(x))]
        return visual.ln_post(torch.stack(layers, 1))

    def encode_text_layers(self, prompts: list[str]) -> torch.Tensor:
        """t (C, L, W): the end-of-text token after every block, through ln_final."""
        return self.encode_prompts(*self.embed_prompts(prompts))

    def embed_prompts(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token embeddings (C, T, W) and where each prompt ends, (C,).

        Cut after the last end: attention is causal, what stands behind changes nothing.
        """
        try:
            tokens = tokenize(prompts).to(self.model.logit_scale.device)
        except RuntimeError as error:
            longest = max(prompts, key=len)
            raise InputError(
                f"the prompt {longest!r} is longer than CLIP's 77 tokens."
            ) from error
        eot = tokens.argmax(1)  # the end-of-text token has the highest id
        return self.token_embedding(tokens[:, : int(eot.max()) + 1]), eot

    def encode_prompts(
        self, embeddings: torch.Tensor, eot: torch.Tensor
    ) -> torch.Tensor:
        """t (C, L, W) of token embeddings (C, T, W) that end at `eot` (C,).

        The weights are frozen, but gradients flow to the embeddings.
        """
        tokens = embeddings + self.model.positional_embedding[: embeddings.shape[1]]
        tokens = tokens.transpose(0, 1)
        row = torch.arange(len(eot), device=eot.device)
        layers = []
        for block in self.model.transformer.resblocks:
            tokens = block(tokens)
            layers.append(tokens[eot, row])
        return self.model.ln_final(torch.stack(layers, 1))

    def from_imagenet(self, x: torch.Tensor) -> torch.Tensor:
        """Images normalised for ImageNet, (B, 1 to 3, H, W), as this CLIP takes them.

        One channel is shown grey; of two, the third stays empty.
        """
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        elif x.shape[1] == 2:
            x = torch.cat([x, torch.zeros_like(x[:, :1])], 1)
        mean, std = (
            x.new_tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD)
        )
        size = [self.resolution, self.resolution]
        x = resize(x * std + mean, size, InterpolationMode.BICUBIC, antialias=True)
        return self.normalize(x)

    def train(self, mode: bool = True) -> "CLIPBackbone":
        """Itself, in eval mode whatever is asked: it is frozen."""
        return super().train(False)

    def is_saved(self, name: str) -> bool:
        """Whether the state dict holds that entry: not if it is a frozen weight."""
        return not name.startswith("model.")

    def state_dict(self, *args: Any, prefix: str = "", **kwargs: Any) -> dict:
        """The fingerprint, and what `is_saved` of the weights."""
        state = super().state_dict(*args, prefix=prefix, **kwargs)
        for key in [key for key in state if key.startswith(prefix)]:
            if not self.is_saved(key.removeprefix(prefix)):
                del state[key]
        return state

    def get_extra_state(self) -> str:
        return self.fingerprint

    def set_extra_state(self, state: str) -> None:
        if state != (own := self.get_extra_state()):
            raise InputError(
                f"this checkpoint was trained on CLIP weights {state}, not on these, "
                f"{own}; set clip_backbone to the one it was trained on."
            )


def fingerprint_of(weights: dict[str, torch.Tensor]) -> str:
    """16 hex digits that name weights by their names and float32 bytes."""
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(weight.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def forgive_missing_weights(module: nn.Module, incompatible: Any) -> None:
    """Do not miss the frozen weights in a state dict that is being loaded."""
    names = [f"model.{name}" for name in module.model.state_dict()]
    frozen = {name for name in names if not module.is_saved(name)}
    missing = incompatible.missing_keys
    missing[:] = [key for key in missing if key[key.find("model.") :] not in frozen]


def image_blocks(
    visual: VisionTransformer, patches: torch.Tensor
) -> Iterator[torch.Tensor]:
    """The tokens (T, B, D) after each block, the class token first.

    `patches` is what the tower's first convolution makes of images, (B, D, h, w).
    """
    start = visual.class_embedding.expand(len(patches), 1, -1)
    tokens = torch.cat([start, patches.flatten(2).transpose(1, 2)], 1)
    tokens = visual.ln_pre(tokens + visual.positional_embedding).transpose(0, 1)
    for block in visual.transformer.resblocks:
        tokens = block(tokens)
        yield tokens


@functools.lru_cache(maxsize=1)
def read_clip(name: str) -> tuple[CLIP, Compose]:
    """OpenAI's model and its transform, read once for the dataset and the algorithm."""
    path = str(EMOJI_CLIP) if name == "emoji" else name
    if path not in openai_clip.available_models() and not Path(path).is_file():
        if Path(path).suffix or Path(path).is_absolute():
            raise InputError(f"no CLIP checkpoint at {path!r}, given as clip_backbone")
        raise UnknownNameError(
            "CLIP backbone", name, ["emoji", *openai_clip.available_models(), "a path"]
        )
    try:
        # Weights are drawn before they are read; whether this model was read before
        # must not change the numbers that are drawn after it.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tries TorchScript, which is deprecated
            return openai_clip.load(path, device="cpu")
    except urllib.error.URLError as error:
        raise InputError(
            f"cannot download CLIP {name!r} ({error.reason}); give a checkpoint's path "
            """instead: --hparams '{"clip_backbone": "/path/to/model.pt"}'"""
        ) from error


def default_clip(dataset: str) -> str:
    """The CLIP for a dataset: the one that ships with the package for what does too."""
    embedded = dataset == "EmojiDG" or dataset.startswith("Debug")
    return "emoji" if embedded else "ViT-B/16"


def load_clip(name: str) -> CLIPBackbone:
    """A frozen copy of the CLIP that `name` means: `emoji`, OpenAI's name or a path."""
    model, preprocess = read_clip(name)
    return CLIPBackbone(copy.deepcopy(model), preprocess)


def clip_transform(name: str) -> Compose:
    """The deterministic transform, PIL image -> (3, H, W), that this CLIP expects."""
    return read_clip(name)[1]
