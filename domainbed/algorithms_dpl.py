"""DPL: Domain Prompt Learning, Zhang et al., https://arxiv.org/abs/2111.12853

Letters: B images, M training domains, C classes, T tokens, D image width, W text width,
E joint embedding, n domain tokens.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from domainbed.algorithms import register
from domainbed.algorithms_lfa import CLIPAlgorithm, unit
from domainbed.lib.bounds import at_least, between
from domainbed.lib.errors import check_choice
from domainbed.networks import MLP

LOSSES = ("domain", "released")


@torch.no_grad()
def keep_around(algorithm: CLIPAlgorithm, n: int) -> None:
    """Make what stands around n tokens that come first in each prompt: the buffers
    `start` (C, 1, W), `words` (C, T - 1 - n, W) and `eot` (C,), where it ends.
    """
    held = " ".join(["X"] * n)  # one token each, in the place of those to come
    embeddings, eot = algorithm.backbone.embed_prompts(
        [f"{held} {prompt}" for prompt in algorithm.prompts]
    )
    parts = {"start": embeddings[:, :1], "words": embeddings[:, 1 + n :], "eot": eot}
    for name, part in parts.items():
        algorithm.register_buffer(name, part, persistent=False)


@register
class DPLCLIP(CLIPAlgorithm):
    """An MLP turns a domain's images into the first n words of every prompt.

    The MLP maps each image's embedding to n tokens; their mean over a batch of one
    domain stands between the start token and "a photo of a {name}". Only the MLP
    trains, through the frozen text tower.

    An answer depends on the batch it is asked in: `predict` takes the mean over all
    images of x, as the method defines, so x should hold images of one domain. Here
    evaluation batches are fixed: 64 images of one split, in order, the last one
    shorter. Other batches give other accuracies.
    """

    BATCH_MATTERS = True
    RECORDABLE = True

    @classmethod
    def hparam_rows(cls, dataset):
        return super().hparam_rows(dataset) | {
            "prompt": ("a photo of a {name}.", None),
            "num_domain_tokens": at_least(
                1, 16, lambda r: int(r.choice([2, 4, 8, 16]))
            ),
            "mlp_depth": at_least(1, 3),
            "mlp_width": at_least(1, 512, lambda r: int(r.choice([256, 512]))),
            "mlp_dropout": between(0, 1, 0.1, lambda r: r.choice([0.0, 0.1])),
            # domain: each image among its own domain's C prompts, as in the paper.
            # released: among all M C, where the released code takes the first
            # domain's as the right ones.
            "dpl_loss": ("domain", None),
            # Prompts encoded at once. If there are more, each chunk is computed
            # again in the backward pass, so memory holds one at a time.
            "text_chunk": at_least(1, 256),
        }

    def build(self):
        check_choice(self.hparams, "dpl_loss", LOSSES)
        n = self.hparams["num_domain_tokens"]
        width, n_embed = self.backbone.text_projection.shape
        self.network = MLP(n_embed, n * width, self.hparams)
        for parameter in self.network.parameters():
            if parameter.ndim == 2:
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.constant_(parameter, 0.01)

    def encode_prompts(self):
        """What stands around the domain's tokens, which are others at every step."""
        keep_around(self, self.hparams["num_domain_tokens"])

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """CLIP's own embeddings (B, E) of images or their layer features."""
        return self.features(x)[:, -1] @ self.backbone.image_projection

    def domain_tokens(self, e: torch.Tensor) -> torch.Tensor:
        """n tokens (n, W), the mean over one domain's image embeddings (B, E)."""
        n = self.hparams["num_domain_tokens"]
        return self.network(e).mean(0).unflatten(0, (n, -1))

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """Unit embeddings (M, C, E) of every class's prompt after each domain's tokens.

        tokens (M, n, W). All M C prompts in chunks of `text_chunk`.
        """
        n_domains, n_classes = len(tokens), len(self.words)
        prompts = torch.arange(n_domains * n_classes, device=tokens.device)
        chunks = prompts.split(self.hparams["text_chunk"])
        if len(chunks) == 1 or not torch.is_grad_enabled():
            texts = [self.encode_chunk(tokens, chunk) for chunk in chunks]
        else:
            # No dropout in there; a recording on the GPU cannot read a generator.
            options = {"use_reentrant": False, "preserve_rng_state": False}
            texts = [
                checkpoint(self.encode_chunk, tokens, chunk, **options)
                for chunk in chunks
            ]
        return torch.cat(texts).unflatten(0, (n_domains, n_classes))

    def encode_chunk(self, tokens: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """Unit embeddings of those prompts; number m C + c is domain m's of class c."""
        n_classes = len(self.words)
        m, c = prompts // n_classes, prompts % n_classes
        embeddings = torch.cat([self.start[c], tokens[m], self.words[c]], 1)
        t = self.backbone.encode_prompts(embeddings, self.eot[c])
        return unit(t[:, -1] @ self.backbone.text_projection)

    def loss(self, minibatches):
        sizes = [len(y) for _, y in minibatches]
        y = torch.cat([y for _, y in minibatches])
        domains = self.embed(torch.cat([x for x, _ in minibatches])).split(sizes)
        text = self.encode_text(torch.stack([self.domain_tokens(e) for e in domains]))
        if self.hparams["dpl_loss"] == "released":
            text = text.flatten(0, 1).expand(len(text), -1, -1)  # (M, M C, E)
        cosines = [unit(e) @ t.T for e, t in zip(domains, text, strict=True)]
        return F.cross_entropy(self.backbone.scale * torch.cat(cosines), y)

    def predict(self, x):
        e = self.embed(x)
        text = self.encode_text(self.domain_tokens(e)[None])[0]  # (C, E)
        return self.backbone.scale * unit(e) @ text.T
