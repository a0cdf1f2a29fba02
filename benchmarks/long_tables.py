"""CPU seconds and memory of collect_results on a long sweep, against an older commit.

    python benchmarks/long_tables.py   # writes long_tables.json beside it

Question: does the table of 20,000 runs with 17 checkpoints each take at most 60 % of
the CPU seconds and of the memory that it took before differences were told, at commit
671e761? The runs are made up: 5 datasets x 5 algorithms x 4 test environments x 67
draws x 3 trials. Each is measured in a process of its own, one after the other.
"""

import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from common import options, report

from domainbed.hparams_registry import default_hparams

ROOT = Path(__file__).parents[1]
DATASETS = ("PACS", "VLCS", "OfficeHome", "TerraIncognita", "SVIRO")
ALGORITHMS = ("ERM", "LinearProbeCLIP", "LFA", "DPLCLIP", "MIRO")
CHECKPOINTS = range(0, 5001, 300)
# VmHWM is this process's own; ru_maxrss has its parent's peak, too.
MEASURED = (
    "import json, sys, time; from domainbed.scripts import collect_results;"
    "collect_results.main(sys.argv[1:]);"
    "lines = open('/proc/self/status').read().splitlines();"
    "peak = next(int(s.split()[1]) for s in lines if s.startswith('VmHWM'));"
    "print(json.dumps([time.process_time(), peak / 2**20]), file=sys.stderr)"
)


def write_runs(root: Path, n: int) -> int:
    """So many made-up runs; gives how many there are."""
    r = np.random.default_rng(0)
    draws = -(-n // (len(DATASETS) * len(ALGORITHMS) * 4 * 3))
    cells = itertools.product(DATASETS, ALGORITHMS, range(4), range(draws), range(3))
    hparams = {a: default_hparams(a, "PACS") for a in ALGORITHMS}
    written = 0
    for dataset, algorithm, env, draw, trial in cells:
        args = {"dataset": dataset, "algorithm": algorithm, "test_envs": [env]}
        args |= {"hparams_seed": draw, "trial_seed": trial, "seed": written}
        args |= {"holdout_fraction": 0.2, "task": "domain_generalization"}
        args |= {"data_dir": "/data", "steps": None, "hparams": None}
        accs = r.random((len(CHECKPOINTS), 8)).tolist()
        keys = [f"env{i}_{part}_acc" for i in range(4) for part in ("in", "out")]
        folder = root / f"{written:032x}"
        folder.mkdir()
        args["output_dir"] = str(folder)
        facts = {"args": args, "hparams": hparams[algorithm] | {"lr": r.random()}}
        facts |= {"epoch": 1.0, "loss": 0.5, "step_time": 0.1, "mem_gb": 1.0}
        lines = (
            json.dumps({"step": step, **facts, **dict(zip(keys, own, strict=True))})
            for step, own in zip(CHECKPOINTS, accs, strict=True)
        )
        (folder / "results.jsonl").write_text("\n".join(lines) + "\n")
        written += 1
    return written


def measured(checkout: Path, runs: Path) -> dict[str, float]:
    """CPU seconds and peak GB of collect_results of that checkout."""
    flags = ["--input_dir", str(runs), "--output", os.devnull]
    ended = subprocess.run(
        [sys.executable, "-c", MEASURED, *flags, "--selection", "iid"],
        env=os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
        cwd=checkout,
        check=True,
        capture_output=True,
        text=True,
    )
    cpu, memory = json.loads(ended.stderr.splitlines()[-1])
    return {"cpu_seconds": round(cpu, 1), "peak_gb": round(memory, 2)}


def main(argv: list[str] | None = None) -> None:
    parser = options(__file__, __doc__, threads=False)
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--against", default="671e761", help="a commit")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        old, runs = Path(folder) / "old", Path(folder) / "runs"
        runs.mkdir()
        command = ["git", "-C", str(ROOT), "archive", args.against]
        tar = subprocess.run(command, check=True, capture_output=True).stdout
        with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
            archive.extractall(old, filter="data")
        n = write_runs(runs, args.runs)
        before, now = measured(old, runs), measured(ROOT, runs)
    ratios = {f"{name}_ratio": round(now[name] / before[name], 2) for name in now}
    result = {"runs": n, "checkpoints": n * len(CHECKPOINTS), "against": args.against}
    report(result | {"before": before, "now": now} | ratios, args.output)


if __name__ == "__main__":
    main()
