"""What a frozen tower makes of an environment, computed once, read by every run.

A frozen CLIP gives an image the same features in every step, run, trial and draw. One
pass writes them to the folder `<feature_dir>/<key>`; runs read them by memory map. The
key digests all that they depend on: the backbone's weights, the kind, the transform,
the files with their sizes and times of change (or contents), the classes, the dtype.
Whatever of these changes gives a new entry, so features are never stale.
"""

import contextlib
import errno
import functools
import json
import math
import mmap
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from domainbed.backbones import CLIPBackbone, Kind
from domainbed.datasets import ImageEnvironment
from domainbed.features.entries import (
    OF_LISTS,
    Entry,
    digest_files,
    key_of,
    shown,
    size_text,
)
from domainbed.lib import misc
from domainbed.lib.errors import DISK_ERRORS, PLACE_ERRORS, InputError
from domainbed.lib.fast_data_loader import batches_of
from domainbed.lib.progress import notice

DTYPES = ("float16", "float32")
BATCH = 64  # images; on a CPU larger ones are no faster
FLUSH = 1024  # images at most that an interruption makes one compute again
HINT = (
    "name another folder with --feature_dir or compute them anew in every run with "
    "--no_feature_store"
)


class StoredFeatures(Dataset):
    """An environment's (z, label) pairs: z (*shape) in float32, whatever is stored.

    `gather(indices)` reads a whole batch, (B, *shape) and (B,), at once. The shape is
    the kind's: (L, D) for class tokens.
    """

    def __init__(
        self,
        z: np.ndarray | torch.Tensor,
        targets: Sequence[int] | torch.Tensor,
        keys: Sequence[int],
    ):
        self.z, self.targets, self.keys = z, torch.as_tensor(targets), np.asarray(keys)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        z, y = self.gather([index])
        return z[0], int(y[0])

    def gather(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """z (B, *shape) and labels (B,) of the items at these indices."""
        keys = self.keys[np.asarray(indices)]
        if isinstance(getattr(self.z, "base", None), mmap.mmap):
            ask_for(self.z, keys)
        return torch.as_tensor(self.z[keys]).float(), self.targets[keys]

    def subset(self, keys: Sequence[int]) -> "StoredFeatures":
        """The items at these indices."""
        return StoredFeatures(self.z, self.targets, self.keys[np.asarray(keys, int)])

    @property
    def size(self) -> int:
        """Bytes of all z, as stored."""
        return self.z.nbytes

    def on(self, device: torch.device | str) -> "StoredFeatures":
        """The same, all of it read into that device's memory."""
        z = torch.from_numpy(np.array(self.z)).to(device)
        return StoredFeatures(z, self.targets.to(device), self.keys)


def ask_for(z: np.memmap, keys: np.ndarray) -> None:
    """Let the kernel read these rows, all at once, before one of them is waited for.

    One that is found missing brings megabytes around it along: a first batch of 160
    rows would read a gigabyte.
    """
    if not hasattr(mmap, "MADV_WILLNEED") or not z.flags.c_contiguous:
        return
    for start, length in pages_of(z, keys):
        z.base.madvise(mmap.MADV_WILLNEED, start, length)


def pages_of(z: np.memmap, keys: np.ndarray) -> list[tuple[int, int]]:
    """(start, length) of each row in the map, in bytes, from the start of a page."""
    first, size = z.offset % mmap.ALLOCATIONGRANULARITY, z.strides[0]
    starts = (first + key * size for key in keys.tolist())
    return [(s - s % mmap.PAGESIZE, size + s % mmap.PAGESIZE) for s in starts]


def default_feature_dir(data_dir: str | None) -> Path:
    """`features` in the data folder or, where that cannot be written, in the cache."""
    if data_dir is not None and os.access(data_dir, os.W_OK):
        return Path(data_dir) / "features"
    return Path.home() / ".cache" / "domainbed" / "features"


def describe(
    environment: ImageEnvironment,
    backbone: CLIPBackbone,
    dtype: str,
    strict: bool = False,
    kind: Kind | None = None,
) -> dict[str, Any]:
    """All that an environment's features depend on, in plain types.

    The fact `layers` names their kind; without one they are the class tokens. `items`
    are those of a list of images, `views` how many of each it has.
    `strict` knows images by their content, not by their size and time of change.
    """
    if dtype not in DTYPES:
        raise InputError(
            f"feature_dtype is {dtype!r}; it can be {' or '.join(DTYPES)}."
        )
    own = [name for name in OF_LISTS if hasattr(environment, name)]
    listed = {name: getattr(environment, name) for name in own}
    return listed | {
        "backbone": backbone.fingerprint,
        "layers": (kind or backbone.class_tokens).name,
        # A function's repr ends in its address, another one in every process.
        "transform": re.sub(" at 0x[0-9a-f]+", "", repr(environment.transform)),
        "folder": str(Path(environment.root).resolve()),
        "files": digest_files(environment, strict),
        "strict": strict,
        "images": len(environment),
        "classes": list(environment.classes),
        "dtype": dtype,
    }


def open_features(
    environment: ImageEnvironment,
    backbone: CLIPBackbone,
    feature_dir: Path,
    dtype: str = "float16",
    num_workers: int = 0,
    strict: bool = False,
    kind: Kind | None = None,
) -> StoredFeatures:
    """The stored features of one environment: `open_all` of it alone."""
    args = (backbone, feature_dir, dtype, num_workers, strict, kind)
    return open_all([environment], *args)[0]


def open_all(
    environments: Sequence[ImageEnvironment],
    backbone: CLIPBackbone,
    feature_dir: Path,
    dtype: str = "float16",
    num_workers: int = 0,
    strict: bool = False,
    kind: Kind | None = None,
) -> list[StoredFeatures]:
    """The environments' stored features, extracted first where there are none.

    They are of that kind, by default the class tokens of all layers.
    One process extracts, others wait for it; an interrupted extraction continues.
    `strict` is `describe`'s. InputError where the store cannot be written or has no
    space for all of them, or an entry is damaged.
    """
    kind = kind or backbone.class_tokens
    facts = [describe(each, backbone, dtype, strict, kind) for each in environments]
    found = [Entry(feature_dir / key_of(each)) for each in facts]

    @functools.cache
    def shape() -> tuple[int, ...]:
        """Of an image's features; the first to ask has the disk looked at for all."""
        new = [
            environment
            for environment, entry in zip(environments, found, strict=True)
            if not (entry.path.exists() or Entry(entry.part).done)
        ]
        shape = shape_of(kind, backbone)
        check_space((sum(map(len, new)), *shape), dtype, feature_dir)
        return shape

    try:
        for environment, own, entry in zip(environments, facts, found, strict=True):
            if entry.path.exists():
                continue
            feature_dir.mkdir(parents=True, exist_ok=True)
            with entry.locked():
                if not entry.path.exists():
                    extract(environment, backbone, kind, shape, own, entry, num_workers)
    except OSError as error:
        if error.errno not in (*DISK_ERRORS, *PLACE_ERRORS, errno.ENOENT):
            raise
        raise InputError(
            f"cannot store layer features in {feature_dir} ({error.strerror}); {HINT}."
        ) from error
    stored = []
    for entry, own in zip(found, facts, strict=True):
        z, y = entry.arrays()
        entry.follow(own["folder"])
        entry.touch()
        stored.append(StoredFeatures(z, y, range(len(z))))
    return stored


@torch.no_grad()
def shape_of(kind: Kind, backbone: CLIPBackbone) -> tuple[int, ...]:
    """The shape of an image's features."""
    size, device = backbone.resolution, backbone.scale.device
    blank = torch.zeros(1, 3, size, size, device=device)
    return tuple(kind.encode(blank).shape[1:])


def check_space(shape: tuple[int, ...], dtype: str, feature_dir: Path) -> None:
    """Say what new features (N, *shape) will take; InputError if the disk lacks it."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    n, each = f"{shape[0]:,}", " x ".join(f"{numbers:,}" for numbers in shape[1:])
    what = f"features of {n} images, {each} {dtype} each, take {size_text(size)}"
    parents = (feature_dir, *feature_dir.absolute().parents)
    free = shutil.disk_usage(next(p for p in parents if p.exists())).free
    if size > free:
        raise InputError(
            f"the {what}, and {feature_dir} has {size_text(free)} left; {HINT}."
        )
    notice(f"the {what} in {feature_dir}")


def reserve(
    environment: ImageEnvironment,
    shape: Callable[[], tuple[int, ...]],
    facts: dict[str, Any],
    part: Entry,
) -> int:
    """How many images an interrupted extraction had done.

    If none, the part's files are made, with all the space they will need: a disk
    without it is an OSError now, before hours of work, and nothing stays.
    """
    with contextlib.suppress(InputError):
        part.arrays()
        if part.done:
            return part.done
    whole = (len(environment), *shape())
    shutil.rmtree(part.path, ignore_errors=True)
    part.path.mkdir()
    try:
        misc.write_whole(part.path / "facts.json", json.dumps(facts, indent=1))
        np.save(part.path / "y.npy", np.asarray(environment.targets, np.int64))
        z = np.lib.format.open_memmap(part.path / "z.npy", "w+", facts["dtype"], whole)
        if hasattr(os, "posix_fallocate"):  # macOS finds out when it writes
            with open(z.filename, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(z.filename))
    except OSError:
        shutil.rmtree(part.path)
        raise
    return 0


@torch.no_grad()
def extract(
    environment: ImageEnvironment,
    backbone: CLIPBackbone,
    kind: Kind,
    shape: Callable[[], tuple[int, ...]],
    facts: dict[str, Any],
    entry: Entry,
    num_workers: int,
) -> None:
    """Write the entry beside its place and rename it when whole."""
    part = Entry(entry.part)
    done = reserve(environment, shape, facts, part)
    z, _ = part.arrays()
    rest = Subset(environment, range(done, len(environment)))
    device = backbone.scale.device
    bar = tqdm(
        total=len(environment),
        initial=done,
        desc=f"features of {shown(Path(environment.root).name)}",
        disable=not sys.stderr.isatty(),
        leave=False,
    )
    # Not through the map: there a full disk is no error but a signal that kills.
    with every_core(), bar, open(z.filename, "r+b") as file:
        file.seek(z.offset + z[:done].nbytes)
        # Its own generator: a run that finds the features takes the same steps.
        own = {"num_workers": num_workers, "generator": torch.Generator()}
        for x, _ in batches_of(DataLoader(rest, BATCH, **own)):
            features = kind.encode(x.to(device)).cpu().numpy()
            with np.errstate(over="ignore"):
                written = features.astype(z.dtype)
            if not np.isfinite(written).all():
                file.close()
                shutil.rmtree(part.path)
                raise not_finite(environment.samples[done:], features, written)
            file.write(written)
            done += len(x)
            bar.update(len(x))
            if done % FLUSH < BATCH or done == len(environment):
                file.flush()
                os.fsync(file.fileno())
                entry.claim.check()
                misc.write_whole(part.path / "rows", str(done))
    part.path.rename(entry.path)
    (entry.path / "rows").unlink(missing_ok=True)


def not_finite(
    samples: list[tuple[str, int]], features: np.ndarray, written: np.ndarray
) -> InputError:
    """The error of a batch that cannot be written: its first image, and the remedy."""
    axes = tuple(range(1, written.ndim))
    first = int(np.argmin(np.isfinite(written).all(axes)))
    path, values = samples[first][0], features[first]
    if np.isfinite(values).all():
        return InputError(
            f"the features of {path} reach {np.abs(values).max():.3g}, more than "
            f"{written.dtype} holds ({np.finfo(written.dtype).max:.3g}); store them as "
            "--hparams feature_dtype=float32."
        )
    return InputError(
        f"the features of {path} are not finite: the backbone overflows or its weights "
        "are damaged; give another clip_backbone."
    )


@contextlib.contextmanager
def every_core() -> Iterator[None]:
    """torch computes on all cores inside, or on as many as OMP_NUM_THREADS says.

    A run trains on one thread, so that its numbers are the same in any company; a
    forward pass gives the same bits on any number.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(misc.threads(os.cpu_count() or 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)
