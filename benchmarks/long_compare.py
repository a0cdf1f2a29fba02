"""Seconds of compare on ten methods and 50,000 images.

    python benchmarks/long_compare.py   # writes long_compare.json beside it

Question: are the 45 pairs of 10 methods, each on 50,000 images of 4 test domains in 3
trials, compared with 10,000 resamples in under a minute? The runs are made up; each of
a method's answers is right with a chance of its own.
"""

import contextlib
import io
import json
import tempfile
from pathlib import Path

import numpy as np
from common import options, report

from domainbed.names import algorithm_names
from domainbed.runs import predictions
from domainbed.scripts import compare
from domainbed.tables.costs import seconds

N_ENVS, N_TRIALS, N_CLASSES = 4, 3, 65


def write_run(folder: Path, algorithm: str, env: int, trial: int, right: np.ndarray):
    """The files of a run that answers its test domain's images so."""
    folder.mkdir(parents=True)
    n = len(right)
    labels = np.arange(n) % N_CLASSES
    answers = np.where(right, labels, (labels + 1) % N_CLASSES)
    noted = predictions.Answers(
        env, "in", np.arange(n), labels, answers, *np.zeros((2, n))
    )
    facts = {"data": "made up", "classes": N_CLASSES}
    predictions.keep(folder / predictions.NAME, [noted], [n] * N_ENVS, facts, 0, 0)
    args = {"dataset": "PACS", "algorithm": algorithm, "test_envs": [env]}
    args |= {"trial_seed": trial, "hparams_seed": 0}
    keys = [f"env{i}_{part}_acc" for i in range(N_ENVS) for part in ("in", "out")]
    record = {"step": 0, "args": args, **dict.fromkeys(keys, float(right.mean()))}
    (folder / "results.jsonl").write_text(json.dumps(record) + "\n")


def main(argv: list[str] | None = None) -> None:
    parser = options(__file__, __doc__)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--resamples", type=int, default=10_000)
    args = parser.parse_args(argv)
    names, r = algorithm_names()[:10], np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as root:
        for i, name in enumerate(names):
            for env in range(N_ENVS):
                for trial in range(N_TRIALS):
                    right = r.random(args.images // N_ENVS) < 0.7 + 0.01 * i
                    write_run(Path(root) / f"{i}{env}{trial}", name, env, trial, right)
        words = ["--input_dir", root, "--resamples", str(args.resamples)]
        with contextlib.redirect_stdout(io.StringIO()):
            took = seconds(lambda: compare.main([*words, "--algorithms", *names]))
    sizes = {"methods": len(names), "images": args.images, "trials": N_TRIALS}
    result = {**sizes, "resamples": args.resamples, "seconds": round(took, 1)}
    report(result, args.output)


if __name__ == "__main__":
    main()
