"""Random batches from a 10 GB store against the same gather from memory.

    python benchmarks/random_access.py      # writes random_access.json beside it

A synthetic entry, (542534, 12, 768) in half precision, about DomainNet's, is written to
--folder and removed afterwards: it needs 10 GB of disk and, for the store to stay in
the page cache beside its copy in memory, 21 GB of RAM. Two processes in turn gather
random batches of 96 with StoredFeatures: one from the memory map of `open_features`,
one from the same array loaded. Warm means that the file is in the page cache; the map's
pages still have to be entered one by one, so the first of the batches are slower.

Memory comes in two parts, for only one of them is the process's own: `own_gb` (RssAnon)
and `mapped_gb` (RssFile), pages of the file that are mapped, that all runs share and
that the kernel takes back as soon as anybody wants memory.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import options, report, seconds

from domainbed.feature_store import StoredFeatures

SHAPE = (542_534, 12, 768)  # 10 GB of float16
BATCH, BATCHES = 96, 6000  # about every row once


def write_entry(path: Path) -> None:
    """An array of that shape; the same random rows again and again."""
    n = 4096
    rows = np.random.default_rng(0).standard_normal((n, *SHAPE[1:]), np.float32)
    rows = rows.astype(np.float16)
    z = np.lib.format.open_memmap(path, "w+", np.float16, SHAPE)
    for start in range(0, len(z), n):
        z[start : start + n] = rows[: len(z) - start]
    z.flush()


def resident_gb() -> dict[str, float]:
    """This process's own memory and the file pages mapped into it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kb = {line.split(":")[0]: line.split()[1] for line in lines if "kB" in line}
    parts = {"own_gb": "RssAnon", "mapped_gb": "RssFile"}
    return {name: round(int(kb[key]) / 2**20, 2) for name, key in parts.items()}


def measure(kind: str, path: Path) -> dict[str, float]:
    """Milliseconds of a batch, at first and over all, and memory after an epoch."""
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
    tenth = BATCHES // 10
    return {
        "first_tenth_ms": round(statistics.median(ms[:tenth]), 3),
        "last_tenth_ms": round(statistics.median(ms[-tenth:]), 3),
        "mean_ms": round(statistics.mean(ms), 3),
    } | resident_gb()


def main(argv: list[str] | None = None) -> None:
    parser = options(__file__, __doc__, repeats=3)
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="of the store")
    parser.add_argument("--measure", nargs=2, help="store or memory, and the file")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.measure:
        print(json.dumps(measure(args.measure[0], Path(args.measure[1]))))
        return
    rounds: dict[str, list[dict]] = {"store": [], "memory": []}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder, "z.npy")
        write_entry(path)
        for _ in range(args.repeats):
            for kind, figures in rounds.items():
                command = [sys.executable, __file__, "--measure", kind, str(path)]
                command += ["--threads", str(args.threads)]
                figures.append(json.loads(subprocess.check_output(command, text=True)))
    medians = {
        kind: {
            key: round(statistics.median(f[key] for f in figures), 3)
            for key in figures[0]
        }
        for kind, figures in rounds.items()
    }
    store, memory = medians["store"], medians["memory"]
    shares = {
        f"share_of_memory_speed_{part}": round(memory[key] / store[key], 3)
        for part, key in {"warm": "last_tenth_ms", "whole_epoch": "mean_ms"}.items()
    }
    report(medians | shares, args.output)


if __name__ == "__main__":
    main()
