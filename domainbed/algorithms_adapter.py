"""Methods that put something small into every block of CLIP's frozen image tower.

ARC: Dong et al., 2023, "Efficient Adaptation of Large Vision Transformer via Adapter
Re-Composing", https://arxiv.org/abs/2310.06234
MAM: He et al., 2022, "Towards a Unified View of Parameter-Efficient Transfer Learning",
https://arxiv.org/abs/2110.04366

Letters: B images, C classes, L blocks, N tokens, D image width, E joint embedding, r an
adapter's width. x (B, N, D) is what a block is given.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from domainbed.algorithms import register
from domainbed.algorithms_lfa import CLIPAlgorithm, unit
from domainbed.backbones import VisionTransformer, attend
from domainbed.datasets import get_dataset_class
from domainbed.lib.bounds import at_least, between
from domainbed.lib.errors import check_choice
from domainbed.lib.schedules import SCHEDULES, set_learning_rate, share

HEADS = ("text", "linear")
# The release's rates and weight decays.
RATES = {"VTAB-1k": (1e-2, 0.0), "FGVC": (5e-3, 1e-2)}


class TowerCLIP(CLIPAlgorithm):
    """Something that trains in or beside a frozen image tower, with AdamW.

    It takes images: of a token that is not the class token nothing is stored. The
    papers let the learning rate rise and fall: `schedule` and `warmup_steps`, of which
    None is a tenth of all steps.
    """

    TAKES_FEATURES = False
    BETAS = (0.9, 0.999)

    @classmethod
    def hparam_rows(cls, dataset):
        rows = super().hparam_rows(dataset)
        del rows["feature_dtype"], rows["momentum"]
        return rows | {"schedule": ("constant", None), "warmup_steps": at_least(0, 0)}

    @classmethod
    def few_shot_rows(cls, dataset, shots):
        rows = super().few_shot_rows(dataset, shots)
        return {name: rows[name] for name in ("batch_size", "epochs")}

    def make_optimizer(self, parameters):
        check_choice(self.hparams, "schedule", SCHEDULES)
        return torch.optim.AdamW(
            parameters,
            lr=self.hparams["lr"],
            betas=self.BETAS,
            weight_decay=self.hparams["weight_decay"],
        )

    def update(self, minibatches, unlabeled=None):
        schedule, warmup = (self.hparams[name] for name in ("schedule", "warmup_steps"))
        if warmup is None:
            warmup = self.n_steps // 10
        if schedule != "constant" or warmup:
            at = share(schedule, self.step, self.n_steps, warmup)
            set_learning_rate(self.optimizer, self.hparams["lr"] * at)
        return super().update(minibatches, unlabeled)

    @property
    def blocks(self) -> nn.ModuleList:
        """The image tower's L blocks, frozen."""
        return self.backbone.model.visual.transformer.resblocks

    @property
    def width(self) -> int:
        """D."""
        return len(self.backbone.image_projection)

    @property
    def text_embeddings(self) -> torch.Tensor:
        """CLIP's own (C, E) of the classes' prompts."""
        return self.text_features[:, -1] @ self.backbone.text_projection

    def compare(self, e: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """CLIP's answer (B, C): scaled cosines of embeddings (B, E) and (C, E)."""
        return self.backbone.scale * unit(e) @ unit(t).T


class TokenCLIP(TowerCLIP):
    """Another last class token, (B, D) in `features`, and CLIP's answer to it.

    `head` linear is a classifier of its own instead, which starts at zero and reads the
    token through ln_post.
    """

    @classmethod
    def hparam_rows(cls, dataset):
        return super().hparam_rows(dataset) | {"head": ("text", None)}

    def build(self):
        if check_choice(self.hparams, "head", HEADS) == "linear":
            self.FIXED_CLASSES = True
            self.classifier = nn.Linear(self.width, self.num_classes)
            nn.init.zeros_(self.classifier.weight)
            nn.init.zeros_(self.classifier.bias)

    def logits(self, token):
        if self.hparams["head"] == "linear":
            return self.classifier(self.backbone.model.visual.ln_post(token))
        return self.compare(self.backbone.image_embedding(token), self.text_embeddings)


class AdapterCLIP(TokenCLIP):
    """A frozen tower of adapted blocks; gradients pass through all of them.

    Images come as DomainBed gives them, augmented, unless `clip_transform` is true.
    """

    @classmethod
    def hparam_rows(cls, dataset):
        return super().hparam_rows(dataset) | {"clip_transform": (False, None)}

    def features(self, x):
        x = self.backbone.embed_image(self.images(x))
        for i, block in enumerate(self.blocks):
            x = self.adapted(i, block, x)
        return x[:, 0]

    def adapted(self, i: int, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """What block number i makes of the tokens x with what the method adds to it."""
        raise NotImplementedError


def clip_gradients(optimizer: torch.optim.Optimizer, *_) -> None:
    """Before a step: all gradients together are at most 1 long."""
    of_groups = [group["params"] for group in optimizer.param_groups]
    nn.utils.clip_grad_norm_([p for group in of_groups for p in group], 1.0)


@register
class ARC_att(AdapterCLIP):
    """Adapters before every attention, composed anew from one basis: D r + L (r + D).

    v becomes v + (v U) diag(s) U^T + b, with U (D, r) shared by all blocks and s (r),
    b (D) of each. It starts as the frozen tower.
    """

    POSITIONS = ("attn",)

    @classmethod
    def hparam_rows(cls, dataset):
        return super().hparam_rows(dataset) | {
            "arc_dim": at_least(1, 50, lambda r: r.choice([10, 25, 50, 100])),
            "arc_dropout": between(0, 1, 0.1, lambda r: r.choice([0.0, 0.1])),
            "lr": at_least(0, 1e-3, lambda r: 10 ** r.uniform(-3.5, -2)),
            "weight_decay": at_least(0, 0.0, lambda r: r.choice([0.0, 1e-4, 1e-2])),
        }

    @classmethod
    def few_shot_rows(cls, dataset, shots):
        """100 epochs with warm-up, and the release's rates for VTAB-1k and FGVC."""
        lr, decay = RATES.get(get_dataset_class(dataset).BENCHMARK, (1e-3, 0.0))
        return super().few_shot_rows(dataset, shots) | {
            "lr": at_least(0, lr),
            "weight_decay": at_least(0, decay),
            "schedule": ("cosine", None),
            "warmup_steps": at_least(0, None),  # a tenth of all
        }

    def build(self):
        super().build()
        n_layers, width, r = len(self.blocks), self.width, self.hparams["arc_dim"]
        for at in self.POSITIONS:
            basis = nn.init.xavier_uniform_(torch.empty(width, r))
            self.register_parameter(f"basis_{at}", nn.Parameter(basis))
            scale = nn.Parameter(torch.zeros(n_layers, r))
            self.register_parameter(f"scale_{at}", scale)
            bias = nn.Parameter(torch.zeros(n_layers, width))
            self.register_parameter(f"bias_{at}", bias)

    def make_optimizer(self, parameters):
        optimizer = super().make_optimizer(parameters)
        optimizer.register_step_pre_hook(clip_gradients)
        return optimizer

    def adapter(self, at: str, i: int) -> tuple[torch.Tensor, ...]:
        """U (D, r), s (r) and b (D) of block number i, before its `at`."""
        basis, scale, bias = (
            getattr(self, f"{part}_{at}") for part in ("basis", "scale", "bias")
        )
        return basis, scale[i], bias[i]

    def adapt(self, at: str, i: int, v: torch.Tensor) -> torch.Tensor:
        """The tokens v (B, N, D) as block number i's `at` gets them."""
        if at not in self.POSITIONS:
            return v
        basis, scale, bias = self.adapter(at, i)
        middle = (v @ basis) * scale
        middle = F.dropout(middle, self.hparams["arc_dropout"], self.training)
        return v + middle @ basis.T + bias

    def adapted(self, i, block, x):
        n = self.adapt("attn", i, block.ln_1(x))
        a = x + attend(block, n, n)
        return a + block.mlp(self.adapt("mlp", i, block.ln_2(a)))

    @torch.no_grad()
    def merged(self) -> VisionTransformer:
        """CLIP's image tower with the adapters in its weights.

        It makes the same embeddings (B, E) of images as CLIP takes them, at no cost.
        """
        tower = copy.deepcopy(self.backbone.model.visual)
        for i, block in enumerate(tower.transformer.resblocks):
            behind = {
                "attn": (block.attn.in_proj_weight, block.attn.in_proj_bias),
                "mlp": (block.mlp.c_fc.weight, block.mlp.c_fc.bias),
            }
            for at in self.POSITIONS:
                basis, scale, bias = self.adapter(at, i)
                weight, own_bias = behind[at]
                own_bias += weight @ bias
                weight += (weight @ basis) * scale @ basis.T
        return tower


@register
class ARC(ARC_att):
    """Adapters before every attention and every MLP: 2 D r + 2 L (r + D).

    Those before an MLP do not start at nothing: their s is drawn as U is.
    """

    POSITIONS = ("attn", "mlp")

    def build(self):
        super().build()
        for scale in self.scale_mlp.data.split(1):
            nn.init.xavier_uniform_(scale)


@register
class MAM(AdapterCLIP):
    """Mix-and-match: l prefix tokens in every attention, an adapter beside every MLP.

    The prefixes are keys and values as they stand after projection, 2 L l D; the
    adapters, down to r and up again, read what the MLP's residual branch carries and
    count `mam_s` fold: L (2 D r + r + D). The adapters start at nothing, the prefixes
    do not.
    """

    BETAS = (0.9, 0.98)

    @classmethod
    def hparam_rows(cls, dataset):
        return super().hparam_rows(dataset) | {
            "mam_l": at_least(0, 16, lambda r: r.choice([5, 10, 16, 30])),
            "mam_r": at_least(1, 64, lambda r: r.choice([16, 64, 128])),
            "mam_s": (4.0, lambda r: r.choice([1.0, 2.0, 4.0])),
            "mam_dropout": between(0, 1, 0.1),
            "lr": at_least(0, 1e-4, lambda r: 10 ** r.uniform(-4.5, -3)),
            "weight_decay": at_least(0, 0.01, lambda r: r.choice([0.0, 0.01, 0.1])),
        }

    def build(self):
        super().build()
        n_layers, width, r = len(self.blocks), self.width, self.hparams["mam_r"]
        shape = (n_layers, self.hparams["mam_l"], width)
        self.prefix_key = nn.Parameter(0.02 * torch.randn(shape))
        self.prefix_value = nn.Parameter(0.02 * torch.randn(shape))
        self.down = nn.ModuleList(nn.Linear(width, r) for _ in range(n_layers))
        self.up = nn.ModuleList(nn.Linear(r, width) for _ in range(n_layers))
        for linear in self.down:  # its weight starts as LoRA's, which is torch's own
            nn.init.zeros_(linear.bias)
        for linear in self.up:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def adapted(self, i, block, x):
        n = block.ln_1(x)
        a = x + attend(block, n, n, (self.prefix_key[i], self.prefix_value[i]))
        middle = F.relu(self.down[i](a))
        middle = F.dropout(middle, self.hparams["mam_dropout"], self.training)
        added = self.hparams["mam_s"] * self.up[i](middle)
        return a + block.mlp(block.ln_2(a)) + added
