"""The whole embedded few-shot grid with the launcher `pool`, from an empty data folder.

    python benchmarks/few_shot_grid.py      # writes few_shot_grid.json beside it

EmojiDG, each house in turn the source, and EmojiHouses; 1, 2, 4, 8 and 16 shots, 3
trials; the ten methods that train without a gradient through a tower, and zero-shot
CLIP: 825 runs. Unpacking, features, training, evaluation and all that a run leaves are
counted. Beside the seconds stand those that the processes computed, on all cores
together: on a shared machine they are the fairer figure.
"""

import os
import tempfile
from pathlib import Path

import psutil
from common import options, report

from domainbed import command_launchers
from domainbed.runs.jobs import Job, make_few_shot_args_list
from domainbed.tables.costs import seconds

METHODS = "ZeroShotCLIP LinearProbeCLIP LFA CLIPAdapter TipAdapter TipAdapterF TaskRes"
METHODS += " LPPlusPlus CLAP GDA ProLIP"


def jobs_of(folder: Path, shots: list[int], trials: int) -> list[Job]:
    """The grid's jobs, their folders made."""
    args_list = make_few_shot_args_list(
        shots=shots,
        classes="all",
        transfer_to=None,
        n_trials=trials,
        dataset_names=["EmojiDG", "EmojiHouses"],
        algorithms=METHODS.split(),
        n_hparams_from=0,
        n_hparams=1,
        steps=None,
        data_dir=str(folder / "data"),
        hparams=None,
    )
    jobs = [Job(args, str(folder / "sweep")) for args in args_list]
    for job in jobs:
        Path(job.output_dir).mkdir(parents=True)
    return jobs


def computed() -> float:
    """Seconds that this process's children, and theirs, have computed, all together."""
    return sum(sum(child.cpu_times()[:4]) for child in psutil.Process().children())


def main(argv: list[str] | None = None) -> None:
    parser = options(__file__, __doc__, threads=False)
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--trials", type=int, default=3)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        jobs = jobs_of(Path(folder), args.shots, args.trials)
        launch, load = command_launchers.get_launcher("pool"), os.getloadavg()[0]
        statuses: list[int] = []
        commands = [job.command_str for job in jobs]
        taken = seconds(lambda: statuses.extend(launch(commands)))
        failed = [job for job in jobs if job.state != Job.DONE]
        assert not failed, [
            (str(j), j.folder.state, j.folder.last_error()) for j in failed
        ]
        assert not any(statuses)
    result = {
        "runs": len(jobs),
        "seconds": round(taken),
        "computed_seconds": round(computed()),
        "load_before": round(load, 1),
    }
    report(result, args.output)


if __name__ == "__main__":
    main()
