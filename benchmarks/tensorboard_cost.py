"""What writing for TensorBoard adds to a run: LFA on EmojiDG's stored features.

    python benchmarks/tensorboard_cost.py   # writes tensorboard_cost.json beside it

Of the shortest runs that there are, the quick start's 101 steps and EmojiDG's own 501,
with 11 checkpoints each. `process` is a `train` that begins with importing torch; its
log imports TensorBoard's modules first. `pool` is one that finds all imported, as the
launcher pool's children do. Medians; the log's seconds are those in its methods.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from common import options, report

from domainbed import training
from domainbed.runs.tensorboard import TensorBoardLog
from domainbed.scripts import train
from domainbed.tables.costs import seconds

RUNS = (101, 501)  # steps


def flags(folder: Path, steps: int, name: str) -> list[str]:
    """What `train` is given."""
    return [
        *("--dataset", "EmojiDG", "--algorithm", "LFA", "--test_envs", "1", "--quiet"),
        *("--steps", str(steps), "--checkpoint_freq", str(steps // 10)),
        *("--data_dir", str(folder / "data"), "--output_dir", str(folder / name)),
    ]


def train_timed(words: list[str]) -> dict[str, float]:
    """Seconds of a run in this process, and those that its log's methods take."""
    spent = []

    def timed(method: Callable[..., None]) -> Callable[..., None]:
        return lambda *args: spent.append(seconds(lambda: method(*args)))

    class TimedLog(TensorBoardLog):
        add, finish = timed(TensorBoardLog.add), timed(TensorBoardLog.finish)

    training.TensorBoardLog = TimedLog
    run_s = seconds(lambda: train.main(words))
    return {"run_s": run_s, "log_s": sum(spent)}


def train_in_own_process(words: list[str]) -> dict[str, float]:
    """The same of a new process, its start included."""
    command = [sys.executable, __file__, "--train", json.dumps(words)]
    texts = []
    run_s = seconds(lambda: texts.append(subprocess.check_output(command, text=True)))
    return json.loads(texts[0].splitlines()[-1]) | {"run_s": run_s}


def median_of(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median seconds, and the part of them that the log takes."""
    run_s, log_s = (
        statistics.median(run[name] for run in runs) for name in ("run_s", "log_s")
    )
    return {
        "run_s": round(run_s, 3),
        "log_s": round(log_s, 4),
        "share": round(log_s / run_s, 4),
    }


def main(argv: list[str] | None = None) -> None:
    parser = options(__file__, __doc__, repeats=5, threads=False)
    parser.add_argument("--train", help="what `train` is given, as JSON")
    args = parser.parse_args(argv)
    if args.train:
        print(json.dumps(train_timed(json.loads(args.train))))
        return
    ways = {"process": train_in_own_process, "pool": train_timed}
    result = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train_timed(flags(folder, 101, "warm"))  # stores the features, imports all
        for steps in RUNS:
            result[steps] = {
                way: median_of(
                    [
                        run(flags(folder, steps, f"{way}{steps}_{i}"))
                        for i in range(args.repeats)
                    ]
                )
                for way, run in ways.items()
            }
    report({"steps": result}, args.output)


if __name__ == "__main__":
    main()
