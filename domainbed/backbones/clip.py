"""CLIP towers that return the features of every layer.

Letters: B images, C prompts, L layers, N tokens, D image width, W text width, E joint
embedding. OpenAI's code: https://github.com/openai/CLIP (on PyPI as clip-anytorch).

For methods that work inside a tower everything is batch first: `embed_image`,
`image_states`, `text_states` and `image_embedding` of the backbone, and two functions,
`run_block` and `attend`, from which a method writes its own block. Nothing is wrapped
in no_grad: frozen weights and plain images make no graph.
"""

import contextlib
import copy
import functools
import hashlib
import importlib
import platform
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision.transforms import Compose, Normalize
from torchvision.transforms.functional import InterpolationMode, resize

from domainbed.backbones.weights import file_in, read_state
from domainbed.lib.errors import InputError, UnknownNameError, one_line
from domainbed.lib.kept import kept
from domainbed.lib.transforms import IMAGENET_MEAN, IMAGENET_STD

with warnings.catch_warnings():  # clip imports pkg_resources, which says it is ageing
    warnings.simplefilter("ignore")
    try:
        import clip as openai_clip
        from clip import tokenize
        from clip.model import (
            CLIP,
            ResidualAttentionBlock,
            VisionTransformer,
            build_model,
        )
    except ImportError as error:
        raise ImportError(
            f"the module clip here is not OpenAI's CLIP ({error}); pip install "
            "clip-anytorch 'setuptools<81', without another package or file clip"
        ) from None

EMOJI_CLIP = Path(__file__).parents[1] / "assets" / "emoji_clip.pt"
FEATURES = "Features:"  # before a file's name: what a CLIP has made, see `file_tower`
CPU = re.compile(r"^model name\s*: (.*)$", re.MULTILINE)
CLASS_TOKENS = "all"  # the kind's name in the feature store
DOWNLOADS = Path.home() / ".cache" / "clip"  # where OpenAI's code puts its files


class Kind(NamedTuple):
    """What a frozen tower makes of images, and what can be stored instead of them."""

    name: str  # a fact of the store's key
    encode: Callable[[torch.Tensor], torch.Tensor]  # (B, 3, H, W) -> (B, *shape)


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
        self.read: dict[str, int] = {}  # `places_of` the weights that `read_clip` read
        self.register_load_state_dict_post_hook(forgive_missing_weights)

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits that name the weights, and the activation if it is GELU.

        Of a file's weights, all of them as they were read, a process before may have
        left it.
        """

        def make() -> np.ndarray:
            weights = self.model.state_dict()
            return np.array(fingerprint_of(weights) + activation_of(self.model))

        source = getattr(self.model, "source", None)
        if source and places_of(self.model) == self.read:
            return str(kept(make, source))
        return str(make())

    @functools.cached_property
    def pretrained(self) -> str:
        """The fingerprint of what was read, whatever is added to it."""
        return self.fingerprint

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

    @property
    def class_tokens(self) -> Kind:
        """z of `encode_image_layers`, as a kind that can be stored."""
        return Kind(CLASS_TOKENS, self.encode_image_layers)

    def embed_image(self, x: torch.Tensor) -> torch.Tensor:
        """x_0 (B, N, D): the tokens before the first block, after ln_pre."""
        return embed_patches(self.model.visual, self.model.visual.conv1(x))

    def image_states(self, x: torch.Tensor) -> list[torch.Tensor]:
        """[x_0, ..., x_L], the tokens before and after every block, (B, N, D) each."""
        return states(self.model.visual.transformer.resblocks, self.embed_image(x))

    def image_embedding(self, token: torch.Tensor) -> torch.Tensor:
        """e (B, E) of last-block class tokens (B, D): through ln_post and projected."""
        return self.model.visual.ln_post(token) @ self.image_projection

    def text_states(
        self, prompts: list[str]
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """[F_0, ..., F_L], (C, N, W) each, and where each prompt ends, (C,).

        N is the longest prompt's number of tokens.
        """
        embeddings, eot = self.embed_prompts(prompts)
        start = embeddings + self.model.positional_embedding[: embeddings.shape[1]]
        return states(self.model.transformer.resblocks, start), eot

    def encode_text_layers(self, prompts: list[str]) -> torch.Tensor:
        """t (C, L, W): the end-of-text token after every block, through ln_final."""
        return self.encode_prompts(*self.embed_prompts(prompts))

    def kept_text_layers(self, prompts: list[str]) -> torch.Tensor:
        """The same, read if a process has made it before with the same arithmetic.

        It takes seconds of a CPU for hundreds of classes; a GPU makes it in no time.
        """
        if self.scale.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return self.encode_text_layers(prompts)
        facts = [self.fingerprint, prompts, torch.__version__, torch.get_num_threads()]
        facts += [torch.backends.cpu.get_cpu_capability(), cpu_name()]
        made = kept(lambda: self.encode_text_layers(prompts).numpy(), facts)
        return torch.from_numpy(made)

    def embed_prompts(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token embeddings (C, N, W) and where each prompt ends, (C,).

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
        """t (C, L, W) of token embeddings (C, N, W) that end at `eot` (C,).

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
        """Itself, in eval mode whatever is asked: it is frozen.

        In eval mode it stays, so that a run's many changes of mode pass its modules by.
        """
        return super().train(False) if self.training else self

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
        digest.update(weight.float().cpu().reshape(-1).numpy())
    return digest.hexdigest()[:16]


def places_of(model: nn.Module) -> dict[str, int]:
    """Where its weights lie in memory, by name."""
    return {name: weight.data_ptr() for name, weight in model.state_dict().items()}


def source_of(name: str) -> list[Any] | None:
    """What tells a file's CLIP from others without a look at its weights.

    None of a name whose file is not where it should be.
    """
    file, activation = path_of(name), name.partition("+")[2]
    if not file.exists():  # a name of OpenAI's
        url = openai_clip.clip._MODELS.get(name.partition("+")[0], "")
        file = DOWNLOADS / Path(url).name
    try:
        file = file_in(file)
        facts = file.stat()
    except (OSError, InputError):
        return None
    return [activation, str(file.resolve()), facts.st_size, facts.st_mtime_ns]


def cpu_name() -> str:
    """What the last digits of a sum depend on."""
    with contextlib.suppress(OSError, IndexError):
        return CPU.findall(Path("/proc/cpuinfo").read_text())[0]
    return platform.processor()


def forgive_missing_weights(module: nn.Module, incompatible: Any) -> None:
    """Do not miss the frozen weights in a state dict that is being loaded."""
    names = [f"model.{name}" for name in module.model.state_dict()]
    frozen = {name for name in names if not module.is_saved(name)}
    missing = incompatible.missing_keys
    missing[:] = [key for key in missing if key[key.find("model.") :] not in frozen]


def embed_patches(visual: VisionTransformer, patches: torch.Tensor) -> torch.Tensor:
    """x_0 (B, N, D) of what the tower's first convolution makes, (B, D, h, w)."""
    start = visual.class_embedding.expand(len(patches), 1, -1)
    tokens = torch.cat([start, patches.flatten(2).transpose(1, 2)], 1)
    return visual.ln_pre(tokens + visual.positional_embedding)


def states(blocks: Iterable[nn.Module], start: torch.Tensor) -> list[torch.Tensor]:
    """The tokens (B, N, D) at the start and after each block."""
    tokens = [start]
    for block in blocks:
        tokens.append(run_block(block, tokens[-1]))
    return tokens


def run_block(block: ResidualAttentionBlock, x: torch.Tensor) -> torch.Tensor:
    """CLIP's own block on tokens (B, N, D), any N."""
    return block(x.transpose(0, 1)).transpose(0, 1)


def attend(
    block: ResidualAttentionBlock,
    q: torch.Tensor,
    kv: torch.Tensor,
    prefix: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """The block's attention with its output projection, (B, Q, D).

    q (B, Q, D) asks kv (B, K, D); both are projected by the block's weights, and in a
    causal block q are the last Q of the K positions. `prefix` is (keys, values),
    (l, D) each, as they stand before the projected ones.
    """
    attn = block.attn
    w_q, w_k, w_v = attn.in_proj_weight.chunk(3)
    b_q, b_k, b_v = attn.in_proj_bias.chunk(3)
    query, key, value = (
        F.linear(q, w_q, b_q),
        F.linear(kv, w_k, b_k),
        F.linear(kv, w_v, b_v),
    )
    mask = None
    if block.attn_mask is not None:
        n_q, n_k = query.shape[1], key.shape[1]
        mask = block.attn_mask[:n_k, :n_k][-n_q:].to(query)
    if prefix is not None:
        key, value = (
            torch.cat([own.expand(len(kv), -1, -1), projected], 1)
            for own, projected in zip(prefix, (key, value), strict=True)
        )
        if mask is not None:
            mask = F.pad(mask, (len(prefix[0]), 0))
    heads = (
        t.unflatten(2, (attn.num_heads, -1)).transpose(1, 2)
        for t in (query, key, value)
    )
    pooled = F.scaled_dot_product_attention(*heads, attn_mask=mask)
    return attn.out_proj(pooled.transpose(1, 2).flatten(2))


def image_blocks(
    visual: VisionTransformer, patches: torch.Tensor
) -> Iterator[torch.Tensor]:
    """The tokens (N, B, D) after each block, the class token first.

    `patches` is what the tower's first convolution makes of images, (B, D, h, w).
    """
    tokens = embed_patches(visual, patches).transpose(0, 1)
    for block in visual.transformer.resblocks:
        tokens = block(tokens)
        yield tokens


@functools.lru_cache(maxsize=1)
def read_clip(name: str) -> tuple[CLIP, Compose]:
    """OpenAI's model and its transform, read once for the dataset and the algorithm.

    `emoji`, a name of OpenAI's or a path; with +gelu at its end, trained with that.
    """
    if name.startswith(FEATURES):
        raise InputError(
            f"{name} has features and no CLIP, which this method takes: give the one "
            "that made them as clip_backbone, or a method on stored features, as LFA."
        )
    path, activation = path_of(name), name.partition("+")[2]
    if activation not in ("", "gelu"):
        raise InputError(f"clip_backbone {name!r} may end in +gelu, not +{activation}.")
    # Whether this model was read before must not change the numbers drawn after it.
    with torch.random.fork_rng(devices=[]), Undrawn():
        model = from_file(path) if path.exists() else from_openai(name)
    if activation:
        use_gelu(model)
    model.source = source_of(name)
    return model, openai_clip.clip._transform(model.visual.input_resolution)


def path_of(name: str) -> Path:
    """Where that CLIP is, if it is a file."""
    path = name.partition("+")[0]
    return EMOJI_CLIP if path == "emoji" else Path(path).expanduser()


class Undrawn(TorchFunctionMode):
    """Inside, new modules draw no weights, which takes longer than to read them."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function.__name__.endswith(("normal_", "uniform_")):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def from_file(path: Path) -> CLIP:
    """The model of those weights, all sizes read from them."""
    state = read_state(path)
    if path != EMOJI_CLIP and path.parent != DOWNLOADS:
        warnings.warn(
            f"{path}: taken to be trained with OpenAI's activation, QuickGELU; if it "
            f"was GELU, as most of open_clip's, write clip_backbone={path}+gelu",
            stacklevel=2,
        )
    try:
        return build_model(state).float()
    except KeyError as error:
        raise InputError(f"clip_backbone {path} lacks {error}.") from error
    except Exception as error:  # sizes are read from weights of whatever shape
        reason = one_line(error, 200)
        raise InputError(f"clip_backbone {path} is no CLIP's: {reason}") from error


def from_openai(name: str) -> CLIP:
    """OpenAI's model of that name, downloaded once."""
    known = openai_clip.available_models()
    if name not in known:
        if Path(name).suffix or Path(name).is_absolute():
            raise InputError(f"no CLIP checkpoint at {name!r}, given as clip_backbone")
        raise UnknownNameError("CLIP backbone", name, ["emoji", *known, "a path"])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tries TorchScript, which is deprecated
            return openai_clip.load(name, device="cpu")[0]
    except Exception as error:  # the web and what it sends instead fail in any way
        reason = getattr(error, "reason", None) or error
        raise InputError(
            f"cannot download CLIP {name!r} ({reason}); give a checkpoint's path "
            """instead: --hparams '{"clip_backbone": "/path/to/model.pt"}'"""
        ) from error


def use_gelu(model: CLIP) -> None:
    """Put GELU in place of QuickGELU, which OpenAI trained with."""
    for tower in (model.visual.transformer, model.transformer):
        for block in tower.resblocks:
            block.mlp.gelu = nn.GELU()


def activation_of(model: CLIP) -> str:
    """`gelu`, or nothing for OpenAI's own."""
    block = model.transformer.resblocks[0]
    return "gelu" if isinstance(block.mlp.gelu, nn.GELU) else ""


def default_clip(dataset: str) -> str:
    """The CLIP for a dataset: the one that ships with the package for what does too.

    What was made of a dataset of stored features stands in their file.
    """
    if dataset.startswith(FEATURES):
        return dataset
    embedded = dataset.startswith(("Emoji", "Debug"))
    return "emoji" if embedded else "ViT-B/16"


def load_clip(name: str) -> CLIPBackbone:
    """The frozen CLIP that `name` means: `emoji`, OpenAI's name or a path.

    All of one name share their weights: who changes some copies the module before.
    Of `Features:FILE` it is what that file knows of one.
    """
    if name.startswith(FEATURES):  # not among what an export copies
        return importlib.import_module("domainbed.backbones.file_tower").FileTower(name)
    model, preprocess = read_clip(name)
    weights = {id(w): nn.Parameter(w.data, False) for w in model.parameters()}
    backbone = CLIPBackbone(copy.deepcopy(model, weights), preprocess)
    backbone.read = places_of(backbone.model)
    return backbone


def clip_transform(name: str) -> Compose:
    """The deterministic transform, PIL image -> (3, H, W), that this CLIP expects."""
    return read_clip(name)[1]
