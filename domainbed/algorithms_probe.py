"""Methods that read a frozen CLIP's earlier layers and train a linear classifier.

Head2Toe: Evci et al., 2022, "Head2Toe: Utilizing Intermediate Representations for
Better Transfer Learning", https://arxiv.org/abs/2201.03529
VQT: Tu et al., 2023, "Visual Query Tuning: Towards Effective Usage of Intermediate
Representations", https://arxiv.org/abs/2212.03220

Letters: B images, C classes, L blocks, N tokens, D image width, E joint embedding,
J taps, K features kept, T query tokens.
"""

import copy
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from domainbed.algorithms import register
from domainbed.algorithms_finetune import ClassifierCLIP
from domainbed.algorithms_lfa import unit
from domainbed.backbones import (
    Kind,
    VisionTransformer,
    attend,
    default_clip,
    embed_patches,
)
from domainbed.lib.bounds import at_least, between
from domainbed.lib.errors import InputError


def glorot_linear(n_in: int, n_out: int) -> nn.Linear:
    """A linear layer with Glorot-uniform weight and zero bias."""
    linear = nn.Linear(n_in, n_out)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class ProbeCLIP(ClassifierCLIP):
    """A linear classifier with Head2Toe's and VQT's search space."""

    READS_TEXTS = False

    @classmethod
    def hparam_rows(cls, dataset):
        return super().hparam_rows(dataset) | {
            "lr": at_least(0, 1e-2, lambda r: 10 ** r.uniform(-3, -1)),
            "weight_decay": at_least(0, 0.0),
        }

    @classmethod
    def few_shot_rows(cls, dataset, shots):
        rows = super().few_shot_rows(dataset, shots)
        return {name: rows[name] for name in ("batch_size", "epochs", "schedule")}


@register
class Head2ToeLinear(ProbeCLIP):
    """Head2Toe's baseline, linear on unit embeddings: E C + C parameters."""

    ALIASES = ("LINEAR",)
    RECORDABLE = True

    def build(self):
        self.classifier = glorot_linear(
            self.backbone.image_projection.shape[1], self.num_classes
        )

    def logits(self, z):
        return self.classifier(unit(z[:, -1] @ self.backbone.image_projection))


OF_A_BLOCK = ("ln_1", "attention", "hidden", "mlp")


def taps(visual: VisionTransformer, x: torch.Tensor) -> Iterator[torch.Tensor]:
    """What is tapped on images' way through the tower, (B, N, width) or (B, width).

    The tokens x_0; of each block what OF_A_BLOCK names: ln_1's output, the attention's
    and the MLP's as they are added to the tokens, and between its two layers the
    hidden one's, after its QuickGELU (4 D wide); the last class token through ln_post;
    the embedding.
    """
    tokens = embed_patches(visual, visual.conv1(x))
    yield tokens
    for block in visual.transformer.resblocks:
        normed = block.ln_1(tokens)
        yield normed
        attended = attend(block, normed, normed)
        yield attended
        tokens = tokens + attended
        hidden = block.mlp[:-1](block.ln_2(tokens))
        yield hidden
        added = block.mlp[-1](hidden)
        yield added
        tokens = tokens + added
    last = visual.ln_post(tokens[:, 0])
    yield last
    yield last @ visual.proj


def pool(tap: torch.Tensor, target: int) -> torch.Tensor:
    """A tap (B, N, width) as a vector of about `target` numbers; (B, width) as it is.

    A tap of that width is its tokens' mean. A narrower one is the means of windows of
    int(N width / target) tokens, one after another; tokens that fill no window drop
    out, and the finest window is a token.
    """
    if tap.ndim == 2:
        return tap
    n, width = tap.shape[1:]
    if width >= target:
        return tap.mean(1)
    window = max(1, int(n / (target / width)))
    whole = tap[:, : n // window * window].unflatten(1, (-1, window))
    return whole.mean(2).flatten(1)


@register
class Head2Toe(ProbeCLIP):
    """A linear classifier on the few features that matter, of all layers' taps.

    For `h2t_select_steps` updates `probe` learns from all features, each tap's a unit
    vector, and pays `h2t_lasso` |w_i| for the weights w_i of feature i (group
    lasso). Then the share `h2t_frac` of largest |w_i| is `kept`, and
    `classifier` learns from these alone, each tap's a unit vector again; what ends
    before answers with `probe`. Of few shots, where `h2t_select_steps` is None, it is
    half of all updates.
    `h2t_target` is about how many features a tap gives; 0 means D, a tap's mean over
    tokens. With `h2t_finetune` a copy of the image tower trains with `classifier`:
    Head2Toe-FT.
    """

    SELECT_STEPS = (("Debug", 2), ("Emoji", 100), ("", 1000))  # a fifth of all or so

    @classmethod
    def hparam_rows(cls, dataset):
        n = next(n for start, n in cls.SELECT_STEPS if dataset.startswith(start))
        width = 128 if default_clip(dataset) == "emoji" else 768
        return super().hparam_rows(dataset) | {
            "h2t_target": at_least(
                0, 0, lambda r: r.choice([0, 4 * width, 20 * width])
            ),
            "h2t_frac": between(
                0,
                1,
                0.01,
                lambda r: r.choice([0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2]),
            ),
            "h2t_lasso": at_least(0, 1e-4, lambda r: 10 ** r.uniform(-6, -3)),
            "h2t_select_steps": at_least(0, n, lambda r: r.choice([n // 2, n, 2 * n])),
            "h2t_finetune": (False, None),
            "h2t_tower_lr": at_least(0, 5e-5, lambda r: 10 ** r.uniform(-5.5, -4)),
        }

    @classmethod
    def few_shot_rows(cls, dataset, shots):
        return super().few_shot_rows(dataset, shots) | {
            "batch_size": at_least(1, 128),
            "epochs": at_least(1, 143),  # VTAB-1k's 7 batches: the release's 2 x 500
            "schedule": ("constant", None),  # it would fall before the second head
            "h2t_select_steps": at_least(0, None),
        }

    def build(self):
        visual, size = self.backbone.model.visual, self.backbone.resolution
        self.target = self.hparams["h2t_target"] or len(visual.ln_post.weight)
        with torch.no_grad():
            blank = taps(visual, torch.zeros(1, 3, size, size))
            self.widths = [pool(tap, self.target).shape[1] for tap in blank]  # J
        n_features, frac = sum(self.widths), self.hparams["h2t_frac"]
        n_kept = int(frac * n_features)
        if not 1 <= n_kept <= n_features:
            raise InputError(
                f"h2t_frac is {frac}, which keeps {n_kept} of {n_features} features; "
                "it must keep from one of them to all."
            )
        self.probe = glorot_linear(n_features, self.num_classes)
        self.classifier = glorot_linear(n_kept, self.num_classes)
        self.register_buffer("kept", torch.full((n_kept,), -1))
        self.register_buffer("updates", torch.tensor(0))
        if self.hparams["h2t_finetune"]:
            self.TAKES_FEATURES = False
            self.tower = copy.deepcopy(visual).requires_grad_()

    def make_optimizer(self, parameters):
        """Adam of both stages: a head or tower without gradient is skipped."""
        if not self.hparams["h2t_finetune"]:
            return super().make_optimizer(parameters)
        tower = {"params": [*self.tower.parameters()]}
        tower["lr"] = self.hparams["h2t_tower_lr"]
        heads = [*self.probe.parameters(), *self.classifier.parameters()]
        optimizer = super().make_optimizer(heads)
        optimizer.add_param_group(tower)
        return optimizer

    @property
    def selected(self) -> bool:
        """Whether the features to keep are chosen."""
        return bool(self.kept[0] >= 0)

    @property
    def stored_kind(self):
        return Kind(f"taps {self.target}", self.tap)

    def tap(self, x: torch.Tensor) -> torch.Tensor:
        """All pooled taps (B, sum of widths) of CLIP's images, not normalised."""
        trained = self.selected and self.hparams["h2t_finetune"]
        visual = self.tower if trained else self.backbone.model.visual
        return torch.cat([pool(tap, self.target) for tap in taps(visual, x)], 1)

    def logits(self, g):
        if not self.selected:
            return self.probe(self.normalize(g, self.widths))
        return self.classifier(self.normalize(g[:, self.kept], self.kept_of_taps()))

    @staticmethod
    def normalize(g: torch.Tensor, widths: list[int]) -> torch.Tensor:
        """Features (B, sum of widths), those of each tap as a unit vector."""
        return torch.cat([unit(of_tap) for of_tap in g.split(widths, 1)], 1)

    def kept_of_taps(self) -> list[int]:
        """How many features of each tap are kept, (J,); they stand in order."""
        ends = torch.tensor(self.widths, device=self.kept.device).cumsum(0)
        owner = torch.bucketize(self.kept, ends, right=True)
        return owner.bincount(minlength=len(ends)).tolist()

    def layers_used(self) -> dict[str, torch.Tensor]:
        """The shares of the layers 0 to L in the kept features, by kind of tap.

        Before there are any, in the weights' norms.
        """
        if self.selected:
            counts = torch.tensor(self.kept_of_taps()).double()
        else:
            norms = torch.linalg.vector_norm(self.probe.weight, dim=0).double()
            counts = torch.stack([w.sum() for w in norms.split(self.widths)])
        first, *inner, last, embedding = counts / counts.sum()
        n_layers = len(inner) // len(OF_A_BLOCK)
        by_kind = torch.stack(inner).view(n_layers, -1).T
        used = {"x_0": F.pad(first[None], (0, n_layers))}
        used |= dict(zip(OF_A_BLOCK, F.pad(by_kind, (1, 0)), strict=True))
        at_the_end = {"class token": last[None], "embedding": embedding[None]}
        return used | {n: F.pad(w, (n_layers, 0)) for n, w in at_the_end.items()}

    def loss(self, minibatches):
        loss = super().loss(minibatches)
        if self.selected:
            return loss
        norms = torch.linalg.vector_norm(self.probe.weight, dim=0)
        return loss + self.hparams["h2t_lasso"] * norms.sum()

    def update(self, minibatches, unlabeled=None):
        select_at = self.hparams["h2t_select_steps"]
        if select_at is None:
            select_at = self.n_steps // 2
        if self.updates == select_at and not self.selected:
            self.select()
        self.updates += 1
        return super().update(minibatches, unlabeled)

    @torch.no_grad()
    def select(self) -> None:
        """Keep the features whose weights in `probe` have the largest norms."""
        norms = torch.linalg.vector_norm(self.probe.weight, dim=0)
        best = norms.argsort(descending=True, stable=True)[: len(self.kept)]
        self.kept.copy_(best.sort().values)


@register
class VQT(ProbeCLIP):
    """Visual query tuning: T queries a block ask its tokens, which they never change.

    Queries P of block l give u = P + attention(ln_1 P, ln_1 x) and z = u + MLP(ln_2 u),
    with the block's frozen weights and its input x. `classifier` reads the last class
    token and every block's z, each a unit vector: L T D + ((1 + L T) D + 1) C
    parameters.
    """

    TAKES_FEATURES = False  # every token of every layer, which nobody would store

    @classmethod
    def hparam_rows(cls, dataset):
        rows = super().hparam_rows(dataset)
        del rows["feature_dtype"]
        return rows | {
            "weight_decay": at_least(
                0, 1e-4, lambda r: r.choice([0, 1e-4, 1e-3, 1e-2])
            ),
            "vqt_T": at_least(1, 1, lambda r: r.choice([1, 5, 10, 20])),
            "vqt_dropout": between(0, 1, 0.1),
        }

    def build(self):
        visual, n_queries = self.backbone.model.visual, self.hparams["vqt_T"]
        n_layers, width = self.backbone.n_image_layers, len(visual.ln_post.weight)
        patch = visual.conv1.kernel_size[0]
        bound = math.sqrt(6 / (3 * patch**2 + width))
        start = torch.empty(n_layers, n_queries, width).uniform_(-bound, bound)
        self.queries = nn.Parameter(start)
        n_features = (1 + n_layers * n_queries) * width
        self.classifier = nn.Linear(n_features, self.num_classes)
        nn.init.normal_(self.classifier.weight, std=math.sqrt(2 / self.num_classes))
        nn.init.constant_(self.classifier.bias, -math.log(99))

    def make_optimizer(self, parameters):
        bias = self.classifier.bias  # the released code lets it be
        optimizer = super().make_optimizer([p for p in parameters if p is not bias])
        optimizer.add_param_group({"params": [bias], "weight_decay": 0.0})
        return optimizer

    def features(self, x):
        """The tokens [x_0, ..., x_L] of images, without a graph."""
        return self.backbone.image_states(self.images(x))

    def logits(self, states):
        last = self.backbone.model.visual.ln_post(states[-1][:, 0])
        pieces = [last, *self.answers(states)]
        return self.classifier(torch.cat([unit(piece) for piece in pieces], 1))

    def answers(self, states: list[torch.Tensor]) -> Iterator[torch.Tensor]:
        """z of every block, (B, T D)."""
        blocks = self.backbone.model.visual.transformer.resblocks
        for block, queries, x in zip(blocks, self.queries, states[:-1], strict=True):
            p = queries.expand(len(x), -1, -1)  # (B, T, D)
            p = F.dropout(p, self.hparams["vqt_dropout"], self.training)
            u = p + attend(block, block.ln_1(p), block.ln_1(x))
            yield (u + block.mlp(block.ln_2(u))).flatten(1)

    def layers_used(self) -> dict[str, torch.Tensor]:
        """The shares of the layers 0 to L in the norms of the classifier's weights."""
        n_layers, n_queries, width = self.queries.shape
        sizes = [width, *[n_queries * width] * n_layers]
        pieces = self.classifier.weight.detach().double().split(sizes, 1)
        last, *queries = torch.stack([piece.norm() for piece in pieces])
        total = last + sum(queries)
        return {
            "queries": F.pad(torch.stack(queries) / total, (1, 0)),
            "class token": F.pad(last[None] / total, (n_layers, 0)),
        }
