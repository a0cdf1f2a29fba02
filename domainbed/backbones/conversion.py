"""OpenAI's CLIP as transformers' CLIPModel and back: the same weights, other names.

OpenAI: https://github.com/openai/CLIP
transformers: https://huggingface.co/docs/transformers/model_doc/clip
"""

from typing import TYPE_CHECKING

import torch

from domainbed.backbones.clip import CLIP
from domainbed.lib.optional import require

if TYPE_CHECKING:
    from transformers import CLIPModel

State = dict[str, torch.Tensor]

# How a name begins, at OpenAI's and in transformers.
BEGINNINGS = {
    "logit_scale": "logit_scale",
    "text_projection": "text_projection.weight",
    "token_embedding": "text_model.embeddings.token_embedding",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "transformer.resblocks": "text_model.encoder.layers",
    "ln_final": "text_model.final_layer_norm",
    "visual.proj": "visual_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1": "vision_model.embeddings.patch_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "visual.ln_post": "vision_model.post_layernorm",
}
# How parts of a block are called.
PARTS = {
    ".attn.": ".self_attn.",
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".c_fc.": ".fc1.",
    ".c_proj.": ".fc2.",
}
TRANSPOSED = ("visual_projection.weight", "text_projection.weight")
QKV = ("q_proj", "k_proj", "v_proj")  # OpenAI has them stacked, as in_proj


def rename(name: str, beginnings: dict[str, str], parts: dict[str, str]) -> str:
    """The name with its beginning and its parts exchanged."""
    old = next(old for old in beginnings if name.startswith(old))
    name = beginnings[old] + name.removeprefix(old)
    for part, new in parts.items():
        name = name.replace(part, new)
    return name


def to_transformers(state: State) -> State:
    """An OpenAI state dict under transformers' names."""
    result = {}
    for name, weight in state.items():
        new = rename(name, BEGINNINGS, PARTS)
        if ".in_proj_" in new:
            for proj, part in zip(QKV, weight.chunk(3), strict=True):
                result[new.replace("in_proj_", f"{proj}.")] = part
        else:
            result[new] = weight.T if new in TRANSPOSED else weight
    return result


def to_openai(state: State) -> State:
    """A transformers state dict under OpenAI's names, as `clip.load` reads it."""
    beginnings = {new: old for old, new in BEGINNINGS.items()}
    parts = {new: old for old, new in PARTS.items()}
    result = {}
    for name, weight in state.items():
        if ".q_proj." in name:
            stacked = [state[name.replace("q_proj", proj)] for proj in QKV]
            old = rename(name, beginnings, parts).replace("q_proj.", "in_proj_")
            result[old] = torch.cat(stacked)
        elif not any(f".{proj}." in name for proj in QKV):
            old = rename(name, beginnings, parts)
            result[old] = weight.T if name in TRANSPOSED else weight
    return result


def transformers_clip(model: CLIP) -> "CLIPModel":
    """A transformers CLIPModel with the weights of OpenAI's, all sizes read from it."""
    transformers = require("transformers", "qlora")
    visual, text = model.visual, model.transformer
    n_tokens, text_width = model.positional_embedding.shape
    width, embed_dim = visual.proj.shape
    config = transformers.CLIPConfig(
        projection_dim=embed_dim,
        text_config={
            "vocab_size": model.vocab_size,
            "max_position_embeddings": n_tokens,
            "projection_dim": embed_dim,
            **block_sizes(text, text_width),
        },
        vision_config={
            "image_size": visual.input_resolution,
            "patch_size": visual.conv1.kernel_size[0],
            "projection_dim": embed_dim,
            **block_sizes(visual.transformer, width),
        },
    )
    converted = transformers.CLIPModel(config)
    converted.load_state_dict(to_transformers(model.state_dict()))
    return converted


def block_sizes(transformer: torch.nn.Module, width: int) -> dict[str, int]:
    """The part of a tower's configuration that its blocks tell."""
    block = transformer.resblocks[0]
    return {
        "hidden_size": width,
        "intermediate_size": block.mlp.c_fc.out_features,
        "num_hidden_layers": len(transformer.resblocks),
        "num_attention_heads": block.attn.num_heads,
        "hidden_act": "gelu"
        if isinstance(block.mlp.gelu, torch.nn.GELU)
        else "quick_gelu",
    }
