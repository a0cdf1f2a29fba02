"""Memory of one DPL-CLIP step at the sizes of ViT-B/16 on DomainNet.

    python benchmarks/dpl_memory.py   # writes dpl_memory.json beside it

Question: does DomainNet, 345 classes and five training domains of 32 images, fit in
16 GB? The released code needs 46 GB at batch 8. Weights are random and the images'
layer features are given, as the feature store gives them: neither changes the memory.
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import torch
from clip.model import CLIP

from domainbed.algorithms import get_algorithm_class
from domainbed.hparams_registry import default_hparams
from domainbed.training import peak_memory_gb

N_DOMAINS, BATCH, N_CLASSES = 5, 32, 345


def make_algorithm(text_chunk: int) -> torch.nn.Module:
    """DPLCLIP on a randomly initialised CLIP of ViT-B/16's sizes."""
    torch.manual_seed(0)
    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        state = CLIP(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12).half().state_dict()
        torch.save(state, file.name)
        facts = {
            "clip_backbone": file.name,
            "class_names": [f"thing number {i}" for i in range(N_CLASSES)],
            "text_chunk": text_chunk,
        }
        hparams = default_hparams("DPLCLIP", "DomainNet") | facts
        cls = get_algorithm_class("DPLCLIP")
        return cls((3, 224, 224), N_CLASSES, N_DOMAINS, hparams)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text_chunk", type=int, default=256, help="prompts at once")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_suffix(".json")
    )
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    algorithm = make_algorithm(args.text_chunk).to(device)
    minibatches = [
        (
            torch.randn(BATCH, 12, 768, device=device),
            torch.randint(N_CLASSES, (BATCH,), device=device),
        )
        for _ in range(N_DOMAINS)
    ]
    before = peak_memory_gb()
    started = time.time()
    algorithm.update(minibatches)
    result = {
        "text_chunk": args.text_chunk,
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "peak_gb_before_the_step": round(before, 2),
        "peak_gb": round(peak_memory_gb(), 2),
        "seconds_of_the_step": round(time.time() - started, 1),
    }
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
