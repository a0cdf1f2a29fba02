"""Layer features of an environment, computed once and read by every run.

A frozen CLIP gives an image the same features in every step, run, trial and draw. One
pass writes them to `<feature_dir>/<key>/z.npy`, (N, L, D) in the environment's order;
runs read it by memory map. The key digests all that the features depend on: the
backbone's weights, its transform, the files with their sizes and modification times,
the dtype. Whatever of these changes gives a new entry, so features are never stale.
"""

import errno
import hashlib
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from domainbed.backbones import CLIPBackbone
from domainbed.datasets import ImageEnvironment
from domainbed.lib import misc
from domainbed.lib.errors import InputError

DTYPES = ("float16", "float32")
BATCH = 64  # images; on a CPU larger ones are no faster
FLUSH = 1024  # images at most that an interruption makes one compute again


class StoredFeatures(Dataset):
    """An environment's (z, label) pairs: z (L, D) in float32, whatever is stored.

    `gather(indices)` reads a whole batch, (B, L, D) and (B,), at once.
    """

    def __init__(self, z: np.ndarray, targets: Sequence[int], keys: Sequence[int]):
        self.z, self.targets, self.keys = z, torch.as_tensor(targets), np.asarray(keys)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        z, y = self.gather([index])
        return z[0], int(y[0])

    def gather(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """z (B, L, D) and labels (B,) of the items at these indices."""
        keys = self.keys[np.asarray(indices)]
        return torch.from_numpy(self.z[keys]).float(), self.targets[keys]

    def subset(self, keys: Sequence[int]) -> "StoredFeatures":
        """The items at these indices."""
        return StoredFeatures(self.z, self.targets, self.keys[np.asarray(keys, int)])


def default_feature_dir(data_dir: str | None) -> Path:
    """`features` in the data folder or, where that cannot be written, in the cache."""
    if data_dir is not None and os.access(data_dir, os.W_OK):
        return Path(data_dir) / "features"
    return Path.home() / ".cache" / "domainbed" / "features"


def describe(
    environment: ImageEnvironment, backbone: CLIPBackbone, dtype: str
) -> dict[str, Any]:
    """All that an environment's features depend on, and its folder for the reader."""
    root = Path(environment.root)
    files = hashlib.sha256()
    for name, _ in environment.samples:
        path = Path(name)
        facts = path.stat()
        line = f"{path.relative_to(root)} {facts.st_size} {facts.st_mtime_ns}\n"
        files.update(line.encode())
    return {
        "backbone": backbone.fingerprint,
        # A function's repr ends in its address, another one in every process.
        "transform": re.sub(" at 0x[0-9a-f]+", "", repr(environment.transform)),
        "files": files.hexdigest(),
        "images": len(environment),
        "dtype": dtype,
        "folder": str(root.resolve()),
    }


def open_features(
    environment: ImageEnvironment,
    backbone: CLIPBackbone,
    feature_dir: Path,
    dtype: str = "float16",
    num_workers: int = 0,
) -> StoredFeatures:
    """The environment's stored features, extracted first if there are none.

    One process extracts, others wait for it; an interrupted extraction continues.
    """
    if dtype not in DTYPES:
        raise InputError(
            f"feature_dtype is {dtype!r}; it can be {' or '.join(DTYPES)}."
        )
    facts = describe(environment, backbone, dtype)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    entry = feature_dir / digest.hexdigest()[:16]
    try:
        if not entry.exists():
            feature_dir.mkdir(parents=True, exist_ok=True)
            with locked(entry):
                if not entry.exists():
                    extract(environment, backbone, facts, entry, num_workers)
        z = np.load(entry / "z.npy", mmap_mode="r")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT):
            raise
        raise InputError(
            f"cannot store layer features in {feature_dir} ({error.strerror}); name "
            "another folder with --feature_dir or compute them anew in every run with "
            "--no_feature_store."
        ) from error
    return StoredFeatures(z, environment.targets, range(len(environment)))


def locked(entry: Path) -> FileLock:
    """The held lock of an entry; says so when it has to wait for another process."""
    lock = FileLock(f"{entry}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for the process that writes {entry}", file=sys.stderr)
        lock.acquire()
    return lock


@torch.no_grad()
def extract(
    environment: ImageEnvironment,
    backbone: CLIPBackbone,
    facts: dict[str, Any],
    entry: Path,
    num_workers: int,
) -> None:
    """Write the entry beside its place and rename it when whole.

    `rows` says how many images are done, so that a later call goes on from there.
    """
    part = entry.with_name(f"{entry.name}.part")
    part.mkdir(exist_ok=True)
    rows = part / "rows"
    done = int(rows.read_text()) if rows.exists() else 0
    device = backbone.scale.device
    shape = backbone.encode_image_layers(environment[0][0][None].to(device)).shape[1:]
    z = np.lib.format.open_memmap(
        part / "z.npy",
        mode="r+" if done else "w+",
        dtype=facts["dtype"],
        shape=(len(environment), *shape),
    )
    rest = Subset(environment, range(done, len(environment)))
    bar = tqdm(
        total=len(environment),
        initial=done,
        desc=f"features of {Path(environment.root).name}",
        disable=not sys.stderr.isatty(),
        leave=False,
    )
    for x, _ in DataLoader(rest, BATCH, num_workers=num_workers):
        features = backbone.encode_image_layers(x.to(device))
        z[done : done + len(x)] = features.cpu().numpy()
        done += len(x)
        bar.update(len(x))
        if done % FLUSH < BATCH:
            z.flush()
            misc.write_whole(rows, str(done))
    z.flush()
    misc.write_whole(part / "facts.json", json.dumps(facts, indent=1))
    part.rename(entry)
