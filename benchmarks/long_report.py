"""Time and size of the report of a long sweep.

    python benchmarks/long_report.py   # writes long_report.json beside it

Question: is the report of 3,600 runs with 17 checkpoints each there in 60 s, in a file
below 15 MB? The runs are made up: 3 datasets x 5 algorithms x 4 test environments x 20
draws x 3 trials, with accuracies that rise with the step and depend on the draw.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
from common import options
from common import report as report_result

from domainbed.hparams_registry import default_hparams, random_hparams
from domainbed.lib.misc import seed_hash
from domainbed.scripts import report, sweep
from domainbed.tables.costs import seconds

DATASETS = ["PACS", "OfficeHome", "TerraIncognita"]
ALGORITHMS = ["ERM", "LinearProbeCLIP", "LFA", "DPLCLIP", "MIRO"]
N_CLASSES, N_LAYERS, N_STEPS, CHECKPOINT_FREQ = 65, 12, 5001, 300


def write_run(args: dict, folder: Path) -> int:
    """The files that such a run would leave; gives the number of its checkpoints."""
    rng = np.random.RandomState(args["seed"])
    algorithm, dataset, draw = args["algorithm"], args["dataset"], args["hparams_seed"]
    hparams = default_hparams(algorithm, dataset)
    if draw:
        seed = seed_hash(draw, args["trial_seed"])
        hparams = random_hparams(algorithm, dataset, seed)
    args = args | {"output_dir": str(folder)}
    ceiling = 0.6 + 0.05 * ALGORITHMS.index(algorithm) - 0.02 * np.log10(hparams["lr"])
    lines = []
    for step in [*range(0, N_STEPS, CHECKPOINT_FREQ)]:
        level = ceiling * (1 - 0.6 * np.exp(-step / 800))
        accs = np.clip(level + 0.05 * rng.randn(8), 0, 1)
        keys = [f"env{i}_{part}_acc" for i in range(4) for part in ("in", "out")]
        record = dict(zip(keys, accs.tolist(), strict=True))
        cost = {"step_time": 0.1 + 0.01 * rng.rand(), "mem_gb": 2.0, "loss": 1 - level}
        facts = {"step": step, "epoch": step / 50, "args": args, "hparams": hparams}
        lines.append(json.dumps(record | cost | facts, sort_keys=True))
    folder.mkdir(parents=True)
    (folder / "results.jsonl").write_text("\n".join(lines) + "\n")
    about = {"args": args, "hparams": hparams, "device": "none"}
    parameters = 10 ** (3 + ALGORITHMS.index(algorithm))
    (folder / "run.json").write_text(json.dumps(about | {"parameters": parameters}))
    (folder / "done").write_text("done")
    if algorithm == "LFA":
        weights = rng.dirichlet(np.ones(N_LAYERS), (N_CLASSES, 3)).round(5).tolist()
        own = [dict(zip(("image", "self", "cross"), w, strict=True)) for w in weights]
        classes = {f"class {i}": one for i, one in enumerate(own)}
        names = {"PACS": "ACPS", "OfficeHome": "ACPR"}.get(dataset)
        names = names or ("L100", "L38", "L43", "L46")
        attention = {"environments": {n: own[0] for n in names}, "classes": classes}
        (folder / "layer_attention.json").write_text(json.dumps(attention))
    return len(lines)


def main(argv: list[str] | None = None) -> None:
    parser = options(__file__, __doc__, threads=False)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--page", type=Path, help="where to leave the report")
    args = parser.parse_args(argv)
    runs = sweep.make_args_list(
        args.trials, DATASETS, ALGORITHMS, 0, args.draws, None, "/data",
        "domain_generalization", 0.2, True, None,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as root:
        jobs = [sweep.Job(train_args, root) for train_args in runs]
        n = [
            write_run(train_args, Path(job.output_dir))
            for train_args, job in zip(runs, jobs, strict=True)
        ]
        page = args.page or Path(root) / "report.html"
        words = ["--input_dir", root, "--output", str(page)]
        took = seconds(lambda: report.main(words))
        result = {
            "runs": len(runs),
            "checkpoints": sum(n),
            "seconds": round(took, 1),
            "megabytes": round(page.stat().st_size / 1e6, 2),
        }
    report_result(result, args.output)


if __name__ == "__main__":
    main()
