"""Print a method's runs on one test environment, best first, with their hparams."""

import argparse

from domainbed import datasets
from domainbed.arguments import environment_number
from domainbed.lib import reporting
from domainbed.lib.errors import InputError, exits_on_input_error
from domainbed.lib.paths import user_path
from domainbed.lib.progress import add_quiet
from domainbed.lib.query import Q
from domainbed.names import REGISTRY
from domainbed.scripts.collect_results import SELECTION_METHODS, read_sweep
from domainbed.tables import frames


def print_run(run_acc: dict[str, float], records: Q) -> None:
    """One run: its accuracies, its hyperparameters, where it is."""
    print(f"\t{run_acc}")
    print("\t\thparams:")
    for name, value in sorted(records[0]["hparams"].items()):
        print(f"\t\t\t{name}: {value}")
    print("\t\toutput_dirs:")
    for output_dir in sorted(records.select("args.output_dir").unique()):
        print(f"\t\t\t{output_dir}")


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="list_top_hparams",
        usage="python -m domainbed.scripts.list_top_hparams --input_dir demo \\\n"
        "           --dataset EmojiDG --algorithm LFA --test_env 0",
        description=__doc__,
    )
    parser.add_argument("--input_dir", type=user_path, required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--algorithm", required=True)
    parser.add_argument("--test_env", required=True, help="by number or name")
    add_quiet(parser)
    args = parser.parse_args(argv)
    records = reporting.records_of(read_sweep(args.input_dir))
    # What the folder holds need not be registered here: others' results are read too.
    if args.dataset not in records.select("args.dataset"):
        datasets.get_dataset_class(args.dataset)
    if args.algorithm not in records.select("args.algorithm"):
        REGISTRY.find(args.algorithm)
    if not args.quiet:
        print("Total records:", len(records))
    names = frames.environments(args.dataset, records)
    env = args.test_env  # others' datasets have numbers only
    if names:
        env = environment_number(env, names, flag="--test_env")
    elif not env.isdecimal():
        raise InputError(f"--test_env {env} is no number of an environment.")
    wanted = (args.dataset, args.algorithm, int(env))
    groups = reporting.get_grouped_records(records).filter_equals(
        "dataset,algorithm,test_env", wanted
    )
    for method in SELECTION_METHODS:
        print(f"Model selection: {method.name}")
        for group in groups:
            print(f"trial_seed: {group['trial_seed']}")
            for run_acc, run_records in method.hparams_accs(group["records"]):
                print_run(run_acc, run_records)


if __name__ == "__main__":
    main()
