"""BatchFormer: Hou et al., 2022, "BatchFormer: Learning to Explore Sample Relationships
for Robust Representation Learning", https://arxiv.org/abs/2203.01522

Letters: B images, C classes, D image width, E joint embedding.
"""

import torch
import torch.nn.functional as F
from torch import nn

from domainbed.algorithms import all_of, register
from domainbed.algorithms_finetune import ClassifierCLIP
from domainbed.algorithms_lfa import unit
from domainbed.lib.bounds import at_least, between
from domainbed.lib.errors import divided


@register
class BatchFormerCLIP(ClassifierCLIP):
    """In training a transformer layer lets the images of a batch act on each other.

    CLIP's projection and a classifier that starts at the texts train on unit
    embeddings, once as they are and once as `mixer` makes them of the whole batch:
    D E + E C + C + 6 E^2 + 10 E parameters. `predict` has no use for the mixer; it
    starts at zero-shot CLIP.
    """

    @classmethod
    def hparam_rows(cls, dataset):
        return super().hparam_rows(dataset) | {
            "bf_heads": (4, None),
            "bf_dropout": between(0, 1, 0.5, lambda r: r.choice([0.1, 0.5])),
            "bf_lr_scale": at_least(
                0, 1.0, lambda r: r.choice([0.1, 1.0])
            ),  # of the mixer
            "lr": at_least(0, 1e-4, lambda r: 10 ** r.uniform(-6, -4.5)),
        }

    def build(self):
        super().build()
        self.start_at_texts()
        self.projection = nn.Parameter(self.backbone.image_projection.clone())
        n_embed, n_heads = self.projection.shape[1], self.hparams["bf_heads"]
        divided(n_embed, self.hparams, "bf_heads")
        self.mixer = nn.TransformerEncoderLayer(
            n_embed, n_heads, n_embed, self.hparams["bf_dropout"]
        )

    def make_optimizer(self, parameters):
        rate = self.hparams["bf_lr_scale"] * self.hparams["lr"]
        own = [self.projection, *self.classifier.parameters()]
        mixer = {"params": [*self.mixer.parameters()], "lr": rate}
        return super().make_optimizer([{"params": own}, mixer])

    def embed(self, z: torch.Tensor) -> torch.Tensor:
        """Unit embeddings (B, E) of layer features z (B, L, D)."""
        return unit(z[:, -1] @ self.projection)

    def logits(self, z):
        return self.classifier(self.embed(z))

    def loss(self, minibatches):
        x, y = all_of(minibatches)
        e = self.embed(self.features(x))
        mixed = unit(self.mixer(e))  # the batch is one sequence of B embeddings
        logits = self.classifier(torch.cat([e, mixed]))
        return F.cross_entropy(logits, torch.cat([y, y]))
