"""Random batches from a 10 GB store against the same gather from memory.

    python benchmarks/random_access.py      # writes random_access.json beside it

A synthetic entry, (542534, 12, 768) in half precision, about DomainNet's, is written to
--folder and removed afterwards: it needs 10 GB of disk and, for the file to stay in the
page cache beside its copy in memory, 21 GB of RAM. Two processes in turn gather an
epoch of random batches of 96 with StoredFeatures: from the memory map and from the
array loaded. The file was dropped from the page cache and read again, as after a
restart. Still a process meets each page of its map once for the first time: `warm` is
the last tenth of the epoch, when it has met most.

Memory comes in two parts, for only one of them is the process's own: `own_gb` (RssAnon)
and `mapped_gb` (RssFile), pages of the file that are mapped, that all runs share and
that the kernel takes back as soon as anybody wants memory.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common import options, report

from domainbed.features.store import StoredFeatures
from domainbed.tables.costs import seconds

SHAPE = (542_534, 12, 768)  # 10 GB of float16
BATCH, BATCHES = 96, 6000  # about every row once


def write_entry(path: Path) -> None:
    """An array of that shape; the same random rows again and again."""
    n = 4096
    rows = np.random.default_rng(0).standard_normal((n, *SHAPE[1:]), np.float32)
    rows = rows.astype(np.float16)
    header = {"descr": "<f2", "fortran_order": False, "shape": SHAPE}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, SHAPE[0], n):
            file.write(rows[: SHAPE[0] - start])


def drop_from_cache(path: Path) -> None:
    """Make the kernel forget the file, as a restart does."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident_gb() -> dict[str, float]:
    """This process's own memory and the file pages mapped into it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kb = {line.split(":")[0]: line.split()[1] for line in lines if "kB" in line}
    parts = {"own_gb": "RssAnon", "mapped_gb": "RssFile"}
    return {name: round(int(kb[key]) / 2**20, 2) for name, key in parts.items()}


def measure(kind: str, path: Path) -> dict[str, float]:
    """Milliseconds of a batch, warm and over the epoch, and memory after it."""
    with open(path, "rb") as file:  # into the page cache, but not into this process
        while file.read(2**24):
            pass
    z = np.load(path, mmap_mode="r" if kind == "store" else None)
    stored = StoredFeatures(z, np.zeros(len(z), int), range(len(z)))
    rng = np.random.default_rng(0)
    ms = [
        1000 * seconds(lambda: stored.gather(rng.integers(len(z), size=BATCH)))
        for _ in range(BATCHES)
    ]
    warm = ms[-BATCHES // 10 :]
    return {
        "warm_ms": statistics.median(warm),
        "epoch_ms": statistics.mean(ms),
    } | resident_gb()


def median_of(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of every figure."""
    return {
        key: round(statistics.median(f[key] for f in figures), 3) for key in figures[0]
    }


def main(argv: list[str] | None = None) -> None:
    parser = options(__file__, __doc__, repeats=3)
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="of the store")
    parser.add_argument("--measure", nargs=2, help="store or memory, and the file")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.measure:
        print(json.dumps(measure(args.measure[0], Path(args.measure[1]))))
        return

    def in_own_process(kind: str) -> dict[str, float]:
        command = [sys.executable, __file__, "--measure", kind, str(path)]
        command += ["--threads", str(args.threads)]
        return json.loads(subprocess.check_output(command, text=True))

    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder, "z.npy")
        write_entry(path)
        drop_from_cache(path)
        rounds = [
            (in_own_process("store"), in_own_process("memory"))
            for _ in range(args.repeats)
        ]
    store, memory = map(median_of, zip(*rounds, strict=True))
    result = {
        "store": store,
        "memory": memory,
        "share_of_memory_speed": {
            part: round(memory[f"{part}_ms"] / store[f"{part}_ms"], 3)
            for part in ("warm", "epoch")
        },
    }
    report(result, args.output)


if __name__ == "__main__":
    main()
