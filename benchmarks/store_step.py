"""A training step of LFA from the feature store against one from images.

    python benchmarks/store_step.py         # writes store_step.json beside it

Sizes of ViT-B/16, 3 domains of 32 images, the 7 classes of PACS. From the store: draw
the batches, gather them from half-precision memory maps as large as PACS's domains,
the fast head forward and backward, a step of SGD. From images: the forward pass of the
frozen tower, the plain head forward and backward, a step of SGD; the images lie
transformed in memory, so reading and decoding them is not counted. Weights and images
are random: neither changes the time.
"""

import itertools
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import DEVICE, medians, options, report, save_random_vit

from domainbed.algorithms import LFA
from domainbed.features.store import StoredFeatures
from domainbed.hparams_registry import default_hparams
from domainbed.lib.fast_data_loader import InfiniteDataLoader

CLASSES = ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"]
DOMAIN_SIZES = (2344, 1670, 3929)  # PACS without art: cartoon, photo, sketch
BATCH, LAYERS, D = 32, 12, 768
STEPS = 50  # from the store in turn with one from images


class PlainLFA(LFA):
    """LFA as it is defined, without the fast head."""

    def logits(self, z):
        return self.plain_logits(z, self.text_features)


def stored_domain(folder: Path, size: int) -> StoredFeatures:
    """Random features in a file of the store's kind, read by memory map."""
    z = np.random.default_rng(size).standard_normal((size, LAYERS, D), np.float32)
    np.save(folder / f"{size}.npy", z.astype(np.float16))
    z = np.load(folder / f"{size}.npy", mmap_mode="r")
    return StoredFeatures(z, torch.randint(len(CLASSES), (size,)), range(size))


def main(argv: list[str] | None = None) -> None:
    args = options(__file__, __doc__, repeats=3).parse_args(argv)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "vit.pt"
        save_random_vit(clip)
        hparams = default_hparams("LFA", "PACS")
        hparams |= {"clip_backbone": str(clip), "class_names": CLASSES}
        from_store, from_images = (
            algorithm((3, 224, 224), len(CLASSES), len(DOMAIN_SIZES), hparams).to(
                DEVICE
            )
            for algorithm in (LFA, PlainLFA)
        )
        domains = [stored_domain(Path(folder), size) for size in DOMAIN_SIZES]
        loaders = [InfiniteDataLoader(domain, None, BATCH, 0) for domain in domains]
        batches = zip(*loaders, strict=True)
        images = [
            (
                torch.randn(BATCH, 3, 224, 224, device=DEVICE),
                torch.randint(len(CLASSES), (BATCH,), device=DEVICE),
            )
            for _ in domains
        ]

        def steps_from_store() -> None:
            for minibatches in itertools.islice(batches, STEPS):
                from_store.update(
                    [(z.to(DEVICE), y.to(DEVICE)) for z, y in minibatches]
                )

        def step_from_images() -> None:
            from_images.update(images)

        times = medians(
            {"images": step_from_images, "store": steps_from_store}, args.repeats
        )
    slow, fast = times["images"], times["store"] / STEPS
    result = {
        "from_images_s": round(slow, 4),
        "from_store_s": round(fast, 5),
        "times_faster": round(slow / fast),
    }
    report(result, args.output)


if __name__ == "__main__":
    main()
