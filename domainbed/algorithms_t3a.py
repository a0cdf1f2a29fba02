"""Adaptation to unlabeled images of the test environments, without training.

T3A: Iwasawa & Matsuo, 2021, "Test-Time Classifier Adjustment Module for Model-Agnostic
Domain Generalization", https://openreview.net/forum?id=e_yvNqkJKAW

Letters: B images, C classes, K supports of a class, E joint embedding.
"""

import torch

from domainbed.algorithms import register
from domainbed.algorithms_lfa import ZeroShotCLIP, unit
from domainbed.lib.bounds import at_least


@register
class T3A(ZeroShotCLIP):
    """Zero-shot CLIP whose classes move to where their unlabeled images are.

    What zero-shot CLIP takes for a class supports it: the K = `filter_K` embeddings of
    lowest entropy, the class's text among them. The class is the mean of its supports.
    Only --task domain_adaptation shows unlabeled images; without, it is zero-shot CLIP.
    """

    MAX_STEPS = None

    @classmethod
    def hparam_rows(cls, dataset):
        return super().hparam_rows(dataset) | {
            "filter_K": at_least(1, 100, lambda r: r.choice([1, 5, 20, 50, 100]))
        }

    def encode_prompts(self):
        super().encode_prompts()
        texts, K = self.class_embeddings(), self.hparams["filter_K"]
        n_classes, width = texts.shape
        self.register_buffer("supports", texts.new_zeros(n_classes, K, width))
        self.register_buffer("entropies", texts.new_full((n_classes, K), torch.inf))
        self.support(texts)

    @torch.no_grad()
    def support(self, e: torch.Tensor) -> None:
        """Let unit embeddings (B, E) support the classes they are taken for."""
        p = (self.backbone.scale * e @ self.class_embeddings().T).softmax(1)
        labels, entropies = p.argmax(1), torch.special.entr(p).sum(1)
        for c in labels.unique().tolist():
            known = self.entropies[c].isfinite()
            S = torch.cat([self.supports[c][known], e[labels == c]])
            H = torch.cat([self.entropies[c][known], entropies[labels == c]])
            order = H.argsort(stable=True)
            S, H = S[order], H[order]
            # Batches are drawn with replacement; an image counts once.
            first = ~((S @ S.T).tril(-1) > 1 - 1e-5).any(1)
            S, H = S[first][: len(known)], H[first][: len(known)]
            self.supports[c, : len(S)], self.entropies[c, : len(S)] = S, H

    def update(self, minibatches, unlabeled=None):
        if unlabeled:
            z = self.features(torch.cat(unlabeled))
            self.support(unit(z[:, -1] @ self.backbone.image_projection))
        supports = self.entropies.isfinite().sum().item()
        return super().update(minibatches) | {"supports": float(supports)}

    def logits(self, z):
        image = unit(z[:, -1] @ self.backbone.image_projection)  # (B, E)
        means = unit(self.supports.sum(1))  # (C, E); places without a support are 0
        return self.backbone.scale * image @ means.T
