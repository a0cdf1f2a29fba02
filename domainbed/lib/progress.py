"""What a script shows while it works: bars on a terminal, lines elsewhere, colours.

Bars and colours are for a terminal; with --quiet no stream is one.
"""

import argparse
import contextlib
import contextvars
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, TextIO

from tqdm import tqdm

POLL = 1  # seconds between two looks at the jobs
SHARE = 0.05  # of the time, at most, is spent on looking
LINES = 5  # seconds between two lines, where there is no terminal
COLOURS = {"red": 31, "green": 32}  # of ANSI terminals


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """The flag --quiet, which every script has."""
    parser.add_argument(
        "--quiet", action="store_true", help="print errors and what was asked for only"
    )


QUIET = contextvars.ContextVar("QUIET", default=False)


@contextlib.contextmanager
def silenced(quiet: bool, result: bool = False) -> Iterator[None]:
    """If `quiet`: what is printed inside is lost, and no bar is shown.

    Standard error stays, and standard output does where it is the `result`.
    """
    if not quiet:
        yield
        return
    before = QUIET.set(True)
    with open(os.devnull, "w", errors="replace") as nowhere:
        out = sys.stdout if result else nowhere
        with (
            contextlib.redirect_stdout(NotATerminal(out)),
            contextlib.redirect_stderr(NotATerminal(sys.stderr)),
        ):
            try:
                yield
            finally:
                QUIET.reset(before)


def notice(text: str) -> None:
    """Say on standard error what nobody has to act on; not if `silenced`."""
    if not QUIET.get():
        print(text, file=sys.stderr)


class NotATerminal:
    """A stream that says so."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def coloured(text: str, colour: str | None, stream: TextIO) -> str:
    """The text as the stream should get it; https://no-color.org is honoured."""
    if colour is None or not stream.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m"


def steps_bar(first: int, n_steps: int) -> tqdm:
    """The numbers of the steps from the first on, with a bar on a terminal.

    It writes past `misc.Tee`: a log holds no bar.
    """
    return tqdm(
        range(first, n_steps),
        initial=first,
        total=n_steps,
        unit="step",
        dynamic_ncols=True,
        file=getattr(sys.stderr, "stream", sys.stderr),
        disable=not sys.stderr.isatty(),
    )


@contextlib.contextmanager
def cleared(bar: tqdm) -> Iterator[None]:
    """What is printed inside stands above the bar."""
    bar.clear()
    yield
    sys.stdout.flush()
    bar.refresh()


class JobsProgress:
    """How far a sweep's jobs are, on stderr: a bar on a terminal, lines elsewhere.

    `folders` are the jobs' (`RunFolder`).
    """

    def __init__(self, folders: list[Any]):
        self.started = time.monotonic()
        self.n_jobs, self.folders = len(folders), folders
        self.n_done, self.counts = 0, Counter()
        # An earlier attempt's failure counts no more.
        self.earlier = {folder: failed_at(folder) for folder in folders}

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """It is, until what happens inside has ended."""
        ended = threading.Event()
        show = self._bar if sys.stderr.isatty() else self._lines
        thread = threading.Thread(target=show, args=(ended, sys.stderr), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    @property
    def n_ended(self) -> int:
        return self.n_done + self.counts["failed"]

    def look(self) -> None:
        """Count anew. What is done stays so and is not looked at again."""
        states = {folder: folder.state for folder in self.folders}
        self.folders = [f for f, state in states.items() if state != "done"]
        self.n_done = self.n_jobs - len(self.folders)
        self.counts = Counter(
            state
            for folder, state in states.items()
            if state != "failed" or failed_at(folder) != self.earlier[folder]
        )

    def line(self, stream: TextIO) -> str:
        """`3 of 9 jobs done, 1 failed, 2 running`, in the stream's colours."""
        done = f"{self.n_done} of {self.n_jobs} jobs done"
        failed = f"{self.counts['failed']} failed"
        done = coloured(done, "green" if self.n_done else None, stream)
        failed = coloured(failed, "red" if self.counts["failed"] else None, stream)
        return f"{done}, {failed}, {self.counts['running']} running"

    def time_left(self) -> str:
        """At the present rate, as h:mm:ss; ? before anything has ended."""
        if not self.n_ended:
            return "?"
        seconds = (time.monotonic() - self.started) / self.n_ended
        return tqdm.format_interval(seconds * (self.n_jobs - self.n_ended))

    def _looks(self, ended: threading.Event) -> Iterator[None]:
        """Look every now and then, and once more at the end."""
        last, wait = False, POLL
        while not last:
            last = ended.wait(wait)
            started = time.monotonic()
            with contextlib.suppress(OSError):  # a file system may be away for a while
                self.look()
            yield
            wait = max(POLL, (time.monotonic() - started) / SHARE)

    def _bar(self, ended: threading.Event, stream: TextIO) -> None:
        form = "{desc} |{bar}| {elapsed}{postfix}"
        with tqdm(
            desc=self.line(stream),
            total=self.n_jobs,
            bar_format=form,
            file=stream,
            dynamic_ncols=True,
        ) as bar:
            for _ in self._looks(ended):
                bar.n = self.n_ended
                bar.set_description_str(self.line(stream), refresh=False)
                bar.set_postfix_str(f"{self.time_left()} left")

    def _lines(self, ended: threading.Event, stream: TextIO) -> None:
        said, at = self.n_ended, float("-inf")
        for _ in self._looks(ended):
            due = ended.is_set() or time.monotonic() - at >= LINES
            if self.n_ended != said and due:
                said, at = self.n_ended, time.monotonic()
                left = f"{self.time_left()} left"
                print(f"{self.line(stream)}, {left}", file=stream, flush=True)


def failed_at(folder: Any) -> int | None:
    """The time of the folder's last recorded failure."""
    try:
        return (folder.path / "failed").stat().st_mtime_ns
    except OSError:
        return None
