"""A sweep of 60 LFA jobs on EmojiDG with the launcher `pool` against `local`.

    python benchmarks/pool_sweep.py         # writes pool_sweep.json beside it

15 draws on each of the four test domains, from stored features that are there already.
`local` runs --local_jobs of them, one after another, and is scaled to 60: each of its
jobs takes as long as any other. The jobs have the quick start's 101 steps, and then
EmojiDG's own 501. The results of the jobs that both ran are compared: they are equal.
"""

import json
import tempfile
from pathlib import Path

from common import options, report

from domainbed import command_launchers
from domainbed.runs.jobs import Job, make_args_list
from domainbed.tables.costs import seconds

JOBS, DOMAINS = 60, 4


def jobs_of(folder: Path, launcher: str, steps: int) -> list[Job]:
    """The 60 jobs of a sweep in a folder of its own; data and features are shared."""
    args_list = make_args_list(
        n_trials=1,
        dataset_names=["EmojiDG"],
        algorithms=["LFA"],
        n_hparams_from=0,
        n_hparams=JOBS // DOMAINS,
        steps=steps,
        data_dir=str(folder / "data"),
        task="domain_generalization",
        holdout_fraction=0.2,
        single_test_envs=True,
        hparams=None,
    )
    jobs = [Job(args, str(folder / f"{launcher}{steps}")) for args in args_list]
    for job in jobs:
        Path(job.output_dir).mkdir(parents=True)
    return jobs


def launch(jobs: list[Job], launcher: str) -> float:
    """Seconds that the launcher takes for the jobs."""
    launch = command_launchers.get_launcher(launcher)
    statuses = []
    taken = seconds(lambda: statuses.extend(launch([job.command_str for job in jobs])))
    assert not any(statuses), statuses
    return taken


def accuracies(job: Job) -> list[dict[str, float]]:
    """What the job found at each checkpoint."""
    lines = (Path(job.output_dir) / "results.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in r.items() if k.endswith("_acc")} for r in records]


def compare(folder: Path, steps: int, local_jobs: int) -> dict[str, float]:
    """Seconds of both launchers for 60 jobs of that many steps, and their ratio."""
    pool, local = (jobs_of(folder, name, steps) for name in ("pool", "local"))
    some = local[:: JOBS // local_jobs][:local_jobs]
    taken = {"pool": launch(pool, "pool"), "local": launch(some, "local")}
    pairs = [(p, q) for p, q in zip(pool, local, strict=True) if q in some]
    assert all(accuracies(p) == accuracies(q) for p, q in pairs)
    whole = taken["local"] * JOBS / len(some)
    return {
        "steps": steps,
        "pool_s": round(taken["pool"], 1),
        "local_s": round(whole, 1),
        "local_jobs_run": len(some),
        "times_faster": round(whole / taken["pool"], 1),
    }


def main(argv: list[str] | None = None) -> None:
    parser = options(__file__, __doc__, threads=False)
    parser.add_argument("--local_jobs", type=int, default=12)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        launch(jobs_of(Path(folder), "local", 1)[:1], "local")  # stores the features
        sweeps = [compare(Path(folder), n, args.local_jobs) for n in (101, 501)]
    report({"jobs": JOBS, "sweeps": sweeps}, args.output)


if __name__ == "__main__":
    main()
