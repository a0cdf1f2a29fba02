"""The emoji CLIP's towers, batch first and in bfloat16.

The weights are those of OpenAI's CLIP class (Radford et al. 2021,
https://arxiv.org/abs/2103.00020); the arithmetic is written anew because theirs, which
is made for GPUs, takes three times as long on a CPU.

Shapes: B batch, L tokens, D width, E embedding, K patches kept.
"""

import math

import torch
import torch.nn.functional as F
from clip.model import CLIP

PIXELS, PATCH, PATCHES = 48, 8, 36
WIDTH, HEADS, EMBEDDING = 128, 2, 128
MIDWAY = 5  # the image teacher speaks after this block of eight, words after the last


def build_clip() -> CLIP:
    return CLIP(EMBEDDING, PIXELS, 8, WIDTH, PATCH, 77, 49408, WIDTH, HEADS, 4)


def cast(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The module's weights in bfloat16; gradients reach the originals."""
    return {name: p.bfloat16() for name, p in module.named_parameters()}


def normalize(x, w, name):
    return F.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"])


def linear(x, w, name):
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def run_blocks(x, w, mask=None) -> list[torch.Tensor]:
    """(B, L, D) -> the output of each of CLIP's residual blocks, (B, L, D) each."""
    outputs = []
    b, n, _ = x.shape
    for i in range(sum(key.endswith("in_proj_weight") for key in w)):
        block = f"transformer.resblocks.{i}"
        y = normalize(x, w, f"{block}.ln_1")
        y = F.linear(
            y, w[f"{block}.attn.in_proj_weight"], w[f"{block}.attn.in_proj_bias"]
        )
        q, k, v = y.view(b, n, 3, HEADS, -1).permute(2, 0, 3, 1, 4)  # (B, heads, L, 64)
        a = q @ k.mT / q.shape[-1] ** 0.5  # by hand: short L is slow in torch's kernel
        a = a if mask is None else a + mask
        y = (a.softmax(-1) @ v).transpose(1, 2).reshape(b, n, WIDTH)
        x = x + linear(y, w, f"{block}.attn.out_proj")
        y = linear(normalize(x, w, f"{block}.ln_2"), w, f"{block}.mlp.c_fc")
        y = F.silu(1.702 * y) / 1.702  # y sigmoid(1.702 y), CLIP's QuickGELU
        x = x + linear(y, w, f"{block}.mlp.c_proj")
        outputs.append(x)
    return outputs


def encode_image(w, images, kept) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 3, 48, 48), patches to keep (B, K) -> (B, E), midway token (B, D)."""
    x = F.conv2d(images.bfloat16(), w["conv1.weight"], stride=PATCH).flatten(2).mT
    x = x + w["positional_embedding"][1:]
    x = x.gather(1, kept[..., None].expand(-1, -1, WIDTH))
    first = (w["class_embedding"] + w["positional_embedding"][0]).expand(len(x), 1, -1)
    outputs = run_blocks(normalize(torch.cat([first, x], 1), w, "ln_pre"), w)
    last = normalize(outputs[-1][:, 0], w, "ln_post")
    return (last @ w["proj"]).float(), outputs[MIDWAY][:, 0]


def encode_text(w, table, tokens) -> torch.Tensor:
    """(B, L) tokens, embedded by table (vocabulary, D) -> (B, E)."""
    x = F.embedding(tokens, table).bfloat16()
    x = x + w["positional_embedding"][: tokens.shape[1]]
    mask = torch.full((tokens.shape[1],) * 2, -math.inf, dtype=x.dtype).triu(1)
    x = normalize(run_blocks(x, w, mask)[-1], w, "ln_final")
    end = x[torch.arange(len(x)), tokens.argmax(1)]  # (B, D)
    return (end @ w["text_projection"]).float()
