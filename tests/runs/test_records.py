"""results.jsonl: a line is on the disk before the run goes on."""

import json
import os

import pytest

from domainbed.runs.records import RunRecords


def test_a_record_is_on_the_disk_when_append_returns(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def watch(number):
        synced.append((os.fstat(number).st_ino, os.fstat(number).st_size))
        fsync(number)

    monkeypatch.setattr(os, "fsync", watch)
    records = RunRecords(tmp_path)
    for step in (0, 2):
        records.append({"step": step})
        stat = records.results.stat()
        assert synced[-1] == (stat.st_ino, stat.st_size)
    assert [record["step"] for record in records.read()] == [0, 2]


def test_a_line_that_the_disk_refuses_leaves_nothing(tmp_path, monkeypatch):
    records = RunRecords(tmp_path)
    records.append({"step": 0})

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        records.append({"step": 2})
    assert [json.loads(line) for line in records.results.open()] == [{"step": 0}]
