"""What a step of each method of docs/layers.md takes, from images and from the store.

    python benchmarks/layer_steps.py      # writes layer_steps.json beside it

The emoji CLIP, default hyperparameters, 96 images of 48 pixels in three domains, four
classes. Times are the processor's, the least of some steps on one thread: that others
use the machine changes them little. kept_for_backward.py measures memory.
"""

import time
import warnings

import torch
from common import options, report

from domainbed import hparams_registry
from domainbed.algorithms import Algorithm, Minibatches, get_algorithm_class

METHODS = ["LinearProbeCLIP", "LFA", "Head2ToeLinear", "Head2Toe"]
METHODS += ["UniPT", "SHERL", "LST", "HST", "VQT"]
METHODS += ["ARC", "ARC_att", "MAM", "BatchFormerCLIP", "FineTuneCLIP"]
DOMAINS, IMAGES, CLASSES = 3, 32, 4


def make(name: str) -> Algorithm:
    torch.manual_seed(0)
    hparams = hparams_registry.default_hparams(name, "EmojiHouses")
    return get_algorithm_class(name)((3, 48, 48), CLASSES, DOMAINS, hparams)


def batch(algorithm: Algorithm) -> Minibatches:
    """Random images, as this algorithm's tower takes them, and labels."""
    size = algorithm.backbone.resolution
    return [
        (torch.randn(IMAGES, 3, size, size), torch.randint(CLASSES, (IMAGES,)))
        for _ in range(DOMAINS)
    ]


def step_seconds(algorithm: Algorithm, minibatches: Minibatches, repeats: int) -> float:
    """The processor's seconds of an update, the least of so many after a first."""
    taken = []
    for _ in range(repeats + 1):
        start = time.process_time()
        algorithm.update(minibatches)
        taken.append(time.process_time() - start)
    return min(taken[1:])


def measure(name: str, repeats: int) -> dict[str, float | str | None]:
    algorithm = make(name)
    trained = (p.numel() for p in algorithm.parameters() if p.requires_grad)
    minibatches = batch(algorithm)
    row = {
        "algorithm": name,
        "parameters": sum(trained),
        "step_s": round(step_seconds(algorithm, minibatches, repeats), 3),
        "stored_step_s": None,
    }
    if algorithm.TAKES_FEATURES:
        with torch.no_grad():
            stored = [(algorithm.features(x), y) for x, y in minibatches]
        algorithm.given = algorithm.stored_kind.name
        row["stored_step_s"] = round(step_seconds(algorithm, stored, 5), 4)
    return row


def main(argv: list[str] | None = None) -> None:
    parser = options(__file__, __doc__, repeats=2, threads=False)
    parser.add_argument("--algorithms", nargs="+", default=METHODS)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # there are no class names
    report(
        {"methods": [measure(a, args.repeats) for a in args.algorithms]}, args.output
    )


if __name__ == "__main__":
    main()
