"""MaPLe: prompts learned in both of CLIP's towers, the image's made from the text's.
Khattak et al., 2022, https://arxiv.org/abs/2210.03117

Letters: B images, C classes, L layers, N tokens, D image width, W text width, E joint
embedding, n prompt tokens, J blocks that get prompts of their own.
"""

import torch
from torch import nn

from domainbed.algorithms import register
from domainbed.algorithms_lfa import CLIPAlgorithm, prompts_of, unit
from domainbed.backbones import default_clip, run_block
from domainbed.lib.bounds import at_least, between
from domainbed.lib.errors import InputError

WORDS = "a photo of a"  # stand before every class's name; the first n are learned


@register
class MaPLe(CLIPAlgorithm):
    """n learned tokens in the first J blocks of the text tower, and, through a linear
    coupling each, in those of the image tower. Zero-shot CLIP answers.

    A prompt is [start][context]["of a name."][end]. Before text block j = 1 .. J - 1
    `deep_prompts[j - 1]` takes the context's places; in the image tower the coupled
    ones stand behind the patches. `context` (n, W), `deep_prompts` (J - 1, n, W),
    `couple_weight` (J, W, D), `couple_bias` (J, D). Both towers are passed through.
    """

    TAKES_FEATURES = False

    @classmethod
    def hparam_rows(cls, dataset):
        rows = super().hparam_rows(dataset)
        del rows["feature_dtype"]
        depth = 3 if default_clip(dataset) == "emoji" else 9  # its text has 4 blocks
        return rows | {
            "prompt": (WORDS + " {name}.", None),
            "context_length": at_least(1, 2),
            "prompt_depth": at_least(1, depth),
            "lr": at_least(0, 3.5e-3, lambda r: 10 ** r.uniform(-4, -2)),
            "momentum": between(0, 1, 0.9),
        }

    @classmethod
    def few_shot_rows(cls, dataset, shots):
        return super().few_shot_rows(dataset, shots) | {
            "prompt": (WORDS + " {name}.", None),
            "lr": at_least(0, 3.5e-3, lambda r: 10 ** r.uniform(-4, -2)),
            "momentum": between(0, 1, 0.9),
            "batch_size": at_least(1, 4),
            "epochs": at_least(1, 5),
        }

    def write_prompts(self, class_names, template):
        return prompts_of(WORDS + " {name}.", class_names)

    def encode_prompts(self):
        """The prompts' words; the context changes at every step."""
        with torch.no_grad():
            embeddings, eot = self.backbone.embed_prompts(self.prompts)
        self.register_buffer("words", embeddings, persistent=False)  # (C, N, W)
        self.register_buffer("eot", eot, persistent=False)

    def build(self):
        n, depth = self.hparams["context_length"], self.hparams["prompt_depth"]
        model = self.backbone.model
        blocks = model.transformer.resblocks, model.visual.transformer.resblocks
        most, n_words = min(map(len, blocks)), len(WORDS.split())
        if not 1 <= depth <= most:
            raise InputError(
                f"hyperparameter prompt_depth is {depth}; these towers have from 1 to "
                f"{most} blocks to prompt."
            )
        if not 1 <= n <= n_words:
            raise InputError(
                f"hyperparameter context_length is {n}; the context are the first 1 to "
                f"{n_words} words of {WORDS!r}."
            )
        width = self.words.shape[-1]
        self.context = nn.Parameter(self.words[0, 1 : 1 + n].clone())
        self.deep_prompts = nn.Parameter(0.02 * torch.randn(depth - 1, n, width))
        image_width = len(self.backbone.image_projection)
        first, deep = nn.Linear(width, image_width), nn.Linear(width, image_width)
        couplings = [first] + [deep] * (depth - 1)  # the deep ones start alike
        self.couple_weight = nn.Parameter(torch.stack([c.weight.T for c in couplings]))
        self.couple_bias = nn.Parameter(torch.stack([c.bias for c in couplings]))

    def prompts_at(self, j: int) -> torch.Tensor:
        """Block j's prompts (n, W) of the text tower."""
        return self.deep_prompts[j - 1] if j else self.context

    def coupled(self, j: int) -> torch.Tensor:
        """Block j's prompts (n, D) of the image tower."""
        return self.prompts_at(j) @ self.couple_weight[j] + self.couple_bias[j]

    def features(self, x):
        """z (B, L, D): the class token after every prompted block, through ln_post."""
        visual, n = self.backbone.model.visual, len(self.context)
        tokens = self.backbone.embed_image(self.images(x))
        first = visual.ln_pre(self.coupled(0)).expand(len(tokens), -1, -1)
        tokens, layers = torch.cat([tokens, first], 1), []
        for j, block in enumerate(visual.transformer.resblocks):
            if 0 < j < len(self.couple_weight):
                deep = self.coupled(j).expand(len(tokens), -1, -1)
                tokens = torch.cat([tokens[:, :-n], deep], 1)
            tokens = run_block(block, tokens)
            layers.append(tokens[:, 0])
        return visual.ln_post(torch.stack(layers, 1))

    def text_layers(self) -> torch.Tensor:
        """t (C, L, W): the end token after every prompted block, through ln_final."""
        model, n = self.backbone.model, len(self.context)
        context = self.context.expand(len(self.words), -1, -1)
        tokens = torch.cat([self.words[:, :1], context, self.words[:, 1 + n :]], 1)
        tokens = tokens + model.positional_embedding[: tokens.shape[1]]
        row, layers = torch.arange(len(tokens), device=tokens.device), []
        for j, block in enumerate(model.transformer.resblocks):
            if 0 < j < len(self.couple_weight):
                deep = self.prompts_at(j).expand(len(tokens), -1, -1)
                tokens = torch.cat([tokens[:, :1], deep, tokens[:, 1 + n :]], 1)
            tokens = run_block(block, tokens)
            layers.append(tokens[row, self.eot])
        return model.ln_final(torch.stack(layers, 1))

    def logits(self, z):
        image = unit(z[:, -1] @ self.backbone.image_projection)
        text = unit(self.text_layers()[:, -1] @ self.backbone.text_projection)
        return self.backbone.scale * image @ text.T
