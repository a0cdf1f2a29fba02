"""TensorBoard's view of a run: the records of results.jsonl as curves, and more.

`tensorboard --logdir SWEEP_OUTPUT_DIR` shows every run's curves, compares the runs by
their hyperparameters and final accuracies, and shows which layers LFA listens to.
"""

import functools
import json
import math
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from domainbed.lib.errors import one_line
from domainbed.runs.records import RunRecords

# Arguments that tell the runs of a sweep apart.
TOLD_APART_BY = ("algorithm", "dataset", "test_envs", "trial_seed", "hparams_seed")
# Which weights are drawn, and what has them.
ATTENTIONS = {"image": "environments", "cross": "environments", "self": "classes"}
CELL = 16  # pixels, the side of a weight's square


def never_fails(method: Callable[..., None]) -> Callable[..., None]:
    """The method, but an error ends the log, with a line on stderr, and not the run."""

    @functools.wraps(method)
    def wrapped(log: "TensorBoardLog", *args: Any) -> None:
        if log.folder is None:
            return
        try:
            method(log, *args)
        except Exception as error:  # a run is worth more than its curves
            log.folder = None
            text = one_line(f"{type(error).__name__}: {error}")
            print(
                f"warning: no more is written for TensorBoard: {text}", file=sys.stderr
            )

    return wrapped


class TensorBoardLog:
    """One file of events in `folder`, made anew by each process that goes on.

    results.jsonl is what is true; so an interruption leaves no point twice. Without a
    folder nothing is written. TensorBoard's modules take 0.1 s to import once
    (benchmarks/tensorboard_cost.py); they are imported where they are used.
    """

    def __init__(self, folder: Path | None, records: RunRecords):
        self.folder, self.records = folder, records
        self.file: Any = None

    @never_fails
    def add(self, record: dict[str, Any]) -> None:
        """The record, which results.jsonl has already, as a point of each curve."""
        if self.file:
            self._write_scalars(record)
        else:
            self._open()

    @never_fails
    def finish(self, attention: dict[str, Any] | None) -> None:
        """The hyperparameters with the final accuracies, and LFA's layer attention.

        `attention` is what layer_attention.summarise gives.
        """
        from torch.utils.tensorboard import summary

        if not self.file:
            self._open()
        last = self.records.read()[-1]
        told = {name: last["args"][name] for name in TOLD_APART_BY}
        hparams = {
            name: value if isinstance(value, (str, int, float)) else json.dumps(value)
            for name, value in (told | last["hparams"]).items()
        }
        accuracies = {name: last[name] for name in last if name.endswith("_acc")}
        for part in summary.hparams(hparams, accuracies):
            self._write(last["step"], summary=part)
        for tag, (pixels, names) in attention_images(attention or {}).items():
            image = summary.image(tag, pixels, dataformats="HWC")
            rows = f"Rows: {', '.join(names)}. Columns: layers, the first is left."
            image.value[0].metadata.summary_description = rows
            self._write(last["step"], summary=image)
        self.file.close()

    def _open(self) -> None:
        """Begin the file, with every record so far."""
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        path = self.folder / f"events.out.tfevents.{time.time_ns()}"
        self.file = RecordWriter(open(path, "wb"))  # noqa: SIM115
        self._write(0, file_version="brain.Event:2")
        # A TensorBoard that is open forgets what it had of this run.
        self._write(0, session_log=SessionLog(status=SessionLog.START))
        for record in self.records.read():
            self._write_scalars(record)

    def _write_scalars(self, record: dict[str, Any]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in record.items()
            if name != "step" and isinstance(value, (int, float))
        ]
        self._write(record["step"], summary=Summary(value=values))

    def _write(self, step: int, **what: Any) -> None:
        """An event, in the file at once."""
        from tensorboard.compat.proto.event_pb2 import Event

        event = Event(wall_time=time.time(), step=step, **what)
        self.file.write(event.SerializeToString())
        self.file.flush()


def attention_images(
    attention: dict[str, dict[str, dict[str, list[float]]]],
) -> dict[str, tuple[np.ndarray, list[str]]]:
    """Of what layer_attention.summarise gives: tag -> (picture, its rows' names).

    A picture (H, W, 1), uint8, has a row of squares for each environment, or for each
    class in the case of `self`, and a column for each layer; white weighs most.
    """
    images = {}
    for weights, of in ATTENTIONS.items():
        named = attention.get(of, {}).items()
        rows = {name: own[weights] for name, own in named if weights in own}
        if rows:
            matrix = np.array([*rows.values()])  # (rows, L)
            grey = np.uint8(255 * matrix / max(matrix.max(), math.ulp(1)))
            squares = grey.repeat(CELL, 0).repeat(CELL, 1)[:, :, None]
            images[f"layer_attention/{weights}"] = squares, [*rows]
    return images
