"""HST: Lin et al., 2023, "Hierarchical Side-Tuning for Vision Transformers",
https://arxiv.org/abs/2310.05393

Letters: B images, C classes, L blocks, M meta tokens of a block, N tokens, D image
width, d a stage's width, h and w the sides of its map.
"""

import copy
import functools
import itertools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import stochastic_depth

from domainbed.algorithms import register
from domainbed.algorithms_adapter import TowerCLIP
from domainbed.backbones import attend
from domainbed.lib.bounds import at_least, between
from domainbed.lib.errors import InputError

STAGES = ((32, 2), (48, 4), (64, 8), (72, 12))  # width and heads


class SideBlock(nn.Module):
    """A block of the side network on its tokens y (B, h w, d).

    They ask kv (B, M + 1, d) and gain v (B, h w, d); `skip` drops whole branches.
    """

    def __init__(self, d: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.norm_1, self.norm_2 = (nn.LayerNorm(d, eps=1e-6) for _ in range(2))
        self.q, self.k, self.v, self.proj = (nn.Linear(d, d) for _ in range(4))
        self.fc_1, self.fc_2 = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(
        self,
        y: torch.Tensor,
        kv: torch.Tensor,
        v: torch.Tensor,
        skip: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        heads = (
            t.unflatten(2, (self.n_heads, -1)).transpose(1, 2)
            for t in (self.q(self.norm_1(y)), self.k(kv), self.v(kv))
        )
        pooled = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        y = y + skip(self.proj(pooled)) + v
        return y + skip(self.fc_2(F.gelu(self.fc_1(self.norm_2(y)))))


def initialize(module: nn.Module) -> None:
    """Linear layers within N(0, 0.02), convolutions by their fan-out, biases at 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


@register
class HST(TowerCLIP):
    """A pyramid of four stages beside the tower, a block for each of the tower's.

    Every block of the tower also reads M tokens that train, with norms that train. The
    side network starts from the image; its block asks what the tower's made of these
    tokens, and gains the tower's map. A classifier reads the last stage's mean.
    Gradients pass through the whole tower. Batch norm lets the images of a training
    step act on each other. Images come augmented unless `clip_transform` is true.
    """

    FIXED_CLASSES = True

    @classmethod
    def hparam_rows(cls, dataset):
        return super().hparam_rows(dataset) | {
            "clip_transform": (False, None),
            "hst_tokens": at_least(0, 1, lambda r: r.choice([1, 4])),
            "drop_path": between(0, 1, 0.1, lambda r: r.choice([0.0, 0.1])),
            "lr": at_least(0, 1e-3, lambda r: r.choice([1e-3, 5e-3, 1e-2])),
            "weight_decay": at_least(0, 5e-4, lambda r: r.choice([5e-5, 5e-4, 5e-2])),
        }

    def build(self):
        n_layers, width, n_tokens = len(self.blocks), self.width, self.n_tokens
        if n_layers % len(STAGES):
            raise InputError(
                f"HST has four stages of equally many blocks; the tower of "
                f"clip_backbone has {n_layers}, which 4 does not divide. Those of "
                "ViT-B/16 (12), ViT-L/14 (24) and emoji (8) fit."
            )
        bound = (6 / ((n_tokens + 1) * width)) ** 0.5
        tokens = torch.empty(n_layers, n_tokens, width).uniform_(-bound, bound)
        self.tokens = nn.Parameter(tokens)
        self.ln_1, self.ln_2 = (
            nn.ModuleList(copy.deepcopy(norm).requires_grad_() for norm in norms)
            for norms in zip(*((b.ln_1, b.ln_2) for b in self.blocks), strict=True)
        )
        widths = [d for d, _ in STAGES]
        first, last = widths[0], widths[-1]
        self.stem = nn.Sequential(
            nn.Conv2d(3, first, 3, 2, 1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            nn.Conv2d(first, first, 2, 2),
        )
        self.shrink = nn.ModuleList(
            nn.Conv2d(d, wider, 3, 2, 1) for d, wider in itertools.pairwise(widths)
        )
        self.patch_norm = nn.ModuleList(nn.LayerNorm(d) for d in widths)
        self.stage_norm = nn.ModuleList(nn.LayerNorm(d, eps=1e-6) for d in widths)
        self.bridge = nn.ModuleList(nn.Linear(width, d) for d in widths)
        of_blocks = [stage for stage in STAGES for _ in range(self.n_blocks)]
        self.token_norm = nn.ModuleList(nn.LayerNorm(d) for d, _ in of_blocks)
        self.side = nn.ModuleList(SideBlock(d, heads) for d, heads in of_blocks)
        self.batch_norm = nn.BatchNorm1d(last, eps=1e-6, affine=False)
        self.classifier = nn.Linear(last, self.num_classes)
        for part in (self.stem, self.shrink, self.bridge, self.side, self.classifier):
            part.apply(initialize)

    @property
    def n_tokens(self) -> int:
        """M."""
        return self.hparams["hst_tokens"]

    @property
    def n_blocks(self) -> int:
        """Of a stage."""
        return len(self.blocks) // len(STAGES)

    def skip(self, i: int, branch: torch.Tensor) -> torch.Tensor:
        """Block number i's branch; of an image it drops out more often the later."""
        rate = self.hparams["drop_path"] * i / (len(self.blocks) - 1)
        return stochastic_depth(branch, rate, "row", self.training)

    def read(self, x: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Of every block: its own tokens' output (B, M, D), the map (B, D, h, w)."""
        x = self.backbone.embed_image(x)
        side = round((x.shape[1] - 1) ** 0.5)
        for i, block in enumerate(self.blocks):
            t = torch.cat([self.tokens[i].expand(len(x), -1, -1), x], 1)
            n = self.ln_1[i](t)
            t = t + self.skip(i, attend(block, n, n))
            t = t + self.skip(i, block.mlp(self.ln_2[i](t)))
            x = t[:, self.n_tokens :]
            yield t[:, : self.n_tokens], x[:, 1:].mT.unflatten(2, (side, side))

    def features(self, x):
        """The mean (B, 72) of the last stage's tokens."""
        if self.training and len(x) < 2:
            raise InputError("HST has batch norm and trains on 2 images or more.")
        y = x = self.images(x)
        of_blocks = enumerate(self.read(x))
        for s, patch_norm in enumerate(self.patch_norm):
            y = self.shrink[s - 1](y) if s else self.stem(y)
            size = y.shape[2:]
            y = patch_norm(y.flatten(2).mT)  # (B, h w, d)
            for _ in range(self.n_blocks):
                i, (meta, grid) = next(of_blocks)
                grid = F.interpolate(grid, size, mode="bilinear")
                v = self.bridge[s](grid.flatten(2).mT)
                meta = self.token_norm[i](self.bridge[s](meta))
                kv = torch.cat([meta, v.mean(1, keepdim=True)], 1)
                y = self.side[i](y, kv, v, functools.partial(self.skip, i))
            y = self.stage_norm[s](y).mT.unflatten(2, size)
        return y.mean((2, 3))

    def logits(self, y):
        return self.classifier(self.batch_norm(y))
