"""Whether a tortured sweep found what an undisturbed one has found."""

import contextlib
import io
import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from domainbed.scripts import collect_results
from tools.torture.blows import KILLS, KINDS
from tools.torture.sweep import Sweep


def judge(whole: Sweep, tortured: Sweep) -> Counter:
    """How many records are lost, double and unequal, and other files unequal."""
    faults = Counter(lost=0, double=0, unequal=0)
    for folder, other in zip(whole.folders, tortured.folders, strict=True):
        expected, found = records(folder), records(other)
        for step, lines in expected.items():
            own = found.pop(step, [])
            faults["lost"] += not own
            faults["double"] += len(own) > 1
            faults["unequal"] += any(line != lines[0] for line in own)
        faults["unequal"] += len(found)  # steps that nobody asked for
        faults["lost"] += not (other / "done").exists()
        pair = (folder / "predictions.npz", other / "predictions.npz")
        faults["unequal"] += not same_bytes(*pair)
    faults["unequal"] += tables(whole.output) != tables(tortured.output)
    return faults


def records(folder: Path) -> dict[int, list[str]]:
    """The lines of results.jsonl by step, without what two equal runs differ in."""
    found: dict[int, list[str]] = {}
    with contextlib.suppress(FileNotFoundError):
        for line in (folder / "results.jsonl").read_text().splitlines():
            record = json.loads(line)
            del record["step_time"], record["mem_gb"]
            del record["args"]["output_dir"], record["args"]["feature_dir"]
            found.setdefault(record["step"], []).append(json.dumps(record))
    return found


def same_bytes(one: Path, other: Path) -> bool:
    return other.exists() and one.read_bytes() == other.read_bytes()


def tables(folder: Path) -> str:
    """What collect_results says of the sweep."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        collect_results.main(["--input_dir", str(folder)])
    return said.getvalue().replace(str(folder), "FOLDER")


def report(rounds: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """All rounds together."""
    blows, faults = Counter(), Counter()
    for each in rounds:
        blows.update(each["blows"])
        faults.update(each["faults"])
    taken = {
        kind: sorted(s for each in rounds for k, s in each["recoveries"] if k == kind)
        for kind in KINDS
    }
    return {
        "seed": seed,
        "rounds": len(rounds),
        "locks": Counter(each["locks"] for each in rounds),
        "kills": sum(blows[kind] for kind in KILLS),
        "blows": blows,
        "faults": faults,
        "seconds_to_recover": {
            kind: {
                "median": round(statistics.median(own), 1),
                "longest": round(own[-1], 1),
            }
            for kind, own in taken.items()
            if own
        },
        "minutes": round(sum(each["seconds"] for each in rounds) / 60, 1),
        "processor_minutes": round(
            sum(each["processor_seconds"] for each in rounds) / 60, 1
        ),
    }
