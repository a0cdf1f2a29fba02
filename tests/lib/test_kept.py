"""What is kept for the next process: the same bits, never half of them, no must."""

import os
import time

import numpy as np
import pytest

from domainbed.lib import kept, once


@pytest.fixture
def made(tmp_path, monkeypatch):
    """`kept` of some facts, and how often it was made."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    calls = []

    def make():
        calls.append(None)
        return np.float32([[1.5, np.pi]])

    return lambda facts="a": kept.kept(make, facts), calls


def test_it_is_made_once_for_the_same_facts(made):
    get, calls = made
    assert (get().tobytes(), get().dtype) == (get().tobytes(), np.float32)
    assert len(calls) == 1
    get(["a", 1])
    get(["a", 2])
    assert len(calls) == 3


def test_half_a_file_and_other_content_are_made_anew(made):
    get, calls = made
    whole = get()
    (file,) = kept.folder().iterdir()
    for content in (file.read_bytes()[:-3], b"", b"no array"):
        file.write_bytes(content)
        assert np.array_equal(get(), whole)
    assert len(calls) == 4
    assert np.array_equal(np.load(file), whole)


def test_a_folder_that_cannot_be_made_costs_the_time_alone(made, tmp_path):
    get, calls = made
    (tmp_path / "cache").write_text("a file")
    assert np.array_equal(get(), get())
    assert len(calls) == 2


def test_a_disk_that_fills_up_leaves_nothing(made, monkeypatch):
    get, _ = made

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept.os, "fsync", full)
    get()
    assert [*kept.folder().iterdir()] == []


def test_what_nobody_reads_goes(made):
    get, _ = made
    get("old")
    (old,) = kept.folder().iterdir()
    os.utime(old, (time.time() - kept.UNREAD - 10,) * 2)
    get("new")
    assert old not in kept.folder().iterdir()


def test_once_makes_anew_unless_it_is_to_remember(monkeypatch):
    calls = []
    assert [once.once(lambda: len(calls) or calls.append(0), "k") for _ in "ab"] == [
        None,
        1,
    ]
    monkeypatch.setattr(once, "MADE", None)
    once.remember()
    numbers = iter(range(9))
    assert [once.once(lambda: next(numbers), key) for key in "aab"] == [0, 0, 1]
    assert [once.once(lambda: next(numbers), "a", None) for _ in "ab"] == [2, 3]
