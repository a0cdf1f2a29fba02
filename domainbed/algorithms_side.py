"""Methods with a small network beside CLIP's frozen towers that reads every layer.

UniPT: Diao et al., 2024, "UniPT: Universal Parallel Tuning for Transfer Learning with
Efficient Parameter and Memory", https://arxiv.org/abs/2308.14316
SHERL: Diao et al., 2024, "SHERL: Synthesizing High Accuracy and Efficient Memory for
Resource-Limited Transfer Learning", https://arxiv.org/abs/2407.07523
LST: Sung et al., 2022, "LST: Ladder Side-Tuning for Parameter and Memory Efficient
Transfer Learning", https://arxiv.org/abs/2206.06522

Letters: B images (or prompts), C classes, L blocks, N tokens, D a tower's width, E
joint embedding, k the reduction, m or d the reduced width. States x_0 ... x_L
(B, N, D) are the tokens before and after every block.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from domainbed.algorithms import register
from domainbed.algorithms_adapter import TokenCLIP, TowerCLIP
from domainbed.backbones import run_block
from domainbed.lib.bounds import at_least, between
from domainbed.lib.errors import InputError, check_choice, divided

FORMS = ("late", "output")


class Read(NamedTuple):
    """What a frozen tower makes of images or prompts."""

    states: list[torch.Tensor]  # [x_0, ..., x_L], (B, N, D) each
    e: torch.Tensor  # the embedding (B, E)
    mask: torch.Tensor  # (B, N): 1 for a token, 0 behind a prompt's end
    at: torch.Tensor  # (B,): where the token stands that makes the embedding


class ParallelCLIP(TowerCLIP):
    """A network beside each tower that makes another embedding of what the tower read.

    `image` and `text` are these networks; without the latter the texts are CLIP's.
    """

    reads_text = True

    def encode_prompts(self):
        super().encode_prompts()
        if not self.reads_text:
            return
        with torch.no_grad():
            states, eot = self.backbone.text_states(self.prompts)
        place = torch.arange(states[0].shape[1], device=eot.device)
        mask = (place <= eot[:, None]).float()
        self.register_buffer("text_states", torch.stack(states), persistent=False)
        self.register_buffer("text_mask", mask, persistent=False)
        self.register_buffer("text_end", eot, persistent=False)

    def build_networks(
        self, network: type[nn.Module], reduction: str
    ) -> list[nn.Module]:
        """The network of each tower, of width E / k."""
        joint = self.backbone.image_projection.shape[1]
        m = divided(joint, self.hparams, reduction)
        self.image = network(len(self.blocks) + 1, self.width, joint, m)
        if not self.reads_text:
            return [self.image]
        n_states, *_, width = self.text_states.shape
        self.text = network(n_states, width, joint, m)
        return [self.image, self.text]

    def features(self, x):
        """What the image tower makes of images, without a graph."""
        states = self.backbone.image_states(self.images(x))
        mask = torch.ones(states[0].shape[:2], device=x.device)
        at = torch.zeros(len(x), dtype=torch.long, device=x.device)
        e = self.backbone.image_embedding(states[-1][:, 0])
        return Read(states, e, mask, at)

    def logits(self, read):
        t = self.text_embeddings
        if self.reads_text:
            t = self.text(Read([*self.text_states], t, self.text_mask, self.text_end))
        return self.compare(self.image(read), t)


class ParallelNetwork(nn.Module):
    """What every state and the embedding go through first, to width m."""

    def __init__(self, n_states: int, width: int, joint: int, m: int):
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(width, m) for _ in range(n_states))
        self.anchor = nn.Linear(joint, m)


def gather(f: torch.Tensor, weights: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Tokens f (B, N, m) by weights (B, N), and the one that stands `at`: (B, m)."""
    own = f[torch.arange(len(f), device=f.device), at]
    return torch.einsum("bn,bnm->bm", weights, f) + own


class UniPTNetwork(ParallelNetwork):
    """e' = e + up(ReLU(sum_i alpha_i m_i)), where m_i is made of state i."""

    def __init__(self, n_states, width, joint, m):
        super().__init__(n_states, width, joint, m)
        self.gate = nn.Linear(m, 1)
        self.up = nn.Linear(m, joint)

    def layers(self, read: Read) -> tuple[torch.Tensor, torch.Tensor]:
        """m_i of every state (B, L + 1, m), and alpha (B, L + 1), which sums to 1."""
        g = self.anchor(F.relu(read.e))
        pooled, gates = [], []
        for down, x in zip(self.down, read.states, strict=True):
            f = down(F.relu(x))
            scores = F.relu(read.mask * torch.einsum("bnm,bm->bn", f, g))
            weights = scores / scores.sum(1, keepdim=True).clamp(min=1e-6)
            pooled.append(gather(f, weights, read.at))
            total = torch.einsum("bn,bnm->bm", read.mask, f)
            gates.append(self.gate(g * total / read.mask.sum(1, keepdim=True)))
        return torch.stack(pooled, 1), torch.cat(gates, 1).softmax(1)

    def forward(self, read: Read) -> torch.Tensor:
        pooled, alpha = self.layers(read)
        mixed = torch.einsum("bl,blm->bm", alpha, pooled)
        return read.e + self.up(F.relu(mixed))


@register
class UniPT(ParallelCLIP):
    """Parallel networks in which the embedding asks every state's tokens.

    Each has (L + 1) (D + 1) m + (E + 1) m + (m + 1) (E + 1) parameters, m = E / k.
    `unipt_text` gives the text tower one, too. With `unipt_zero_init` it starts at
    zero-shot CLIP.
    """

    BETAS = (0.9, 0.98)

    @classmethod
    def hparam_rows(cls, dataset):
        return super().hparam_rows(dataset) | {
            "unipt_reduction": (4, lambda r: r.choice([1, 2, 4, 8])),
            "unipt_text": (True, lambda r: r.choice([True, False])),
            "unipt_zero_init": (False, None),
            "lr": at_least(0, 1e-4, lambda r: 10 ** r.uniform(-5, -3)),
            "weight_decay": at_least(0, 1e-2, lambda r: r.choice([0.0, 1e-2, 0.2])),
        }

    @property
    def reads_text(self):
        return self.hparams["unipt_text"]

    def build(self):
        networks = self.build_networks(UniPTNetwork, "unipt_reduction")
        if self.hparams["unipt_zero_init"]:
            for network in networks:
                nn.init.zeros_(network.up.weight)
                nn.init.zeros_(network.up.bias)

    def layer_attention(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """How much each image state weighs: alpha, (B, L + 1)."""
        return {"states": self.image.layers(self.features(x))[1]}

    def make_optimizer(self, parameters):
        """AdamW that lets biases be, as the released code does."""
        optimizer = super().make_optimizer([p for p in parameters if p.ndim > 1])
        biases = [p for p in parameters if p.ndim == 1]
        optimizer.add_param_group({"params": biases, "weight_decay": 0.0})
        return optimizer


def weigh_layers(
    layers: torch.Tensor, guide: torch.Tensor, scorer: nn.Module, eps: float
) -> torch.Tensor:
    """SHERL's weights (..., I) of layers (..., I, m) that a guide (..., m) asks.

    A layer's score is divided by rho, the sum of its positive cosines with all layers,
    itself included: what says the same as others counts less.
    """
    u = layers / (layers.norm(dim=-1, keepdim=True) + 1e-8)
    rho = F.relu(u @ u.mT).sum(-1)
    scores = F.relu(scorer(layers * guide.unsqueeze(-2)).squeeze(-1)) / rho
    return scores / (scores.sum(-1, keepdim=True) + eps)


class SHERLNetwork(ParallelNetwork):
    """e' = e + out(ReLU(sum_i a_i s_i + g)), where s_i is made of state i."""

    def __init__(self, n_states, width, joint, m):
        super().__init__(n_states, width, joint, m)
        self.pool = nn.ModuleList(nn.Linear(m, 1) for _ in range(n_states))
        self.weigh = nn.Linear(m, 1)
        self.out = nn.Linear(m, joint)

    def layers(self, read: Read) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """g (B, m), s_i of every state (B, L + 1, m), and a (B, L + 1)."""
        g = self.anchor(F.relu(read.e))
        pooled = []
        for down, pool, x in zip(self.down, self.pool, read.states, strict=True):
            f = down(F.relu(x))
            scores = F.relu(read.mask * pool(g[:, None] * f).squeeze(-1))
            weights = scores / (scores.sum(1, keepdim=True) + 1e-6)
            pooled.append(gather(f, weights, read.at))
        s = torch.stack(pooled, 1)  # (B, L + 1, m)
        return g, s, weigh_layers(s, g, self.weigh, 1e-6)

    def forward(self, read: Read) -> torch.Tensor:
        g, s, a = self.layers(read)
        return read.e + self.out(F.relu(torch.einsum("bl,blm->bm", a, s) + g))


@register
class SHERL(ParallelCLIP):
    """Layers merged so that none repeats another, then the tower's last block.

    `sherl_form` late: per token, f_i = LN(down_i x_i) of the states but the last are
    merged with f_{L-1} as the guide; the frozen last block reads what comes out of it
    plus tanh(10 gate) x_{L-1}. Gradients pass through that block only. Output: the
    states are merged with the embedding as the guide and added to it, for images and,
    with `sherl_text`, for texts; no gradient enters a tower. Neither starts at CLIP.
    """

    @classmethod
    def hparam_rows(cls, dataset):
        return super().hparam_rows(dataset) | {
            "sherl_reduction": (8, lambda r: r.choice([2, 4, 8, 16])),
            "sherl_form": ("late", lambda r: r.choice(FORMS)),
            "sherl_text": (True, None),
            "sherl_dropout": between(0, 1, 0.1),
            "lr": at_least(0, 5e-4, lambda r: 10 ** r.uniform(-4.5, -3)),
            "weight_decay": at_least(0, 1e-2, lambda r: r.choice([0.0, 1e-2])),
        }

    @property
    def is_late(self) -> bool:
        return self.hparams["sherl_form"] == "late"

    @property
    def reads_text(self):
        return self.hparams["sherl_text"] and not self.is_late

    def build(self):
        check_choice(self.hparams, "sherl_form", FORMS)
        if not self.is_late:
            self.build_networks(SHERLNetwork, "sherl_reduction")
            return
        width, n_layers = self.width, len(self.blocks)
        if n_layers < 2:
            raise InputError(
                "SHERL's late form merges what comes before the last block; the tower "
                "of clip_backbone has 1 block and needs at least 2."
            )
        m = divided(width, self.hparams, "sherl_reduction")
        self.down = nn.ModuleList(
            nn.Sequential(nn.Linear(width, m), nn.LayerNorm(m)) for _ in range(n_layers)
        )
        self.weigh = nn.Linear(m, 1)
        self.gate = nn.Parameter(torch.zeros(1))
        self.out = nn.Sequential(nn.Linear(m, width), nn.LayerNorm(width, eps=1e-12))

    def features(self, x):
        """In the late form the states before the last block: [x_0, ..., x_{L-1}]."""
        if not self.is_late:
            return super().features(x)
        states = [self.backbone.embed_image(self.images(x))]
        for block in self.blocks[:-1]:
            states.append(run_block(block, states[-1]))
        return states

    def logits(self, read):
        if not self.is_late:
            return super().logits(read)
        token = run_block(self.blocks[-1], self.merge(read))[:, 0]
        return self.compare(self.backbone.image_embedding(token), self.text_embeddings)

    def layer_attention(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """How much each image state weighs: a, (B, L + 1).

        In the late form the class token's, of the states that are merged.
        """
        read = self.features(x)
        if not self.is_late:
            return {"states": self.image.layers(read)[2]}
        a = self.shallow(read)[2][:, 0]  # (B, L - 1)
        return {"states": F.pad(a, (0, 2))}

    def shallow(
        self, states: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The guide (B, N, m), what it asks (B, N, L - 1, m) and a (B, N, L - 1)."""
        *f, guide = (down(x) for down, x in zip(self.down, states, strict=True))
        shallow = torch.stack(f, 2)
        return guide, shallow, weigh_layers(shallow, guide, self.weigh, 1e-8)

    def merge(self, states: list[torch.Tensor]) -> torch.Tensor:
        """What the last block reads in the late form, (B, N, D)."""
        guide, shallow, a = self.shallow(states)
        merged = torch.einsum("bnl,bnlm->bnm", a, shallow) + guide
        out = self.out(F.relu(merged))
        out = F.dropout(out, self.hparams["sherl_dropout"], self.training)
        return out + torch.tanh(self.gate / 0.1) * states[-1]


@register
class LST(TokenCLIP):
    """A ladder: a tower of width d = D / k climbs beside the frozen one.

    Each of its blocks reads mu h + (1 - mu) down(x_l), a gated mix of the block before
    it and of CLIP's block l. Blocks start as every k-th row and column of CLIP's.
    `lst_drop` lists the layers (from 0) without one. What comes out at the class token
    is added to CLIP's, so it starts at zero-shot; without `lst_add` it stands for it.
    """

    @classmethod
    def hparam_rows(cls, dataset):
        return super().hparam_rows(dataset) | {
            "lst_reduction": (8, lambda r: r.choice([4, 8, 16])),
            "lst_drop": ([], None),
            "lst_add": (True, None),
            "lr": at_least(0, 1e-3, lambda r: 10 ** r.uniform(-4, -2.5)),
            "weight_decay": at_least(0, 1e-2, lambda r: r.choice([0.0, 1e-2, 3e-2])),
        }

    def build(self):
        super().build()
        width, k = self.width, self.hparams["lst_reduction"]
        n_heads, n_layers = self.blocks[0].attn.num_heads, len(self.blocks)
        d = n_heads * divided(width // n_heads, self.hparams, "lst_reduction")
        dropped = self.hparams["lst_drop"]
        if wrong := [i for i in dropped if i not in range(n_layers)]:
            raise InputError(
                f"hyperparameter lst_drop names layer {wrong[0]}; there are layers 0 "
                f"to {n_layers - 1}."
            )
        self.layers = [i for i in range(n_layers) if i not in dropped]
        self.first = nn.Linear(width, d)
        self.down = nn.ModuleList(nn.Linear(width, d) for _ in self.layers)
        self.mix = nn.Parameter(torch.zeros(len(self.layers)))
        self.side = nn.ModuleList(self.thinned(self.blocks[i], k) for i in self.layers)
        self.norm = nn.LayerNorm(d)
        self.up = nn.Linear(d, width)
        if self.hparams["lst_add"]:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    @staticmethod
    def thinned(block: nn.Module, k: int) -> nn.Module:
        """A block of CLIP's class with every k-th row and column of its weights."""
        thin = type(block)(block.attn.embed_dim // k, block.attn.num_heads)
        for own, full in zip(thin.parameters(), block.parameters(), strict=True):
            own.data.copy_(full[(slice(None, None, k),) * full.ndim])
        return thin

    def layers_used(self) -> dict[str, torch.Tensor]:
        """Each state's share of the mixes, as if the ladder's blocks changed nothing.

        x_l enters with 1 - mu_l and keeps what the later mu leave of it.
        """
        share = torch.sigmoid(self.mix.detach().double() / 0.1)
        used = share.new_zeros(len(self.blocks) + 1)
        used[0] = 1
        for i, mu in zip(self.layers, share, strict=True):
            used *= mu
            used[i + 1] = 1 - mu
        return {"states": used}

    def features(self, x):
        states = self.backbone.image_states(self.images(x))
        h = self.first(states[0])
        share = torch.sigmoid(self.mix / 0.1)
        for i, mu, down, block in zip(
            self.layers, share, self.down, self.side, strict=True
        ):
            h = run_block(block, mu * h + (1 - mu) * down(states[i + 1]))
        token = self.up(self.norm(h[:, 0]))
        return states[-1][:, 0] + token if self.hparams["lst_add"] else token
