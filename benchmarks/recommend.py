"""`recommend` on a folder of 1,040 pictures, in its budget of ten minutes.

    python benchmarks/recommend.py      # writes recommend.json beside it

The folder is made up: every other emoji of EmojiDG, 4 domains and 17 classes. First a
run of each method is timed in this process, by the processor's time, which other
programs on the machine do not change: what `COSTS` of domainbed/recommend/trials.py are
made from. Then the command itself, by the clock.
"""

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import options, report

from domainbed.datasets_emoji import EmojiDG
from domainbed.lib.pictures import pictures
from domainbed.recommend.trials import CHECKPOINT_FREQ, COSTS, STEPS
from domainbed.scripts import train


def make_folder(folder: Path) -> int:
    """Every other picture of EmojiDG, by domain and class; gives their number."""
    source = EmojiDG.find_folder(str(folder / "emoji"))
    half = pictures(source)[::2]
    for path in half:
        own = folder / "data" / Path(path).relative_to(source)
        own.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, own)
    return len(half)


def seconds_of_a_run(folder: Path, algorithm: str) -> float:
    """Of the processor, for a run as `recommend` has them, its features stored."""
    command = ["--dataset", f"ImageFolder:{folder / 'data'}", "--algorithm", algorithm]
    command += ["--hparams", "clip_backbone=emoji", "--test_envs", "1", "--quiet"]
    command += ["--steps", str(STEPS), "--checkpoint_freq", str(CHECKPOINT_FREQ)]
    command += ["--feature_dir", str(folder / "features"), "--eval", "chosen"]
    command += ["--no_tensorboard", "--skip_model_save", "--no_resume"]
    command += ["--output_dir", str(folder / "run")]
    started = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        train.main(command)
    return time.process_time() - started


def main(argv: list[str] | None = None) -> None:
    parser = options(__file__, __doc__, threads=False)
    parser.add_argument("--budget", default="10m")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        n = make_folder(folder)
        for algorithm in ("ZeroShotCLIP", "Head2Toe"):  # stores both kinds of features
            seconds_of_a_run(folder, algorithm)
        runs = {name: round(seconds_of_a_run(folder, name), 2) for name in COSTS}
        command = [sys.executable, "-m", "domainbed.scripts.recommend"]
        command += ["--data", str(folder / "data"), "--clip_backbone", "emoji"]
        command += ["--budget", args.budget, "--output_dir", str(folder / "out")]
        load, started = os.getloadavg()[0], time.monotonic()
        said = subprocess.run(command, capture_output=True, text=True, check=True)
        taken = time.monotonic() - started
    left_out = re.search(r"Left out for want of time: (.*)\.", said.stdout)
    figures = {
        "pictures": n,
        "budget": args.budget,
        "seconds": round(taken, 1),
        "load_before": round(load, 1),
        "rounds": len({*re.findall(r"^round (\d)", said.stderr, re.MULTILINE)}),
        "left_out": left_out[1].split(", ") if left_out else [],
        "processor_seconds_of_a_run": runs,
        "said": said.stdout.replace(name, "DIR").splitlines(),
    }
    report(figures, args.output)


if __name__ == "__main__":
    main()
