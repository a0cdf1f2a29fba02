"""What writing for TensorBoard adds to a run: LFA on EmojiDG's stored features.

    python benchmarks/tensorboard_cost.py   # writes tensorboard_cost.json beside it

Of the shortest runs that there are, the quick start's 101 steps and EmojiDG's own 501,
with 11 checkpoints each. `process` is a `train` that begins with importing torch; its
log imports TensorBoard's modules first. `pool` is one that finds all imported, as the
launcher pool's children do. Medians; the log's seconds are those in its methods.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import options, report, seconds

from domainbed.scripts import train
from domainbed.tensorboard_log import TensorBoardLog

RUNS = (101, 501)  # steps


def flags(folder: Path, steps: int, name: str) -> list[str]:
    """What `train` is given."""
    return [
        *("--dataset", "EmojiDG", "--algorithm", "LFA", "--test_envs", "1", "--quiet"),
        *("--steps", str(steps), "--checkpoint_freq", str(steps // 10)),
        *("--data_dir", str(folder / "data"), "--output_dir", str(folder / name)),
    ]


def timed(method: Callable[..., None], spent: list[float]) -> Callable[..., None]:
    """The method; what each call takes is added to `spent`."""

    def wrapped(*args: Any) -> None:
        started = time.perf_counter()
        method(*args)
        spent[-1] += time.perf_counter() - started

    return wrapped


def share(run_s: float, log_s: float) -> dict[str, float]:
    """The seconds, and the part of them that the log takes."""
    return {
        "run_s": round(run_s, 3),
        "log_s": round(log_s, 4),
        "share": round(log_s / run_s, 4),
    }


def main(argv: list[str] | None = None) -> None:
    args = options(__file__, __doc__, repeats=5).parse_args(argv)
    spent: list[float] = [0.0]
    result = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        TensorBoardLog.add = timed(TensorBoardLog.add, spent)
        TensorBoardLog.finish = timed(TensorBoardLog.finish, spent)
        train.main(flags(folder, 101, "warm"))  # stores the features
        first = spent[0]
        for steps in RUNS:
            spent.clear()
            pool, process = [], []
            for i in range(args.repeats):
                spent.append(0.0)
                words = flags(folder, steps, f"pool{steps}_{i}")
                pool.append(seconds(lambda w=words: train.main(w)))
                words = flags(folder, steps, f"process{steps}_{i}")
                command = [sys.executable, "-m", "domainbed.scripts.train", *words]
                process.append(seconds(lambda c=command: subprocess.run(c, check=True)))
            result[steps] = {
                "process": share(statistics.median(process), first),
                "pool": share(statistics.median(pool), statistics.median(spent)),
            }
    report({"steps": result}, args.output)


if __name__ == "__main__":
    main()
