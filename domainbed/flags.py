"""The flags of a run: what `scripts.train` takes, and what of it a sweep passes on."""

import argparse

from domainbed.hparams_registry import as_json
from domainbed.lib.paths import user_path
from domainbed.lib.precision import PRECISIONS
from domainbed.lib.progress import add_quiet
from domainbed.tasks import TASKS

EVAL_HELP = (
    "chosen: at a checkpoint only what training-domain validation and the oracle need; "
    "leave-one-domain-out needs all"
)
HPARAMS_HELP = "overrides: a JSON object, @FILE with one, or name=value ..."


def run_flags() -> argparse.ArgumentParser:
    """What a sweep takes, too, and passes on to each of its runs."""
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument
    add("--checkpoint_freq", type=int, help="steps between evaluations")
    add("--uda_holdout_fraction", type=float, default=0)
    add("--num_workers", type=int, help="processes that load images; default: by cores")
    add(
        "--allow_missing_classes",
        action="store_true",
        help="environments may lack a class that others have",
    )
    add(
        "--feature_dir",
        type=user_path,
        help="stored layer features; default: DATA_DIR/features",
    )
    add("--no_feature_store", action="store_true", help="compute features every time")
    add(
        "--strict_fingerprint",
        action="store_true",
        help="know images by their content, not by their size and time of change",
    )
    add("--precision", default="float32", choices=PRECISIONS, help="of the towers")
    add("--eval", default="all", choices=["all", "chosen"], help=EVAL_HELP)
    add("--no_tensorboard", action="store_true", help="write no curves")
    add("--no_predictions", action="store_true", help="store no answers to images")
    add("--no_resume", action="store_true", help="start over, forget what is there")
    add("--skip_model_save", action="store_true")
    add("--save_model_every_checkpoint", action="store_true")
    return parser


def parse_args(
    argv: list[str] | None, usage: str | None = None, description: str | None = None
) -> argparse.Namespace:
    """The arguments of one run, which `scripts.train` is told on its command line."""
    parser = argparse.ArgumentParser(
        prog="train", usage=usage, description=description, parents=[run_flags()]
    )
    add = parser.add_argument
    add(
        "--data_dir", type=user_path, help="the folder that holds the datasets' folders"
    )
    add("--dataset", default="RotatedMNIST")
    add("--algorithm", default="ERM")
    add("--task", default="domain_generalization", choices=[*TASKS])
    add("--hparams", nargs="+", help=HPARAMS_HELP)
    add("--hparams_seed", type=int, default=0, help="0: defaults, else a random draw")
    add("--trial_seed", type=int, default=0, help="seeds the splits")
    add("--seed", type=int, default=0, help="seeds everything else")
    add("--steps", type=int, help="default: the dataset's")
    add("--test_envs", nargs="+", default=[0], help="by number or name, or none")
    few_shot = {"default": argparse.SUPPRESS}  # these arguments are of that task alone
    add("--shots", type=int, help="few_shot: K of each class", **few_shot)
    add("--classes", choices=["all", "base"], help="few_shot: that train", **few_shot)
    add("--source", help="few_shot: the domain of the shots", **few_shot)
    add("--transfer_to", nargs="+", help="few_shot: further datasets", **few_shot)
    add("--output_dir", type=user_path, default="train_output")
    add("--holdout_fraction", type=float, default=0.2)
    add_quiet(parser)
    args = parser.parse_args(argv)
    args.hparams = as_json(args.hparams)
    return args


def run_args(args: argparse.Namespace) -> argparse.Namespace:
    """The arguments of a run: what these say of them, else as by default."""
    run = parse_args([])
    for name in vars(run).keys() & vars(args).keys():
        setattr(run, name, getattr(args, name))
    return run
