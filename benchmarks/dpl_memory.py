"""Memory of one DPL-CLIP step at the sizes of ViT-B/16 on DomainNet.

    python benchmarks/dpl_memory.py   # writes dpl_memory.json beside it

Question: does DomainNet, 345 classes and five training domains of 32 images, fit in
16 GB? The released code needs 46 GB at batch 8. Weights are random and the images'
layer features are given, as the feature store gives them: neither changes the memory.
"""

import tempfile
from pathlib import Path

import torch
from common import DEVICE, options, report, save_random_vit

from domainbed.algorithms import get_algorithm_class
from domainbed.hparams_registry import default_hparams
from domainbed.tables.costs import seconds
from domainbed.training import peak_memory_gb

N_DOMAINS, BATCH, N_CLASSES = 5, 32, 345


def make_algorithm(text_chunk: int) -> torch.nn.Module:
    """DPLCLIP on a randomly initialised CLIP of ViT-B/16's sizes."""
    with tempfile.TemporaryDirectory() as folder:
        vit = Path(folder, "vit.pt")
        save_random_vit(vit)
        facts = {
            "clip_backbone": str(vit),
            "class_names": [f"thing number {i}" for i in range(N_CLASSES)],
            "text_chunk": text_chunk,
        }
        hparams = default_hparams("DPLCLIP", "DomainNet") | facts
        cls = get_algorithm_class("DPLCLIP")
        return cls((3, 224, 224), N_CLASSES, N_DOMAINS, hparams)


def main(argv: list[str] | None = None) -> None:
    parser = options(__file__, __doc__)
    parser.add_argument("--text_chunk", type=int, default=256, help="prompts at once")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    algorithm = make_algorithm(args.text_chunk).to(DEVICE)
    minibatches = [
        (
            torch.randn(BATCH, 12, 768, device=DEVICE),
            torch.randint(N_CLASSES, (BATCH,), device=DEVICE),
        )
        for _ in range(N_DOMAINS)
    ]
    before = peak_memory_gb()
    took = seconds(lambda: algorithm.update(minibatches))
    result = {
        "text_chunk": args.text_chunk,
        "peak_gb_before_the_step": round(before, 2),
        "peak_gb": round(peak_memory_gb(), 2),
        "seconds_of_the_step": round(took, 1),
    }
    report(result, args.output)


if __name__ == "__main__":
    main()
