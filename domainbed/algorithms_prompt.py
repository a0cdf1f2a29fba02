"""CLIP-Adapter and CoOp: a bottleneck behind the image, words before the class's name.

CLIP-Adapter: Gao et al., 2021, https://arxiv.org/abs/2110.04544
CoOp: Zhou et al., 2022, https://arxiv.org/abs/2109.01134

Letters: B images, C classes, N tokens, W text width, E joint embedding, n context
tokens.
"""

import torch
from torch import nn

from domainbed.algorithms import register
from domainbed.algorithms_dpl import keep_around
from domainbed.algorithms_lfa import CLIPAlgorithm, prompts_of, unit
from domainbed.lib.bounds import at_least, between


def uniform(n_in: int, n_out: int) -> nn.Parameter:
    """A weight (in, out) that starts as nn.Linear's does."""
    bound = n_in**-0.5
    return nn.Parameter(torch.empty(n_in, n_out).uniform_(-bound, bound))


@register
class CLIPAdapter(CLIPAlgorithm):
    """Zero-shot CLIP whose image embedding e is mixed with a bottleneck's answer.

    e' = a relu(relu(e down) up) + (1 - a) e, of e as it is, not of unit length. The
    second relu is the released code's; the paper's formula has none. down (E, E / 4),
    up (E / 4, E): E E / 2 parameters.
    """

    @classmethod
    def hparam_rows(cls, dataset):
        ratios = [0.1, 0.2, 0.4, 0.6, 0.8]
        return super().hparam_rows(dataset) | {
            "adapter_ratio": between(0, 1, 0.2, lambda r: r.choice(ratios)),
            "adapter_reduction": (4, None),
            "lr": at_least(0, 3.5e-3, lambda r: 10 ** r.uniform(-4, -2)),
        }

    @classmethod
    def few_shot_rows(cls, dataset, shots):
        return super().few_shot_rows(dataset, shots) | {
            "lr": at_least(0, 3.5e-3, lambda r: 10 ** r.uniform(-4, -2)),
            "batch_size": at_least(1, 4),
            "epochs": at_least(1, 40),
        }

    def build(self):
        width = self.backbone.image_projection.shape[1]
        narrow = width // self.hparams["adapter_reduction"]
        self.down, self.up = uniform(width, narrow), uniform(narrow, width)

    def adapt(self, e: torch.Tensor) -> torch.Tensor:
        """e' (B, E)."""
        a = self.hparams["adapter_ratio"]
        return a * ((e @ self.down).relu() @ self.up).relu() + (1 - a) * e

    def logits(self, z):
        image = unit(self.adapt(z[:, -1] @ self.backbone.image_projection))
        text = unit(self.text_features[:, -1] @ self.backbone.text_projection)
        return self.backbone.scale * image @ text.T


@register
class CoOp(CLIPAlgorithm):
    """n learned tokens before the class's name, through the frozen text tower.

    A prompt is [start][context]["name."][end]. `context` (n, W), or with
    `context_by_class` (C, n, W), starts at random or, with `context_words`, as these
    words, which then say how many tokens it has. `prompt` is not asked.
    """

    @classmethod
    def hparam_rows(cls, dataset):
        return super().hparam_rows(dataset) | {
            "prompt": ("{name}.", None),
            "context_length": at_least(1, 16, lambda r: int(r.choice([4, 8, 16]))),
            "context_words": ("", None),
            "context_by_class": (False, None),
            "lr": at_least(0, 2e-3, lambda r: 10 ** r.uniform(-4, -2)),
            "momentum": between(0, 1, 0.9),
        }

    @classmethod
    def few_shot_rows(cls, dataset, shots):
        epochs = 50 if shots == 1 or dataset == "ImageNet" else 100
        return super().few_shot_rows(dataset, shots) | {
            "prompt": ("{name}.", None),
            "momentum": between(0, 1, 0.9),
            "batch_size": at_least(1, 32),
            "epochs": at_least(1, 200 if shots >= 8 and epochs == 100 else epochs),
        }

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        self.FIXED_CLASSES = hparams.get("context_by_class", False)
        super().__init__(input_shape, num_classes, num_domains, hparams)

    def write_prompts(self, class_names, template):
        return prompts_of("{name}.", class_names)

    def build(self):
        if self.hparams["context_words"]:
            with torch.no_grad():
                start = self.backbone.embed_prompts([self.hparams["context_words"]])
            start = start[0][0, 1:-1]
        else:
            start = 0.02 * torch.randn(self.n_tokens(), self.words.shape[-1])
        if self.FIXED_CLASSES:
            start = start.expand(self.num_classes, -1, -1)
        self.context = nn.Parameter(start.clone())

    def n_tokens(self) -> int:
        """n."""
        if not self.hparams["context_words"]:
            return self.hparams["context_length"]
        _, eot = self.backbone.embed_prompts([self.hparams["context_words"]])
        return int(eot) - 1

    def encode_prompts(self):
        """What stands around the context, which changes at every step."""
        keep_around(self, self.n_tokens())

    def text_layers(self) -> torch.Tensor:
        """t (C, L, W) of the prompts with the context as it is."""
        context = self.context.expand(self.num_classes, -1, -1)
        embeddings = torch.cat([self.start, context, self.words], 1)
        return self.backbone.encode_prompts(embeddings, self.eot)

    def logits(self, z):
        image = unit(z[:, -1] @ self.backbone.image_projection)
        text = unit(self.text_layers()[:, -1] @ self.backbone.text_projection)
        return self.backbone.scale * image @ text.T
