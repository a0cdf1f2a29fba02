"""LFA on what another method has trained: LFAonCLIPAdapter, LFAonCoOp, LFAonMaPLe.

LFA's released code has them: https://github.com/MLAI-Yonsei/LFA
"""

from pathlib import Path
from typing import Any, ClassVar

import torch

from domainbed.algorithms import register
from domainbed.algorithms_lfa import LFA, CLIPAlgorithm
from domainbed.algorithms_maple import MaPLe
from domainbed.algorithms_prompt import CLIPAdapter, CoOp
from domainbed.algorithms_qlora import first_stage


class StackedLFA(LFA):
    """LFA on the features of BASE as a finished run of it has trained it.

    That run is in the folder `base_run`; `auto` finds it beside this one (see
    `first_stage`), `none` takes BASE as it starts. BASE's tensors are frozen and saved
    with this method's own, which are LFA's eight: the saved model needs that run no
    more.
    """

    BASE: ClassVar[type[CLIPAlgorithm]]

    @classmethod
    def hparam_rows(cls, dataset):
        # The Debug datasets exist for tests of one algorithm at a time.
        default = "none" if dataset.startswith("Debug") else "auto"
        return super().hparam_rows(dataset) | {"base_run": (default, None)}

    def load_backbone(self):
        own, self.trained = self.hparams, {}
        if "base" not in own:  # else it is being rebuilt: a state dict will follow
            folder = own["base_run"]
            rows = self.BASE.hparam_rows(own.get("run", {}).get("dataset", "EmojiDG"))
            base = {name: default for name, (default, _) in rows.items()}
            if folder != "none":
                run, clip = own.get("run"), own["clip_backbone"]
                who = type(self), self.BASE, "base_run"
                folder = first_stage(folder, run, clip, *who)
                base, self.trained = read_base(folder)
            own = own | {"base_run": str(folder), "base": base}
        self.hparams = own["base"] | own
        self.FIXED_CLASSES = self.hparams.get("context_by_class", False)
        return super().load_backbone()

    def build(self):
        before = {name for name, _ in self.named_parameters()}
        self.BASE.build(self)
        for name, parameter in self.named_parameters():
            if name not in before:
                parameter.requires_grad_(False)
                if self.trained:
                    parameter.data.copy_(self.trained[name])
        del self.trained
        super().build()


class OnPromptedTexts(StackedLFA):
    """On a BASE that learns prompts: the texts are asked with them, once."""

    def write_prompts(self, class_names, template):
        return self.BASE.write_prompts(self, class_names, template)

    def encode_prompts(self):
        self.BASE.encode_prompts(self)
        if hasattr(self, "context"):
            self.read_texts()

    def read_texts(self) -> None:
        """t (C, L, W) of the texts with BASE's prompts; a state dict may bring others,
        so it is saved with them.
        """
        with torch.no_grad():
            self.register_buffer("text_features", self.text_layers())

    def build(self):
        super().build()
        self.read_texts()


@register
class LFAonCLIPAdapter(StackedLFA):
    """LFA whose pooled image vector goes through a trained CLIP-Adapter."""

    BASE = CLIPAdapter
    AFTER = ("CLIPAdapter",)
    adapt = CLIPAdapter.adapt


@register
class LFAonCoOp(OnPromptedTexts):
    """LFA on the texts of a trained CoOp's prompts."""

    BASE = CoOp
    AFTER = ("CoOp",)
    n_tokens, text_layers = CoOp.n_tokens, CoOp.text_layers


@register
class LFAonMaPLe(OnPromptedTexts):
    """LFA on both towers of a trained MaPLe."""

    BASE, TAKES_FEATURES = MaPLe, False
    AFTER = ("MaPLe",)
    features, text_layers = MaPLe.features, MaPLe.text_layers
    prompts_at, coupled = MaPLe.prompts_at, MaPLe.coupled


def read_base(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A finished run's hyperparameters and the tensors that it trained."""
    saved = torch.load(folder / "model.pkl", map_location="cpu", weights_only=True)
    hparams = {
        name: value
        for name, value in saved["model_hparams"].items()
        if name not in ("class_names", "run")
    }
    return hparams, saved["model_dict"]
