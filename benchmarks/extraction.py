"""Extraction into the feature store against the bare backbone, in images per second.

    python benchmarks/extraction.py         # writes extraction.json beside it

Extraction opens the files of a folder, decodes, transforms, runs the tower and writes
half-precision features: all that a first run does. The bare backbone gets batches of
the same size that lie in memory. Both in turn in one process, with ViT-B/16 (random
weights) and with the small CLIP of the emoji, whose tower takes hardly longer than
decoding: there the workers decide, as many as a run takes by default. Pictures are
synthetic, 320 x 240.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import DEVICE, medians, options, report, save_random_vit
from PIL import Image

from domainbed.backbones import clip_transform, load_clip
from domainbed.datasets import ImageEnvironment, MultipleDomainDataset
from domainbed.features.store import BATCH, open_features

N_VIT, N_EMOJI = 128, 2048  # pictures


def write_pictures(folder: Path, n: int) -> None:
    """JPEGs of a photo's size and weight: smooth colours under a little noise."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i in range(n):
        colours = Image.fromarray(rng.integers(0, 256, (15, 20, 3), np.uint8))
        smooth = np.asarray(colours.resize((320, 240), Image.Resampling.BICUBIC))
        noisy = smooth + rng.normal(0, 8, smooth.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.jpg")


@torch.no_grad()
def compare(clip: str, n: int, num_workers: int, repeats: int) -> dict[str, float]:
    """Images per second of both with that CLIP, and their ratio."""
    backbone = load_clip(clip).to(DEVICE)
    size = backbone.resolution
    ready = [
        torch.randn(BATCH, 3, size, size, device=DEVICE) for _ in range(n // BATCH)
    ]
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder, "domain", "class"), n)
        environment = ImageEnvironment(Path(folder, "domain"), ["class"])
        environment.transform = clip_transform(clip)

        def extract() -> None:
            store = Path(tempfile.mkdtemp(dir=folder))  # a new one, to extract again
            open_features(environment, backbone, store, num_workers=num_workers)

        def encode() -> None:
            for x in ready:
                backbone.encode_image_layers(x)

        times = medians({"bare": encode, "extraction": extract}, repeats)
    return {
        "images": n,
        "bare_images_per_s": round(n / times["bare"], 1),
        "extraction_images_per_s": round(n / times["extraction"], 1),
        "share_of_bare": round(times["bare"] / times["extraction"], 3),
    }


def main(argv: list[str] | None = None) -> None:
    parser = options(__file__, __doc__, repeats=3)
    by_default = min(MultipleDomainDataset.N_WORKERS, (os.cpu_count() or 1) // 2)
    parser.add_argument("--num_workers", type=int, default=by_default)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # what extraction goes by
    with tempfile.TemporaryDirectory() as folder:
        vit = Path(folder, "vit.pt")
        save_random_vit(vit)
        result = {
            "num_workers": args.num_workers,
            "vit_b16": compare(str(vit), N_VIT, args.num_workers, args.repeats),
            "emoji": compare("emoji", N_EMOJI, args.num_workers, args.repeats),
        }
    report(result, args.output)


if __name__ == "__main__":
    main()
