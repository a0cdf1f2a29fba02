"""What tests share: small data folders, the contract's sweeps, runs to compare."""

import argparse
import contextlib
import gzip
import json
import random
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from domainbed import datasets
from domainbed.datasets_few_shot import Shots

CONTRACT = Path(__file__).parent / "golden" / "contract"


def make_image_folder(
    root: Path, environments: list[str], classes: list[str], n: int = 5
) -> Path:
    """root/environment/class/i.png, n random 24 x 20 pictures in each class."""
    rng = np.random.RandomState(0)
    for environment in environments:
        for name in classes:
            folder = root / environment / name
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = rng.randint(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def picture(path):
    """20 x 20 random pixels, those of its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.RandomState(zlib.crc32(path.name.encode()))
    Image.fromarray(rng.randint(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)


def pets(root, counts=(6, 5, 4), **changes):
    """A tiny OxfordPets: so many images of three classes to train, validate, test."""
    content = {}
    for part, n in zip(("train", "val", "test"), counts, strict=True):
        rows = [
            [f"{name}_{part}_{i}.jpg", y, name]
            for i in range(n)
            for y, name in enumerate(["abyssinian", "beagle", "persian_cat"])
        ]
        random.Random(0).shuffle(rows)
        content[part] = rows
        for path, _, _ in rows:
            picture(root / "oxford_pets" / "images" / path)
    content |= changes
    split = root / "oxford_pets" / "split_zhou_OxfordPets.json"
    split.write_text(json.dumps(content))
    return content


def few_shot_args(root, dataset="OxfordPets", **changed):
    """What of a few-shot run's arguments its dataset reads."""
    values = {"dataset": dataset, "data_dir": str(root), "shots": 2, "classes": "all"}
    values |= {"transfer_to": None, "source": None, "trial_seed": 0} | changed
    return argparse.Namespace(**values)


def shots(root, dataset="OxfordPets", hparams=None, **changed):
    """A few-shot run's environments, as the emoji CLIP sees them."""
    cls = datasets.get_dataset_class(dataset)
    return Shots(cls, few_shot_args(root, dataset, **changed), CLIP | (hparams or {}))


def few_shot_run(
    folder, dataset, algorithm, accs, trial=0, step=9, val=0.5, noted=None, **changed
):
    """A finished few-shot run with those accuracies of its tests."""
    args = {"dataset": dataset, "algorithm": algorithm, "trial_seed": trial}
    args |= {"hparams_seed": 0, "task": "few_shot", "shots": 4, "classes": "all"}
    args |= {"source": None, "transfer_to": None, "output_dir": str(folder)}
    args |= {"test_envs": [*range(1, len(accs) + 1)]} | changed
    record = {"step": step, "args": args, "hparams": changed.pop("hparams", {})}
    record |= {f"env{i}_in_acc": acc for i, acc in enumerate(accs, start=1)}
    record |= noted or {}
    record |= {"env0_in_acc": 1.0} | ({} if val is None else {"env0_out_acc": val})
    own = (
        folder
        / f"{Path(dataset).name}{algorithm}{trial}{args['shots']}{args['hparams_seed']}"
    )
    own.mkdir(parents=True, exist_ok=True)
    with open(own / "results.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")
    (own / "done").write_text("done")


def unpacked_sweep(name: str, folder: Path) -> Path:
    """The contract's sample sweep of that name, as result folders."""
    with gzip.open(CONTRACT / f"{name}.json.gz") as file:
        runs = json.load(file)
    for run, text in runs.items():
        (folder / run).mkdir(parents=True)
        (folder / run / "results.jsonl").write_text(text)
        (folder / run / "done").write_text("done")
    return folder


FLAGS = ["--dataset", "Debug28", "--steps", "9", "--checkpoint_freq", "4"]
FLAGS += ["--num_workers", "0"]
# Image folders as the emoji CLIP sees them.
CLIP = {"data_augmentation": True, "clip_transform": True, "clip_backbone": "emoji"}
SMALL = '{"batch_size": 4}'


def write_run(folder, name, **args):
    """A run's record of a half right everywhere, of ERM on PACS but for `args`; `more`
    goes on top.
    """
    args = {
        "trial_seed": 0,
        "dataset": "PACS",
        "algorithm": "ERM",
        "hparams_seed": 0,
        "test_envs": [0],
        "holdout_fraction": 0.2,
        "output_dir": name,
    } | args
    accs = {f"env{i}_{part}_acc": 0.5 for i in range(4) for part in ("in", "out")}
    (folder / name).mkdir(parents=True, exist_ok=True)
    record = {"step": 0, "args": args, "hparams": {}, **accs}
    with open(folder / name / "results.jsonl", "a") as file:
        file.write(json.dumps(record | args.pop("more", {})) + "\n")


def status_of(main, *argv):
    """The exit status of a script's main, 0 if it returned."""
    try:
        main([*map(str, argv)])
    except SystemExit as ended:
        return ended.code
    return 0


def command(folder, *flags, algorithm="LFA"):
    own = [*FLAGS, "--algorithm", algorithm, "--hparams", SMALL]
    return [*own, "--output_dir", str(folder), *flags]


def lines(folder):
    """results.jsonl without what differs between two equal runs."""
    records = []
    for line in (folder / "results.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name in ("step_time", "mem_gb"):
            del record[name]
        del record["args"]["output_dir"]
        records.append(json.dumps(record, sort_keys=True))
    return records


@contextlib.contextmanager
def float64():
    """Everything inside is computed in float64."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


class Interrupted(Exception):
    """What stands for a kill: nothing of the run goes on after it."""
