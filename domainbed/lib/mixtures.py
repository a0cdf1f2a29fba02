"""What the runs of one table have not in common, from the run.json of each."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from domainbed.lib.identity import differences, identity
from domainbed.lib.query import Q
from domainbed.lib.reporting import is_dir, listed, printable

EVERYWHERE = ("torch version", "domainbed version", "git state", "device")
ARGS = ("dataset", "trial_seed", "test_envs")
OF_FEW_SHOT = ("shots", "classes", "source", "transfer_to")  # what is drawn, and tested


def facts_of(*paths: str | Path) -> dict[Path, dict[str, str] | None]:
    """What each run in the folders was made from, as `read_facts` has it."""
    folders = [f for path in paths for f in sorted(Path(path).glob("*")) if is_dir(f)]
    folders = [folder for folder in folders if (folder / "results.jsonl").exists()]
    return {folder: read_facts(folder) for folder in folders}


def mixtures(made: dict[Path, dict[str, str] | None]) -> Iterator[str]:
    """A warning for each of `facts_of` in which runs differ that one table has.

    The data's fingerprint is compared within a dataset, a split's digest within
    (dataset, trial_seed, test_envs), the others over all runs. Few-shot runs of one
    dataset have the images of their own shots.
    """
    runs = [run for run in made.values() if run]
    if 0 < len(runs) < len(made):
        yield (
            f"warning: {len(made) - len(runs)} of {len(made)} runs do not say "
            "what they were made from: run.json is missing or broken"
        )
    for name in EVERYWHERE:
        yield from mixed(name, (run[name] for run in runs))
    data, splits = defaultdict(list), defaultdict(lambda: defaultdict(list))
    for run in runs:
        cell = f"trial {run['trial_seed']}, test environments {run['test_envs']}"
        cell += run["drawn"]
        place = f"{run['dataset']} in {cell}" if run["drawn"] else run["dataset"]
        data[place].append(run["fingerprint"])
        splits[run["dataset"]][cell].append(run["split"])
    for dataset, fingerprints in data.items():
        yield from mixed(f"data of {dataset}", fingerprints)
    for dataset, cells in splits.items():
        texts = [
            text
            for cell, digests in cells.items()
            for text in mixed(f"splits of {dataset} in {cell}", digests)
        ]
        if texts:
            more = f"; so do {len(texts) - 1} others" if len(texts) > 1 else ""
            yield texts[0] + more


def same_draws(records: Q) -> Iterator[str]:
    """A warning, with the difference, of runs that a table takes for one.

    These are runs of one draw and trial that are no copies: the best step of all wins.
    Few-shot tables have rows of their own for what chose as its release does.
    """
    names = ("dataset", "algorithm", "test_envs", "trial_seed", "hparams_seed")
    runs: dict[tuple, list[dict]] = defaultdict(list)
    last = None
    for record in records:
        args = record["args"]
        if args is not last:  # a run's records share them
            facts = identity(args)
            cell = tuple(str(facts[name]) for name in names)
            shots = drawn(args)
            apart = shots and record.get("hparams", {}).get("as_published", False)
            own = runs[(*cell, shots, apart)]
            if not any(not differences(args, other) for other in own):
                own.append(args)
            last = args
    texts = []
    for (dataset, algorithm, test_envs, trial, draw, *_), own in runs.items():
        if len(own) > 1:
            changes = ", ".join(differences(own[0], own[1]))
            where = f"{dataset}, {algorithm}, test environments {test_envs}"
            texts.append(f"{where}, trial {trial}, draw {draw}: {changes}")
    if texts:
        yield (
            f"warning: {len(texts)} draws have several runs that count as one, the "
            f"best step of all: {listed(texts, most=2)}"
        )


def read_facts(folder: Path) -> dict[str, str] | None:
    """What run.json says of the run, None if that is not whole."""
    try:
        about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        # What it is made of; older versions knew of one attempt only.
        attempts = about.get("attempts", [about])

        def over(fact: Callable[[dict], object]) -> str:
            return " then ".join(dict.fromkeys(str(fact(own)) for own in attempts))

        facts = {
            "torch version": over(lambda own: own["versions"]["torch"]),
            "domainbed version": over(lambda own: own["versions"]["domainbed"]),
            "git state": over(lambda own: own["git"]),
            "device": over(lambda own: own["device"]),
            "fingerprint": about["dataset"],
            "split": about["split"],
            "backbone": about.get("backbone", ""),
            **{name: about["args"][name] for name in ARGS},
            "drawn": drawn(about["args"]),
        }
        return {name: str(value) for name, value in facts.items()}
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RecursionError,
    ):
        return None


def drawn(args: dict[str, Any]) -> str:
    """Which shots a few-shot run has; "" of other runs."""
    return "".join(f", {name} {args[name]}" for name in OF_FEW_SHOT if args.get(name))


def mixed(name: str, values: Iterable[str]) -> Iterator[str]:
    """A warning that names the values, most frequent first, if they differ."""
    counts = Counter(values)
    if len(counts) > 1:
        found = [f"{value} ({n} runs)" for value, n in counts.most_common()]
        yield f"warning: runs differ in {printable(name)}: {listed(found)}"
