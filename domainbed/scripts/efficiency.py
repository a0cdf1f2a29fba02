"""Measure what each method costs: trainable parameters, peak memory, seconds.

The efficiency table of the LFA paper, from images and from the feature store, as text,
LaTeX and JSON.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from domainbed import datasets, flags, hparams_registry
from domainbed.algorithms import get_algorithm_class, reads_stored
from domainbed.arguments import environment_numbers, resolve_hparams
from domainbed.lib import misc
from domainbed.lib.children import in_child
from domainbed.lib.errors import (
    InputError,
    check_at_least,
    did_you_mean,
    exits_on_input_error,
)
from domainbed.lib.paths import output_folder, user_path
from domainbed.lib.progress import add_quiet
from domainbed.runs import provenance
from domainbed.tables.costs import SOURCES, extract, measure

# The paper's batch; and what QLoRALFA's first stage has learnt changes no cost.
HPARAMS = {"batch_size": 32, "qlora_run": "none"}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="efficiency",
        usage="python -m domainbed.scripts.efficiency --algorithms LFA DPLCLIP \\\n"
        "           --dataset EmojiDG --data_dir data",
        description=__doc__,
    )
    add = parser.add_argument
    add("--algorithms", nargs="+", required=True)
    add("--dataset", required=True)
    add(
        "--data_dir", type=user_path, help="the folder that holds the datasets' folders"
    )
    add("--hparams", nargs="+", help=f"{flags.HPARAMS_HELP}; for those that have them")
    add("--steps", type=int, default=300, help="of training; default: 300")
    add("--test_envs", nargs="+", default=[0], help="by number or by name")
    add("--num_workers", type=int, help="processes that load images; default: by cores")
    add(
        "--feature_dir",
        type=user_path,
        help="stored layer features; default: DATA_DIR/features",
    )
    add(
        "--output_dir",
        type=user_path,
        default="efficiency_output",
        help="for efficiency.{txt,tex,json}",
    )
    add_quiet(parser)
    args = parser.parse_args(argv)
    args.hparams = hparams_registry.as_json(args.hparams)
    return args


def runs_of(args: argparse.Namespace) -> dict[str, argparse.Namespace]:
    """The arguments of each algorithm's run; InputError for what no run could take.

    A run gets those hyperparameters that its algorithm has.
    """
    asked = hparams_registry.parse_hparams(args.hparams)
    runs, known = {}, {"class_names"}
    for algorithm in args.algorithms:
        own = {
            "class_names",
            *hparams_registry.default_hparams(algorithm, args.dataset),
        }
        hparams = {k: v for k, v in (HPARAMS | asked).items() if k in own}
        hparams_registry.check_hparams(algorithm, args.dataset, hparams)
        run = flags.run_args(args)
        run.algorithm, run.hparams = algorithm, json.dumps(hparams)
        runs[algorithm] = run
        known |= own
    for name in asked.keys() - known:
        raise InputError(
            f"{', '.join(runs)}: none has a hyperparameter {name!r}."
            + did_you_mean(name, known)
        )
    return runs


def count_items(args: argparse.Namespace) -> int:
    """How many the dataset has; InputError if it is not there.

    Without CLIP's transform: CLIP would be read for it, and see `in_child`.
    """
    hparams = hparams_registry.default_hparams(args.algorithms[0], args.dataset)
    hparams["clip_transform"] = False
    dataset_class = datasets.get_dataset_class(args.dataset)
    return sum(map(len, dataset_class(args.data_dir, args.test_envs, hparams)))


def sources_of(run: argparse.Namespace) -> dict[str, argparse.Namespace | None]:
    """The run on each of SOURCES; None where its method cannot read that."""
    hparams = resolve_hparams(run)
    reads = reads_stored(get_algorithm_class(run.algorithm), hparams)
    on_images = argparse.Namespace(**vars(run) | {"no_feature_store": True})
    return {
        "images": on_images if hparams.get("input", "images") == "images" else None,
        "store": run if reads else None,
    }


def measure_all(runs: dict[str, argparse.Namespace]) -> dict[str, Any]:
    """The machine's name and the figures of every method.

    `extraction_seconds` is what it takes to store a method's features. Those that an
    earlier method, or an earlier command, has stored take next to nothing.
    """
    report = {"machine": None, "methods": []}
    for name, run in runs.items():
        method = {"algorithm": name, "parameters": None, "extraction_seconds": None}
        for source, own in sources_of(run).items():
            if not run.quiet:
                print(f"{name} {SOURCES[source]} ...", file=sys.stderr)
            if source == "store" and own:
                # Apart, or the memory that it takes would count. If it fails, so does
                # the measurement, which says why.
                seconds = in_child(extract, own)
                if isinstance(seconds, float):
                    method["extraction_seconds"] = seconds
            figures = in_child(measure, own) if own else None
            if figures and "error" not in figures:
                report["machine"] = figures.pop("machine")
                method["parameters"] = figures.pop("parameters")
            method[source] = figures
        report["methods"].append(method)
    return report


def write(report: dict[str, Any], folder: Path) -> None:
    """Print the table and write it in three forms."""
    # Loaded now: the processes that measure would count pandas into their memory.
    from domainbed.tables.efficiency import as_latex, as_text

    text = as_text(report)
    print(text, end="")
    try:
        misc.write_whole(folder / "efficiency.txt", text)
        misc.write_whole(folder / "efficiency.tex", as_latex(report))
        as_json = json.dumps(report, indent=1) + "\n"
        misc.write_whole(folder / "efficiency.json", as_json)
    except OSError as error:
        raise InputError(f"cannot write to --output_dir {folder}: {error}") from None


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_at_least(args, steps=1, num_workers=0)
    dataset = datasets.get_dataset_class(args.dataset)
    args.test_envs = environment_numbers(
        args.test_envs, dataset.ENVIRONMENTS, dataset.KNOWN_AS
    )
    runs = runs_of(args)
    asked = hparams_registry.parse_hparams(args.hparams)
    report = {
        "dataset": args.dataset,
        "items": count_items(args),
        "test_envs": args.test_envs,
        "steps": args.steps,
        "batch_size": (HPARAMS | asked)["batch_size"],
        "hparams": asked,
        "versions": provenance.versions(),
    }
    folder = output_folder(args.output_dir)
    report |= measure_all(runs)
    write(report, folder)
    if any("error" in (m[s] or {}) for m in report["methods"] for s in SOURCES):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
