"""QLoRA on both towers of CLIP, and LFA on a CLIP that was tuned so.

QLoRACLIP: as in LFA's released code, https://github.com/MLAI-Yonsei/LFA

Letters: B images, C classes, L layers, D image width, W text width.
"""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import torch

from domainbed.algorithms import HparamRows, register
from domainbed.algorithms_lfa import LFA, CLIPAlgorithm, unit
from domainbed.backbones import read_clip
from domainbed.backbones.qlora import QLoRABackbone
from domainbed.lib.bounds import at_least, between
from domainbed.lib.errors import InputError

TOWER_ROWS: HparamRows = {
    "quant": ("nf4", None),
    "lora_r": at_least(1, 4),
    "lora_alpha": at_least(0, 4),
    "lora_dropout": between(0, 1, 0.25),
    "lora_targets": (["q_proj", "k_proj", "v_proj", "out_proj"], None),
}
# What decides which images a run trains and selects on: the same in both stages.
SPLITS = (
    "dataset",
    "test_envs",
    "trial_seed",
    "holdout_fraction",
    "uda_holdout_fraction",
    "shots",  # of few-shot runs
    "classes",
    "source",
)


@register
class QLoRACLIP(CLIPAlgorithm):
    """CLIP's own answer, both towers in 4 bits and tuned through LoRA adapters.

    For ViT-B/16 491,520 parameters train: r (in + out) for each of the q, k, v and
    output projections of 12 + 12 blocks.
    """

    ALIASES = ("CLIP_QLoRA",)
    EXTRA = "qlora"
    TAKES_FEATURES = False

    @classmethod
    def hparam_rows(cls, dataset):
        rows = super().hparam_rows(dataset)
        del rows["feature_dtype"]
        return rows | TOWER_ROWS

    def load_backbone(self):
        return QLoRABackbone(*read_clip(self.hparams["clip_backbone"]), self.hparams)

    def encode_prompts(self):
        """Nothing: the text tower trains, and they are encoded anew at every step."""

    def logits(self, z):
        t = self.backbone.encode_text_layers(self.prompts)  # (C, L, W)
        image = unit(z[:, -1] @ self.backbone.image_projection)
        text = unit(t[:, -1] @ self.backbone.text_projection)
        return self.backbone.scale * image @ text.T


@register
class QLoRALFA(LFA):
    """LFA on the layer features of a CLIP that QLoRACLIP has tuned before.

    The first stage is the finished QLoRACLIP run in the folder `qlora_run`; `auto`
    finds it beside this run (see `first_stage`), `none` takes fresh adapters, that is
    CLIP in 4 bits as it was. Its towers are frozen; LFA's projections start, as ever,
    as copies of CLIP's. A saved model holds the adapters and needs that run no more.
    """

    ALIASES = ("CLIP_QLoRA_LFA",)
    EXTRA = "qlora"
    RECORDABLE = True
    AFTER = ("QLoRACLIP",)  # a sweep runs those to their end before it

    @classmethod
    def hparam_rows(cls, dataset):
        # The Debug datasets exist for tests of one algorithm at a time.
        default = "none" if dataset.startswith("Debug") else "auto"
        return super().hparam_rows(dataset) | {"qlora_run": (default, None)}

    def load_backbone(self):
        name, folder = (self.hparams[k] for k in ("clip_backbone", "qlora_run"))
        tower = {name: default for name, (default, _) in TOWER_ROWS.items()}
        adapters = None
        if "tower" in self.hparams:  # it is being rebuilt: a state dict will follow
            tower = self.hparams["tower"]
        elif folder != "none":
            folder = first_stage(folder, self.hparams.get("run"), name)
            tower, adapters = read_tower(folder)
        self.found = {"qlora_run": str(folder), "tower": tower}
        self.hparams = self.hparams | self.found
        backbone = QLoRABackbone(*read_clip(name), tower)
        if adapters:
            backbone.load_state_dict(adapters)
        return backbone.freeze()

    def encode_prompts(self):
        super().encode_prompts()
        # Made by adapters that a state dict brings: saved with them.
        self.register_buffer("text_features", self.text_features)

    def load_training_state(self, saved):
        """Go on with the first stage of then, whatever `auto` finds now."""
        found = saved["plain"]["", "found"]
        if found != self.found:
            model = read_clip(self.hparams["clip_backbone"])
            tower = QLoRABackbone(*model, found["tower"]).freeze()
            self.backbone = tower.to(self.text_features.device)
            self.hparams = self.hparams | found
        super().load_training_state(saved)


def first_stage(
    named: str,
    run: dict[str, Any] | None,
    clip_backbone: str,
    algorithm: type[CLIPAlgorithm] = QLoRALFA,
    base: type[CLIPAlgorithm] = QLoRACLIP,
    row: str = "qlora_run",
) -> Path:
    """The folder of the finished run of `base` that a run of `algorithm` builds on.

    It has the same splits and backbone. If `auto`, as hyperparameter `row`, finds
    several beside the run, those of its hparams_seed go first: draw i builds on draw i.
    Of these it is the one with the best accuracy on the held-out parts of the training
    domains.
    """
    if named == "auto" and run is None:
        raise InputError(
            f"{row} 'auto' means a folder beside the run's output_dir; outside of a "
            f"run, name the folder of a finished {base.__name__} run."
        )
    sweep = Path(run["output_dir"]).parent if run else None
    folders = sorted(sweep.iterdir()) if named == "auto" else [Path(named)]
    needs = {name: run[name] for name in SPLITS if name in run} if run else {}
    found = []
    for folder in folders:
        if not all((folder / name).exists() for name in ("done", "model.pkl")):
            continue
        record = last_record(folder)
        args, hparams = record["args"], record["hparams"]
        if (
            args["algorithm"] in (base.__name__, *base.ALIASES)
            and all(args.get(name) == value for name, value in needs.items())
            and hparams["clip_backbone"] == clip_backbone
        ):
            same_draw = run is not None and args["hparams_seed"] == run["hparams_seed"]
            found.append((same_draw, validation_accuracy(record), folder))
    if not found:
        wanted = needs | {"clip_backbone": clip_backbone}
        place = sweep if named == "auto" else named
        raise InputError(
            f"{algorithm.__name__} builds on a finished {base.__name__} run with a "
            f"saved model, and there is none in {place} with "
            + ", ".join(f"{name} {value}" for name, value in wanted.items())
            + f"; run that first, or name its folder as hyperparameter {row}."
        )
    return max(found)[-1]


def read_tower(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A QLoRACLIP run's tower: its hyperparameters and its state dict."""
    saved = torch.load(folder / "model.pkl", map_location="cpu", weights_only=True)
    tower = {name: saved["model_hparams"][name] for name in TOWER_ROWS}
    state = {
        name.removeprefix("backbone."): value
        for name, value in saved["model_dict"].items()
        if name.startswith("backbone.")
    }
    return tower, state


def last_record(folder: Path) -> dict[str, Any]:
    """The last line of a run's results.jsonl."""
    return json.loads((folder / "results.jsonl").read_text().splitlines()[-1])


def validation_accuracy(record: dict[str, Any]) -> float:
    """The mean over training domains of the accuracy on their held-out parts.

    -1 if there is none, or one is NaN.
    """
    tests = {f"env{i}_out_acc" for i in record["args"]["test_envs"]}
    outs = [v for k, v in record.items() if k.endswith("_out_acc") and k not in tests]
    mean = statistics.fmean(outs or [-1.0])
    return -1.0 if math.isnan(mean) else mean
