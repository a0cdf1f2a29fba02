"""Towers that return the features of every layer."""

from domainbed.backbones.clip import (
    CLIP,
    EMOJI_CLIP,
    IMAGENET_MEAN,
    IMAGENET_STD,
    CLIPBackbone,
    Kind,
    VisionTransformer,
    attend,
    clip_transform,
    default_clip,
    fingerprint_of,
    forgive_missing_weights,
    image_blocks,
    load_clip,
    read_clip,
    run_block,
)

__all__ = [
    "CLIP",
    "EMOJI_CLIP",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "CLIPBackbone",
    "Kind",
    "VisionTransformer",
    "attend",
    "clip_transform",
    "default_clip",
    "fingerprint_of",
    "forgive_missing_weights",
    "image_blocks",
    "load_clip",
    "read_clip",
    "run_block",
]
