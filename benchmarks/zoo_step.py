"""A training step of each of upstream DomainBed's algorithms, against one of ERM.

    python benchmarks/zoo_step.py           # writes zoo_step.json beside it

Random images of RotatedMNIST's size and vectors of CLIP's, three domains, default
hyperparameters. Penalties and heads that come in later are there from the first step
on, and as many steps are one call as it takes for every turn to come (DANN's two,
ADRMX's three); a time is one step's share of it. A median is of all algorithms in turn:
on a shared machine only their ratios to ERM say something.
"""

import functools
import warnings

import torch
from common import DEVICE, medians, options, report

from domainbed.algorithms import Algorithm, Minibatches, get_algorithm_class
from domainbed.hparams_registry import default_hparams
from domainbed.lib.errors import InputError
from domainbed.names import ORDER

ZOO = ORDER[: ORDER.index("URM") + 1]
SHAPES = {"images": (1, 28, 28), "vectors": (512,)}
N_CLASSES, N_DOMAINS = 10, 3
STEPS = 6  # a multiple of every number of turns


def build(name: str, shape: tuple[int, ...]) -> Algorithm:
    """The algorithm, all its penalties at work."""
    hparams = default_hparams(name, "RotatedMNIST")
    soon = [row for row in hparams if row.endswith("_iters") or row == "iters"]
    hparams |= dict.fromkeys(soon, 0) | {"linear_steps": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SANDMask steps, but by nothing
        cls = get_algorithm_class(name)
        return cls(shape, N_CLASSES, N_DOMAINS, hparams).to(DEVICE)


def take(algorithm: Algorithm, minibatches: Minibatches) -> None:
    for algorithm.step in range(STEPS):
        algorithm.update(minibatches)


def main(argv: list[str] | None = None) -> None:
    parser = options(__file__, __doc__, repeats=5)
    parser.add_argument("--batch_size", type=int, default=16, help="of each domain")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    times = {}
    for inputs, shape in SHAPES.items():
        n = args.batch_size
        minibatches = [
            (
                torch.randn(n, *shape, device=DEVICE),
                torch.randint(N_CLASSES, (n,), device=DEVICE),
            )
            for _ in range(N_DOMAINS)
        ]
        steps = {}
        for name in ZOO:
            try:
                algorithm = build(name, shape)
            except InputError:  # ARM takes no vectors
                continue
            steps[name] = functools.partial(take, algorithm, minibatches)
        median = medians(steps, args.repeats)
        times[inputs] = {
            name: {
                "ms": round(1000 * t / STEPS, 2),
                "times_erm": round(t / median["ERM"], 2),
            }
            for name, t in median.items()
        }
    how = {"device": DEVICE, "batch_size": args.batch_size, "repeats": args.repeats}
    report(how | times, args.output)


if __name__ == "__main__":
    main()
