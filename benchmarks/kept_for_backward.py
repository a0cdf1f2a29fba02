"""What a training step of each method that uses CLIP's layers has to remember.

    python benchmarks/kept_for_backward.py   # writes kept_for_backward.json beside it

Question: what is saved by not sending gradients through the tower? Peak memory on a CPU
is mostly torch itself; this counts the tensors that the loss keeps for its backward
pass, weights and buffers aside. 96 images of 48 pixels, the emoji CLIP, 17 classes.
"""

import torch
from common import options, report

from domainbed.algorithms import get_algorithm_class
from domainbed.hparams_registry import default_hparams
from domainbed.tables.costs import kept_for_backward

ALGORITHMS = """LinearProbeCLIP LFA Head2ToeLinear Head2Toe VQT ARC ARC_att MAM UniPT
SHERL LST HST BatchFormerCLIP FineTuneCLIP""".split()  # noqa: SIM905
OTHERS = {"VQT": {"vqt_T": 10}, "SHERL": {"sherl_form": "output"}}
N_IMAGES, N_CLASSES = 96, 17


def measure(name: str, hparams: dict) -> dict:
    """A row: the method, what is not default of it, its figures."""
    torch.manual_seed(0)
    facts = {"class_names": [f"thing {i}" for i in range(N_CLASSES)]}
    every = default_hparams(name, "EmojiDG") | facts | {"clip_transform": True}
    cls = get_algorithm_class(name)
    algorithm = cls((3, 48, 48), N_CLASSES, 3, every | hparams).train()
    batch = torch.randn(N_IMAGES, 3, 48, 48), torch.arange(N_IMAGES) % N_CLASSES
    trained = (p.numel() for p in algorithm.parameters() if p.requires_grad)
    kept = kept_for_backward(algorithm, [batch]) / 2**20
    row = {"algorithm": name, "hparams": hparams}
    return row | {"parameters": sum(trained), "kept_mib": round(kept, 1)}


def main(argv: list[str] | None = None) -> None:
    args = options(__file__, __doc__).parse_args(argv)
    torch.set_num_threads(args.threads)
    rows = []
    for name in ALGORITHMS:
        rows.append(measure(name, {}))
        if name in OTHERS:
            rows.append(measure(name, OTHERS[name]))
    report({"methods": rows}, args.output)


if __name__ == "__main__":
    main()
