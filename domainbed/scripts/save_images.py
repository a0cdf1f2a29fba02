"""Save a few pictures of every environment of every dataset, to look at."""

import argparse

import torch
from torchvision.utils import save_image

from domainbed import datasets
from domainbed.lib.errors import InputError, check_at_least, exits_on_input_error
from domainbed.lib.paths import output_folder, user_path
from domainbed.lib.progress import add_quiet, silenced


def pictures(environment: torch.utils.data.Dataset, n: int) -> torch.Tensor:
    """n images (n, 3, H, W) from 0 to 1, evenly spaced in the environment's order."""
    step = max(1, len(environment) // n)
    x = torch.stack([environment[i][0] for i in range(0, len(environment), step)[:n]])
    x = x[:, [0, min(1, x.shape[1] - 1), x.shape[1] - 1]]  # 1 or 2 channels as 3
    low, high = x.amin((1, 2, 3), True), x.amax((1, 2, 3), True)
    return (x - low) / (high - low).clamp(min=1e-8)  # whatever the normalisation was


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="save_images",
        usage="python -m domainbed.scripts.save_images --data_dir data "
        "--datasets EmojiDG",
        description=__doc__,
    )
    add = parser.add_argument
    add(
        "--data_dir", type=user_path, help="the folder that holds the datasets' folders"
    )
    add("--output_dir", type=user_path, default="save_images_output")
    add("--datasets", nargs="+", help="default: all that are in the data folder")
    add("--n", type=int, default=16, help="pictures of an environment")
    add_quiet(parser)
    args = parser.parse_args(argv)
    check_at_least(args, n=1)
    with silenced(args.quiet):
        save(args)


def save(args: argparse.Namespace) -> None:
    """A file of each environment, with its path printed."""
    folder = output_folder(args.output_dir)
    for name in args.datasets or datasets.DATASETS:
        cls = datasets.get_dataset_class(name)
        try:
            dataset = cls(args.data_dir, [], {"data_augmentation": False})
        except InputError as error:
            if args.datasets:
                raise
            print(f"{name} left out: {error}")
            continue
        for i, environment in enumerate(dataset):
            title = f"{name}_env{i}_{dataset.environment_name(i)}.png"
            path = folder / title.replace("/", "_")
            save_image(pictures(environment, args.n), path, nrow=8)
            print(path)


if __name__ == "__main__":
    main()
