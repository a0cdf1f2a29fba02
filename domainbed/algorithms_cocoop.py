"""CoCoOp: words before the class's name that move with the image.
Zhou et al., 2022, https://arxiv.org/abs/2203.05557

Letters: B images, C classes, N tokens, W text width, E joint embedding, n context
tokens.
"""

from collections import OrderedDict

import torch
from torch import nn

from domainbed.algorithms import register
from domainbed.algorithms_dpl import DPLCLIP
from domainbed.algorithms_lfa import unit
from domainbed.algorithms_prompt import CoOp
from domainbed.lib.bounds import at_least


@register
class CoCoOp(CoOp):
    """CoOp whose tokens the image moves: v_i + g(f), of its unit embedding f (E,).

    g is `meta_net`, E -> E / 16 -> W with a ReLU between; `context` (n, W) starts as
    the words "a photo of a". An image has C prompts of its own, so that a batch passes
    B C of them through the text tower: the released batch is 1.
    """

    encode_text, encode_chunk = DPLCLIP.encode_text, DPLCLIP.encode_chunk

    @classmethod
    def hparam_rows(cls, dataset):
        rows = super().hparam_rows(dataset)
        del rows["context_by_class"]
        return rows | {
            "context_words": ("a photo of a", None),
            "batch_size": at_least(1, 1),
            # Prompts encoded at once; of more, each chunk anew in the backward pass.
            "text_chunk": at_least(1, 256),
        }

    @classmethod
    def few_shot_rows(cls, dataset, shots):
        own = {"batch_size": at_least(1, 1), "epochs": at_least(1, 10)}
        return super().few_shot_rows(dataset, shots) | own

    def build(self):
        super().build()
        n_embed, width = self.backbone.image_projection.shape[1], self.words.shape[-1]
        narrow = n_embed // 16
        layers = {
            "linear1": nn.Linear(n_embed, narrow),
            "relu": nn.ReLU(),
            "linear2": nn.Linear(narrow, width),
        }
        self.meta_net = nn.Sequential(OrderedDict(layers))

    def contexts(self, f: torch.Tensor) -> torch.Tensor:
        """Each image's tokens (B, n, W)."""
        return self.context + self.meta_net(f)[:, None]

    def logits(self, z):
        f = unit(z[:, -1] @ self.backbone.image_projection)  # (B, E)
        text = self.encode_text(self.contexts(f))  # (B, C, E)
        return self.backbone.scale * torch.einsum("be,bce->bc", f, text)
