"""Records: what runs wrote to results.jsonl, read back and put into groups."""

import functools
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from domainbed.lib.identity import identity
from domainbed.lib.query import Q

HALF = re.compile("[\ud800-\udfff]")  # of a character, which cannot be printed
DEPTH = 20  # of lists and objects in each other; no run writes so many
# What may be said of the folders read: how many of what, where.
BROKEN = "warning: {} broken records left out: {}"
REPEATED = "warning: {} runs have records of one step twice, the last count: {}"
COPIED = "{} runs stand in several folders and count once: {}"
DIVERGED = "warning: {} runs diverged (their records hold NaN): {}"
EMPTY = "{} folders hold no records: {}"
FAULTS = "what is wrong with the broken records"
PROBLEMS = (BROKEN, FAULTS, REPEATED, COPIED, DIVERGED, EMPTY)
NUMBERED = re.compile("(?:fd_)?env(?:0|[1-9][0-9]{0,5})_(?:in|out|uda)_acc")
ACCURACY = re.compile(r"(?:fd_)?env(.*)_(?:in|out|uda)_acc", re.DOTALL)


def load_records(path: str | Path, *more: str | Path) -> Q:
    """The records of every run in the folders, run by run in sorted order.

    What cannot be read is left out, and standard error says how much and where. A run,
    known by those args that change its numbers, counts once: its longest copy; of a
    step twice in a file, the last. A record that holds NaN has NaN accuracies: its
    model's answers are none.
    """
    return records_of(load_runs(path, *more))


def records_of(runs: Iterable[tuple[Path, Q]]) -> Q:
    """The records of `load_runs`, run by run."""
    return Q(record for _, run in runs for record in run)


def load_runs(*paths: str | Path) -> list[tuple[Path, Q]]:
    """As `load_records`, (folder, records) of every run."""
    runs: dict[str, tuple[Path, dict[float, dict]]] = {}  # by identity, then by step
    problems: dict[str, list[str]] = {text: [] for text in PROBLEMS}
    folders = [f for p in paths for f in sorted(Path(p).glob("*")) if is_dir(f)]
    folders = [f for f in folders if f.name != "slurm"]  # that launcher's own
    for folder in tqdm(folders, disable=not sys.stderr.isatty(), leave=False):
        read: dict[str, dict[float, dict]] = {}
        for key, record in read_records(folder, problems):
            read.setdefault(key, {})[record["step"]] = record
        for key, steps in read.items():
            if key in runs:
                problems[COPIED].append(str(folder))
            if key not in runs or len(steps) > len(runs[key][1]):
                runs[key] = folder, steps
    faults = Counter(problems.pop(FAULTS))
    for text, places in problems.items():
        if places:
            said = text.format(len(places), listed(places))
            if text == BROKEN and faults:
                said += f": {listed(f'{fault} ({n})' for fault, n in faults.items())}"
            print(said, file=sys.stderr)
    return [(folder, Q(steps.values())) for folder, steps in runs.values()]


def read_records(
    folder: Path, problems: dict[str, list[str]]
) -> list[tuple[str, dict[str, Any]]]:
    """(identity, record) of each in the folder; to `problems` goes where it has any."""
    file = folder / "results.jsonl"
    try:
        lines = read_lines(file)
    except OSError as error:
        problems[BROKEN].append(f"{file} ({error.strerror})")
        return []
    records = []
    for number, line in lines.items():
        try:
            record = parse(line)
            records.append({sys.intern(key): value for key, value in record.items()})
        except ValueError as error:
            problems[BROKEN].append(f"{file} line {number}")
            problems[FAULTS].append(str(error))
    if not lines:
        problems[EMPTY].append(str(folder))
    for record in records:  # what list_top_hparams shows
        record.setdefault("hparams", {})
        record["args"].setdefault("output_dir", str(folder))
    keyed = [*zip(_identities(records), records, strict=True)]
    if len({(key, record["step"]) for key, record in keyed}) < len(records):
        problems[REPEATED].append(str(folder))
    if any(map(has_diverged, records)):
        problems[DIVERGED].append(str(folder))
    return keyed


def is_dir(path: Path) -> bool:
    """Whether it is a folder that can be looked at."""
    try:
        return path.is_dir()
    except OSError:
        return False


def read_lines(file: Path) -> dict[int, bytes]:
    """The lines that are not blank, by number; none if there is no such file."""
    if not file.exists() and not file.is_symlink():
        return {}
    if file.exists() and not file.is_file():  # a pipe would be waited for
        raise OSError(0, "not a file")
    lines = enumerate(file.read_bytes().split(b"\n"), start=1)
    return {number: line for number, line in lines if line.strip()}


def parse_record(line: str | bytes) -> dict[str, Any] | None:
    """The record on a line of results.jsonl, None if it is not a whole one."""
    try:
        return parse(line)
    except ValueError:
        return None


def first_record(folder: Path) -> dict[str, Any] | None:
    """The first record of a run's folder, None where that is not a whole one."""
    file = folder / "results.jsonl"
    if not file.is_file():
        return None
    with open(file, "rb") as lines:
        return parse_record(lines.readline())


def parse(line: str | bytes) -> dict[str, Any]:
    """The record on a line; ValueError says what is wrong if it is not a whole one."""
    try:
        text = line.decode("utf-8-sig") if isinstance(line, bytes) else line
        record = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("no JSON") from None
    brackets = text.count("{") + text.count("[")
    if brackets > DEPTH and _is_deep(record, DEPTH):
        raise ValueError("objects in objects without end")
    if fault := _fault(record):
        raise ValueError(fault)
    if "\\ud" in text or "\\uD" in text:  # perhaps a name that is in no UTF-8
        whole = json.dumps(record, ensure_ascii=False)
        record = json.loads(HALF.sub(lambda half: f"\\\\u{ord(half[0]):x}", whole))
    if has_diverged(record):
        record |= dict.fromkeys(_accuracies(tuple(record)), math.nan)
    return record


def has_diverged(record: dict[str, Any]) -> bool:
    """Whether a loss, an accuracy or anything else that was logged is NaN."""
    return any(type(value) is float and value != value for value in record.values())


def _fault(record: Any) -> str | None:
    """What keeps it from being a record: what tables need is not there, or of a wrong
    type. None of a whole one.
    """
    if not isinstance(record, dict) or not isinstance(record.get("args"), dict):
        return "no object args"
    args, step = record["args"], record.get("step")
    envs = args.get("test_envs")
    if not (is_number(step) and 0 <= step < math.inf):
        return "step is no number"
    if not (isinstance(envs, list) and envs and all(map(is_count, envs))):
        return "args.test_envs is no list of numbers"
    if not isinstance(args.get("output_dir", ""), str):
        return "args.output_dir is no text"
    if not is_number(args.get("holdout_fraction", 0)):
        return "args.holdout_fraction is no number"
    if not isinstance(record.get("hparams", {}), dict):
        return "hparams is no object"
    for name in ("dataset", "algorithm"):
        if not isinstance(args.get(name), str):
            return f"args.{name} is no text"
    for name in ("trial_seed", "hparams_seed"):
        if not is_count(args.get(name)):
            return f"args.{name} is no whole number"
    for key in _accuracies(tuple(record)):
        if not NUMBERED.fullmatch(key) or not _is_share(record[key]):
            return f"{key} is no share of 1"
    return None


@functools.lru_cache(maxsize=64)
def _accuracies(keys: tuple[str, ...]) -> list[str]:
    """Those of accuracies; all records of a sweep have the same few sets of keys."""
    return [key for key in keys if ACCURACY.fullmatch(key)]


def _is_share(value: Any) -> bool:
    """Whether it is a share of 1 or NaN."""
    return is_number(value) and (value != value or 0 <= value <= 1 + 1e-6)


def _is_deep(value: Any, levels: int) -> bool:
    """Whether lists and objects stand in each other more than so many times."""
    if not isinstance(value, list | dict):
        return False
    inside = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deep(part, levels - 1) for part in inside)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
    return is_number(value) and isinstance(value, int) and value >= 0


def _identities(records: list[dict[str, Any]]) -> Iterator[str]:
    """What each has in common with its run's copies.

    Equal args become one object, so do equal hparams: they are most of what a long
    sweep would hold.
    """
    args, hparams, key = None, None, ""
    for record in records:
        if record["args"] == args:
            record["args"] = args
        else:
            args = record["args"]
            key = json.dumps(identity(args), sort_keys=True)
        if record["hparams"] == hparams:
            record["hparams"] = hparams
        hparams = record["hparams"]
        yield key


def listed(names: Iterable[str], most: int = 5) -> str:
    """The names with commas; of many, the first and how many more."""
    names = [printable(name) for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def printable(text: str) -> str:
    """The text, or with \\n and the like if it would disturb a line or a terminal."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


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
