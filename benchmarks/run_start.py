"""From a job's start to its first step: 600,300 images, 345 classes, features stored.

    python benchmarks/run_start.py         # writes run_start.json beside it

Six domains of empty files, a CLIP of ViT-B/16's sizes and features of it, 11 GB, that
are made up: a file with holes, which takes no space. LFA starts in a process of its
own, twice; then in `pool`, one run after another, the first of which waits for what
`pool` reads; then in several children of `pool` at once. Each is measured after its
first step: seconds since it was started, its resident memory (RSS), and its share of
that where each page is divided among those who have it (PSS).
"""

import argparse
import json
import multiprocessing
import os
import shlex
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from common import options, report, save_random_vit

from domainbed import datasets, training
from domainbed.backbones import load_clip
from domainbed.features.entries import key_of
from domainbed.features.store import describe
from domainbed.launchers import forks
from domainbed.scripts import train

DOMAINS = ("clip", "info", "paint", "quick", "real", "sketch")
LAYERS, WIDTH = 12, 768


class Started(Exception):
    """The first step has been taken."""


def make_images(folder: Path, classes: int, images: int) -> None:
    """folder/domain/class/ with so many empty files, in all DOMAINS and classes."""
    for domain in DOMAINS:
        for c in range(classes):
            place = folder / domain / f"class_{c:03}"
            place.mkdir(parents=True)
            for i in range(images):
                os.close(os.open(place / f"{i:06}.jpg", os.O_CREAT | os.O_WRONLY))


def make_features(data: Path, clip: Path) -> None:
    """Entries of the feature store, as an extraction would leave them, of zeros."""
    hparams = {"data_augmentation": True, "clip_transform": True}
    hparams["clip_backbone"] = str(clip)
    dataset = datasets.get_dataset_class(f"ImageFolder:{data}/images")(
        None, [0], hparams
    )
    backbone = load_clip(str(clip))
    for i in range(len(dataset)):
        environment = dataset.unaugmented(i)
        facts = describe(environment, backbone, "float16")
        entry = data / "features" / key_of(facts)
        entry.mkdir(parents=True)
        shape = (len(environment), LAYERS, WIDTH)
        np.lib.format.open_memmap(entry / "z.npy", "w+", "float16", shape)
        np.save(entry / "y.npy", np.asarray(environment.targets, np.int64))
        (entry / "facts.json").write_text(json.dumps(facts))


def memory() -> dict[str, int]:
    """MB of this process, by the kernel's count."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    sizes = {line.split(":")[0]: line.split()[1] for line in lines[1:]}
    return {f"{name.lower()}_mb": int(sizes[name]) // 1024 for name in ("Rss", "Pss")}


def first_step(argv: list[str], started: float, to: str, n: int = 1) -> None:
    """Start that run and write to the file what its first step took, once n have."""
    warnings.simplefilter("ignore")
    update = training.Run.update

    def step(self: training.Run, *args: object) -> None:
        update(self, *args)
        taken = {"seconds": round(time.time() - started, 2)}
        taken["cpu_seconds"] = round(time.process_time(), 2)
        Path(to).write_text("{}")
        while len([*Path(to).parent.iterdir()]) < n:  # siblings are to be alive
            time.sleep(0.1)
        time.sleep(1 if n > 1 else 0)
        Path(to).write_text(json.dumps(taken | memory()))
        time.sleep(2 if n > 1 else 0)
        raise Started

    training.Run.update = step
    with open(os.devnull, "w") as nowhere:
        sys.stdout = nowhere
        try:
            training.Run(train.parse_args(argv)).train()
        except Started:
            os._exit(0)


def alone(argv: list[str], to: Path) -> dict[str, float]:
    """A process of its own, from its first moment on."""
    command = [sys.executable, __file__, "--run", json.dumps(argv), "--output", str(to)]
    subprocess.run([*command, "--started", str(time.time())], check=True)
    return json.loads(to.read_text())


def in_pool(argvs: list[list[str]], folder: Path) -> list[dict]:
    """Children of `pool`, all at once."""
    folder.mkdir()
    children = []
    for i, argv in enumerate(argvs):
        args = (argv, time.time(), str(folder / str(i)), len(argvs))
        children.append(forks.start(first_step, *args))
    assert not any(map(forks.wait, children))
    return [json.loads((folder / str(i)).read_text()) for i in range(len(argvs))]


def main(argv: list[str] | None = None) -> None:
    parser = options(__file__, __doc__, threads=False)
    parser.add_argument("--classes", type=int, default=345)
    parser.add_argument("--images", type=int, default=290, help="a class and domain")
    parser.add_argument("--siblings", type=int, default=4)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.run:
        first_step(json.loads(args.run), args.started, str(args.output))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, clip = folder / "data", folder / "ViT-B-16.pt"
        make_images(data / "images", args.classes, args.images)
        save_random_vit(clip)
        # So that the features' memory is not taken for this process's.
        making = multiprocessing.get_context("spawn").Process(
            target=make_features, args=(data, clip)
        )
        making.start()
        making.join()
        assert not making.exitcode
        hparams = json.dumps({"clip_backbone": str(clip)})

        def flags(i: int) -> list[str]:
            own = ["--dataset", f"ImageFolder:{data}/images", "--algorithm", "LFA"]
            own += ["--data_dir", str(data), "--hparams", hparams, "--seed", str(i)]
            return [*own, "--output_dir", str(folder / f"run{i}")]

        for i in range(16):
            (folder / f"run{i}").mkdir()
        result = {"images": len(DOMAINS) * args.classes * args.images}
        result["load_average"] = round(os.getloadavg()[0], 1)
        result["alone"] = [alone(flags(i), folder / f"alone{i}") for i in range(2)]
        command = ["python", "-m", "domainbed.scripts.train", *flags(2)]
        forks.start_server([shlex.join(command)])
        result["pool"] = [
            in_pool([flags(2 + i)], folder / f"pool{i}")[0] for i in range(3)
        ]
        siblings = [flags(8 + i) for i in range(args.siblings)]
        result["siblings"] = in_pool(siblings, folder / "siblings")
    report(result, args.output)


if __name__ == "__main__":
    main()
