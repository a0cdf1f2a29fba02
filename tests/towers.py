"""What tests of methods on CLIP's towers share: two towers, a method on one of them."""

import functools

import torch
from clip.model import CLIP
from torchvision.transforms import Compose, Normalize

from domainbed import backbones, hparams_registry
from domainbed.algorithms import get_algorithm_class

TOWERS = ("emoji", "uneven")
NAMES = ["dog", "sea_animal", "house"]
IDENTITY = Compose([Normalize([0] * 3, [1] * 3)])


@functools.cache
def uneven_clip():
    """A random CLIP of widths 192 (image), 128 (text), 64 (joint); 4 and 3 blocks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = CLIP(64, 32, 4, 192, 8, 77, 49408, 128, 2, 3)
        for parameter in model.visual.ln_post.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model, IDENTITY


def make(name, monkeypatch=None, tower="emoji", **hparams):
    """The method with its defaults on EmojiDG but for `hparams`, on one of TOWERS."""
    if tower == "uneven":
        monkeypatch.setattr(backbones.clip, "read_clip", lambda name: uneven_clip())
    defaults = hparams_registry.default_hparams(name, "EmojiDG")
    facts = {"class_names": NAMES, "clip_transform": True}
    torch.manual_seed(0)
    algorithm = get_algorithm_class(name)(
        (3, 48, 48), len(NAMES), 3, defaults | facts | hparams
    )
    return algorithm.eval()


def images(algorithm, n=3):
    """n random images of the size that its tower takes."""
    size = algorithm.backbone.resolution
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def sizes(algorithm):
    """D, W, E and the numbers of blocks of the image and the text tower."""
    clip = algorithm.backbone
    width, joint = clip.image_projection.shape
    n_text = len(clip.model.transformer.resblocks)
    return width, len(clip.text_projection), joint, clip.n_image_layers, n_text


def trained(algorithm):
    return {n: p for n, p in algorithm.named_parameters() if p.requires_grad}


def shapes(algorithm):
    return {name: tuple(p.shape) for name, p in trained(algorithm).items()}


@torch.no_grad()
def set_all(algorithm, size=0.1):
    """Move every parameter that trains away from where it starts."""
    torch.manual_seed(2)
    for parameter in trained(algorithm).values():
        parameter.add_(size * torch.randn_like(parameter))
    return algorithm


def zero_shot(algorithm, x):
    """The frozen CLIP's own answer."""
    clip = algorithm.backbone
    return text_head(algorithm, clip.model.encode_image(x))


def text_head(algorithm, e, t=None):
    clip = algorithm.backbone
    if t is None:
        t = clip.model.encode_text(backbones.clip.tokenize(algorithm.prompts))
    e, t = (v / v.norm(dim=-1, keepdim=True) for v in (e, t))
    return clip.scale * e @ t.T


def attention(block, q, kv, keys=None, values=None):
    """A block's attention (B, Q, D), a head and an image at a time."""
    attn = block.attn
    width, heads = attn.embed_dim, attn.num_heads
    (w_q, w_k, w_v), (b_q, b_k, b_v) = (
        t.split(width) for t in (attn.in_proj_weight, attn.in_proj_bias)
    )
    out = torch.empty(*q.shape)
    for b in range(len(q)):
        query, key, value = (
            q[b] @ w_q.T + b_q,
            kv[b] @ w_k.T + b_k,
            kv[b] @ w_v.T + b_v,
        )
        if keys is not None:
            key, value = torch.cat([keys, key]), torch.cat([values, value])
        for h in range(heads):
            of = slice(h * width // heads, (h + 1) * width // heads)
            scores = query[:, of] @ key[:, of].T / (width // heads) ** 0.5
            out[b, :, of] = scores.softmax(-1) @ value[:, of]
    return attn.out_proj(out)


def n_parameters_of_vit_b16(name, monkeypatch, **hparams):
    """What trains on ViT-B/16 and 7 classes; all of it, and only it, is optimised."""
    with torch.device("meta"):
        model = CLIP(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12)
    monkeypatch.setattr(backbones.clip, "read_clip", lambda name: (model, IDENTITY))
    ends = torch.zeros(7, dtype=torch.int, device="meta")
    monkeypatch.setattr(
        backbones.CLIPBackbone,
        "embed_prompts",
        lambda self, prompts: (torch.zeros(7, 9, 512, device="meta"), ends),
    )
    defaults = hparams_registry.default_hparams(name, "PACS")
    facts = {"class_names": list("abcdefg")}
    with torch.device("meta"):
        algorithm = get_algorithm_class(name)(
            (3, 224, 224), 7, 3, defaults | facts | hparams
        )
    own = trained(algorithm).values()
    held = [p for group in algorithm.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in own}
    return sum(p.numel() for p in own)
