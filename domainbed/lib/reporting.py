"""Records: what runs wrote to results.jsonl, read back and put into groups."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from domainbed.lib.query import Q

KEYS = {"trial_seed", "dataset", "algorithm", "hparams_seed"}  # of a record's args


def load_records(path: str | Path) -> Q:
    """The records of every run in the folder, run by run in sorted order.

    What cannot be read is left out, and standard error says how much and where.
    """
    records, broken = Q(), []
    files = sorted(Path(path).glob("*/results.jsonl"))
    for file in tqdm(files, disable=not sys.stderr.isatty(), leave=False):
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            broken.append(f"{file} ({error})")
            continue
        for number, line in enumerate(lines, start=1):
            record = parse_record(line)
            if record is None:
                broken.append(f"{file} line {number}")
            else:
                records.append(record)
    if broken:
        print(
            f"warning: {len(broken)} broken records left out: {', '.join(broken)}",
            file=sys.stderr,
        )
    return records


def parse_record(line: str) -> dict[str, Any] | None:
    """The record on a line of results.jsonl, None if it is not a whole one."""
    try:
        record = json.loads(line)
        args = record["args"]
        whole = isinstance(args["test_envs"], list) and record["step"] >= 0
        return record if whole and args.keys() >= KEYS else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def get_grouped_records(records: Q) -> Q:
    """A dict for each (trial_seed, dataset, algorithm, test_env), with its `records`.

    A record of two test environments stands in the groups of both.
    """
    pairs = Q(_with_test_envs(records))
    groups = pairs.group(lambda pair: pair[0])
    names = ("trial_seed", "dataset", "algorithm", "test_env")
    return Q(
        dict(zip(names, key, strict=True), records=Q(record for _, record in group))
        for key, group in groups
    )


def _with_test_envs(records: Q) -> Iterator[tuple[tuple, dict]]:
    for record in records:
        args = record["args"]
        for env in args["test_envs"]:
            yield (args["trial_seed"], args["dataset"], args["algorithm"], env), record
