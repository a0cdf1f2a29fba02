"""A CLIP in 4 bits with LoRA adapters, as towers that return every layer's features.

QLoRA: Dettmers et al., https://arxiv.org/abs/2305.14314
LoRA: Hu et al., https://arxiv.org/abs/2106.09685

Letters: B images, C prompts, L layers, T tokens, D image width, W text width.
"""

import copy
import logging
from typing import Any

import torch
from torch import nn
from torchvision.transforms import Compose

from domainbed.backbones.clip import (
    CLIP,
    CLIPBackbone,
    activation_of,
    fingerprint_of,
)
from domainbed.backbones.conversion import transformers_clip
from domainbed.lib.errors import InputError, check_choice
from domainbed.lib.optional import require

QUANTS = ("nf4", "fp4", "none")

# bitsandbytes' first import warns of a kernel for some CPUs, which pip does not bring.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: not record.msg.startswith("Failed to load CPU gemm_4bit_forward")
)


def quantize(model: nn.Module, quant: str) -> None:
    """Replace the linear layers inside the towers' blocks by 4-bit ones, in place.

    Double quantisation, bfloat16 compute. The two projections stay as they are.
    """
    bnb = require("bitsandbytes", "qlora")
    for tower in (model.vision_model, model.text_model):
        for block in tower.encoder.layers:
            for name, linear in list(block.named_modules()):
                if isinstance(linear, nn.Linear):
                    parent, _, child = name.rpartition(".")
                    four_bit = to_four_bits(bnb, linear, quant)
                    setattr(block.get_submodule(parent), child, four_bit)
    model.is_loaded_in_4bit = True  # tells peft


def to_four_bits(bnb: Any, linear: nn.Linear, quant: str) -> nn.Linear:
    """A frozen bitsandbytes Linear4bit with that layer's weights."""
    n_out, n_in = linear.weight.shape
    new = bnb.nn.Linear4bit(n_in, n_out, compute_dtype=torch.bfloat16, quant_type=quant)
    new.load_state_dict(linear.state_dict())
    new.bias.data = new.bias.data.bfloat16()  # else the first forward would do it
    # Its layout for inference on a CPU has no backward, and it never goes back.
    new.support_avx512bf16_for_cpu = False
    return new.requires_grad_(False).to(linear.weight.device)  # quantises


def add_adapters(model: nn.Module, hparams: dict[str, Any]) -> None:
    """Put LoRA beside the layers that `lora_targets` names, in place."""
    peft = require("peft", "qlora")
    names = {"r": "lora_r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"}
    options = {option: hparams[name] for option, name in names.items()}
    try:
        config = peft.LoraConfig(target_modules=hparams["lora_targets"], **options)
        peft.inject_adapter_in_model(config, model)
    except ValueError as error:
        raise InputError(f"peft refuses a lora_ hyperparameter: {error}") from error


class QLoRABackbone(CLIPBackbone):
    """A CLIP whose blocks are in 4 bits, with low-rank adapters (LoRA) beside them.

    Adapters train until `freeze`; a state dict holds them and the fingerprint of what
    they were made for. As a transformers CLIPModel its weights are CLIP's own.
    """

    def __init__(self, model: CLIP, preprocess: Compose, hparams: dict[str, Any]):
        super().__init__(copy.deepcopy(model), preprocess)
        quant = check_choice(hparams, "quant", QUANTS)
        weights = self.model.state_dict()
        self.pretrained = fingerprint_of(weights) + activation_of(self.model)
        self.base = f"{self.pretrained} {quant}"
        self.model = transformers_clip(self.model).requires_grad_(False)
        if quant != "none":
            quantize(self.model, quant)
        add_adapters(self.model, hparams)
        self.lora_alpha = hparams["lora_alpha"]
        for adapter in self.adapters.values():  # bfloat16 would lose SGD's small steps
            adapter.data = adapter.data.float()
        self.train()

    @property
    def adapters(self) -> dict[str, torch.Tensor]:
        """The low-rank matrices by name."""
        parameters = self.model.named_parameters()
        return {name: p for name, p in parameters if ".lora_" in name}

    @property
    def fingerprint(self) -> str:
        """16 hex digits that name weights, quantisation, adapters and their scale."""
        adapters = {name: p.detach() for name, p in self.adapters.items()}
        tower = f"{self.base} alpha {self.lora_alpha}"
        return fingerprint_of({tower: torch.empty(0), **adapters})

    @property
    def n_image_layers(self) -> int:
        return len(self.model.vision_model.encoder.layers)

    @property
    def image_projection(self) -> torch.Tensor:
        return self.model.visual_projection.weight.T

    @property
    def text_projection(self) -> torch.Tensor:
        return self.model.text_projection.weight.T

    @property
    def token_embedding(self) -> nn.Embedding:
        return self.model.text_model.embeddings.token_embedding

    def encode_image_layers(self, x: torch.Tensor) -> torch.Tensor:
        vision = self.model.vision_model
        tokens = vision.pre_layrnorm(vision.embeddings(x))  # (B, T, D)
        layers = []
        for block in vision.encoder.layers:
            tokens = block(tokens, None)
            layers.append(tokens[:, 0])
        return vision.post_layernorm(torch.stack(layers, 1))

    def encode_prompts(
        self, embeddings: torch.Tensor, eot: torch.Tensor
    ) -> torch.Tensor:
        text = self.model.text_model
        tokens = text.embeddings(inputs_embeds=embeddings)  # (C, T, W)
        n = tokens.shape[1]
        causal = tokens.new_full((n, n), -torch.inf).triu(1)[None, None]
        row = torch.arange(len(eot), device=eot.device)
        layers = []
        for block in text.encoder.layers:
            tokens = block(tokens, causal)
            layers.append(tokens[row, eot])
        return text.final_layer_norm(torch.stack(layers, 1))

    def freeze(self) -> "QLoRABackbone":
        """Itself; from now on nothing in it trains."""
        return self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "QLoRABackbone":
        """Itself, in train mode (LoRA's dropout) only while adapters train."""
        trains = any(p.requires_grad for p in self.adapters.values())
        return nn.Module.train(self, mode and trains)

    def is_saved(self, name: str) -> bool:
        return super().is_saved(name) or ".lora_" in name

    def get_extra_state(self) -> str:
        return self.base
