"""Torture a sweep, and count what it loses by that.

    python -m tools.torture --kills 1000 --hours 2 --seed 0

A small sweep is launched by two hosts at once, again and again until it is done, while
its runs, the processes that load their images, the one that extracts features and the
launchers are killed at random moments, runs are stopped for a while and the disk is
full now and then. In every round but the first locks work, are refused, are unknown to
the file system, or are granted to all. What the sweep then has found is compared with
what it finds undisturbed, byte for byte: records but for timings, memory and folders,
predictions and tables. The report is JSON; exit status 1 says that something is wrong.

The seed decides the kinds and pauses of the blows, as far as targets are there; at
which line they find a process is up to the machine. It takes Linux, and the right to
make namespaces (root, or user namespaces): the disk is a small one in memory.
"""

import argparse
import ctypes
import errno
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tools.torture.blows import KILLS, Tormentor
from tools.torture.sweep import Host, Sweep, make_pictures
from tools.torture.verdict import judge, report

LOCKS = {"work": None, "refused": errno.ENOLCK, "unknown": errno.ENOSYS, "granted": 0}
DISK = "48m"  # a sweep takes half of it
ADOPT = 36  # Linux's PR_SET_CHILD_SUBREAPER
OWN = "TORTURE_OWN"  # set in a process that has its own mounts


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="torture", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--kills", type=int, default=1000)
    add("--hours", type=float, default=1, help="at most, but for the last round")
    add("--seed", type=int, default=0)
    add("--pictures", type=int, default=2, help="of each class of each house")
    add("--pause", type=float, default=2, help="processor seconds between blows, mean")
    add("--warm", action="store_true", help="fork runs from launchers: less to import")
    add("--locks", nargs="+", choices=[*LOCKS], default=[*LOCKS], help="default: all")
    add("--output", type=Path, help="the report; default: standard output")
    return parser.parse_args(argv)


def with_own_mounts() -> None:
    """Go on in a process that can mount what no other sees."""
    if OWN not in os.environ:
        os.environ[OWN] = "1"
        root = [] if os.geteuid() == 0 else ["--map-root-user"]
        words = [sys.executable, "-m", "tools.torture", *sys.argv[1:]]
        os.execvp("unshare", ["unshare", *root, "--mount", *words])


def undisturbed(sweep: Sweep, warm: bool) -> None:
    """Run the sweep, by one host, and let it be."""
    sweep.folder.mkdir()
    host = Host("undisturbed", sweep, warm, None)
    host.start()
    host.join()


def torture(
    disk: Path,
    whole: Sweep,
    pictures: Path,
    number: int,
    args: argparse.Namespace,
    most: int,
) -> dict[str, Any]:
    """A round with so many kills at most: how it was."""
    rng = random.Random(f"{args.seed} {number}")
    locks = rng.choice(args.locks) if number else args.locks[0]
    sweep = Sweep(disk / f"round{number}", pictures)
    sweep.folder.mkdir()
    hosts = [Host(f"host{i}", sweep, args.warm, LOCKS[locks]) for i in range(2)]
    tormentor = Tormentor(sweep, hosts, rng, args.pause)
    started = time.monotonic()
    for host in hosts:
        host.start()
    ended = tormentor.torment(most)
    for host in hosts:
        host.over = True
    left = tormentor.field.leave()
    for host in hosts:
        host.join()
    faults = judge(whole, sweep) | {"stuck": not ended, "left_behind": left}
    if any(faults.values()):
        kept = Path(tempfile.mkdtemp(prefix=f"torture-round{number}-"))
        shutil.copytree(sweep.folder, kept, dirs_exist_ok=True)
        print(f"round {number} is kept in {kept}", file=sys.stderr)
    shutil.rmtree(sweep.folder)
    return {
        "round": number,
        "locks": locks,
        "seconds": round(time.monotonic() - started, 1),
        "blows": Counter(tormentor.blows),
        "faults": faults,
        "processor_seconds": sum(tormentor.field.used.values()),
        "recoveries": tormentor.recoveries,
    }


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with_own_mounts()
    ctypes.CDLL(None).prctl(ADOPT, 1)  # what a dead launcher has started stays ours
    ends = time.monotonic() + 3600 * args.hours
    rounds: list[dict] = []
    with tempfile.TemporaryDirectory() as name:
        folder, disk = Path(name), Path(name) / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(disk)]
        subprocess.run(mount, check=True)
        pictures = make_pictures(folder / "pictures", args.pictures)
        whole = Sweep(folder / "undisturbed", pictures)
        undisturbed(whole, args.warm)
        kills = 0
        while kills < args.kills and time.monotonic() < ends:
            left = args.kills - kills
            own = torture(disk, whole, pictures, len(rounds), args, left)
            kills += sum(own["blows"][kind] for kind in KILLS)
            rounds.append(own)
            said = {k: v for k, v in own.items() if k != "recoveries"}
            print(f"{kills} kills: {json.dumps(said)}", file=sys.stderr, flush=True)
        subprocess.run(["umount", str(disk)], check=True)
    text = json.dumps(report(rounds, args.seed), indent=1)
    if args.output:
        args.output.write_text(text + "\n")
    print(text)
    wrong = any(any(each["faults"].values()) for each in rounds)
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
