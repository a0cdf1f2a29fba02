"""Methods that train a classifier on CLIP's image tower, or the tower itself.

MIRO: Cha et al., 2022, "Domain Generalization by Mutual-Information Regularization with
Pre-trained Models", https://arxiv.org/abs/2203.10789

Letters: B images, C classes, L layers, T tokens, D image width, E joint embedding.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from domainbed.algorithms import all_of, register
from domainbed.algorithms_lfa import CLIPAlgorithm, unit
from domainbed.backbones import image_blocks
from domainbed.lib.bounds import at_least


class ClassifierCLIP(CLIPAlgorithm):
    """A classifier on image embeddings, trained with Adam as DomainBed's ERM is."""

    FIXED_CLASSES = True

    @classmethod
    def hparam_rows(cls, dataset):
        rows = super().hparam_rows(dataset)
        del rows["momentum"]  # SGD's
        return rows | {
            "weight_decay": at_least(0, 0.0, lambda r: 10 ** r.uniform(-6, -2))
        }

    @classmethod
    def few_shot_rows(cls, dataset, shots):
        rows = super().few_shot_rows(dataset, shots)
        del rows["momentum"]
        return rows

    def build(self):
        width = self.backbone.image_projection.shape[1]
        self.classifier = nn.Linear(width, self.num_classes)

    @torch.no_grad()
    def start_at_texts(self) -> None:
        """Let the classifier answer unit embeddings as zero-shot CLIP does."""
        text = unit(self.text_features[:, -1] @ self.backbone.text_projection)  # (C, E)
        self.classifier.weight.copy_(self.backbone.scale * text)
        self.classifier.bias.zero_()

    def make_optimizer(self, parameters):
        decay = self.hparams["weight_decay"]
        return torch.optim.Adam(parameters, self.hparams["lr"], weight_decay=decay)


@register
class LinearERM(ClassifierCLIP):
    """A linear classifier on the frozen tower's embedding: E C + C parameters."""

    READS_TEXTS = False

    def logits(self, z):
        return self.classifier(z[:, -1] @ self.backbone.image_projection)


class TrainedTower(ClassifierCLIP):
    """A classifier on a copy of CLIP's image tower that trains with it.

    Images come as DomainBed gives them, augmented; `clip_transform` true gives CLIP's
    own transform, without augmentation. What a frozen tower has stored is of no use.
    """

    TAKES_FEATURES = False

    @classmethod
    def hparam_rows(cls, dataset):
        rows = super().hparam_rows(dataset)
        del rows["feature_dtype"]
        return rows | {
            "clip_transform": (False, None),
            "lr": at_least(0, 5e-6, lambda r: 10 ** r.uniform(-6, -4.5)),
        }

    def build(self):
        super().build()
        self.tower = copy.deepcopy(self.backbone.model.visual).requires_grad_()

    def features(self, x):
        """Embeddings (B, E), with gradients into the tower."""
        return self.tower(self.images(x))

    def logits(self, e):
        return self.classifier(e)


@register
class FineTuneCLIP(TrainedTower):
    """ERM on the whole image tower; its classifier of unit embeddings starts at the
    texts, so that it starts at zero-shot CLIP's answers.
    """

    ALIASES = ("FINETUNING",)

    def build(self):
        super().build()
        self.start_at_texts()

    def logits(self, e):
        return super().logits(unit(e))


@register
class MIRO(TrainedTower):
    """Fine-tuning held near the pre-trained tower: MIRO with identity mean encoders.

    At the patches and after every quarter of the blocks, features f of the trained
    tower may leave those of the frozen one, f0, at a price of
    mean((f - f0)^2 / var + log var) / 2; var has a parameter per channel. The prices'
    sum, times `miro_ld`, is added to the cross-entropy.
    """

    @classmethod
    def hparam_rows(cls, dataset):
        return super().hparam_rows(dataset) | {
            "lr": at_least(0, 3e-5, lambda r: 10 ** r.uniform(-5.5, -4.5)),
            "miro_ld": at_least(0, 1.0, lambda r: r.choice([0.01, 0.1, 1.0])),
        }

    def build(self):
        super().build()
        width, start = self.tower.conv1.out_channels, 0.1
        raw = math.log(math.expm1(start - 1e-5))  # softplus(raw) + 1e-5 = start
        self.variances = nn.ParameterList(
            nn.Parameter(torch.full((width,), raw)) for _ in range(5)
        )

    def make_optimizer(self, parameters):
        optimizer = super().make_optimizer(
            [*self.tower.parameters(), *self.classifier.parameters()]
        )
        faster = {
            "params": [*self.variances.parameters()],
            "lr": 10 * self.hparams["lr"],
        }
        optimizer.add_param_group(faster)
        return optimizer

    def taps(self, visual: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
        """Features (..., D): the patches, and the tokens after each quarter of blocks.

        The last are those that make the embedding.
        """
        patches = visual.conv1(x)
        blocks = [*image_blocks(visual, patches)]
        depths = [math.ceil(len(blocks) * i / 4) for i in (1, 2, 3, 4)]
        quarters = [blocks[depth - 1] for depth in depths]
        return [patches.movedim(1, -1), *quarters]

    def regularizer(
        self, taps: list[torch.Tensor], frozen: list[torch.Tensor]
    ) -> torch.Tensor:
        """The price of leaving f0, summed over taps."""
        total = torch.zeros((), device=taps[0].device)
        for f, f0, raw in zip(taps, frozen, self.variances, strict=True):
            var = F.softplus(raw) + 1e-5
            total = total + ((f - f0) ** 2 / var + var.log()).mean() / 2
        return total

    def loss(self, minibatches):
        x, y = all_of(minibatches)
        x = self.images(x)
        taps = self.taps(self.tower, x)
        with torch.no_grad():
            frozen = self.taps(self.backbone.model.visual, x)
        e = self.tower.ln_post(taps[-1][0]) @ self.tower.proj
        price = self.regularizer(taps, frozen)
        return F.cross_entropy(self.logits(e), y) + self.hparams["miro_ld"] * price
