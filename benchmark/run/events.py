"""Scalars for TensorBoard, written as one event file that can be cut back to an earlier step.

TensorFlow's own writer can only append, so a resumed run would show the steps it repeats twice.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.run import names
from flair.files import atomic
from flair.records.tfrecord import frames

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

# TensorBoard reads the files whose names hold "tfevents".
FILE_NAME = "events.out.tfevents.run"


class TensorBoardLogger:
    """The rows of a run as events."""

    package: str | None = None
    leaves = (names.TENSORBOARD_DIR,)

    def __init__(self, folder: Path, step_name: str, flags: Mapping[str, str]) -> None:
        self._path = folder / names.TENSORBOARD_DIR / FILE_NAME

    def start(self, rows: Mapping[int, Mapping[str, float]]) -> None:
        """Writes the event file anew: step -> tag -> value."""
        from tensorboard.compat.proto.event_pb2 import Event  # protobuf would slow every --help down

        self._path.parent.mkdir(exist_ok=True)
        atomic.remove_leftovers(self._path.parent)
        events = [Event(wall_time=time.time(), file_version="brain.Event:2"), *map(_event, rows, rows.values())]
        atomic.write_bytes(self._path, b"".join(frames.frame(event.SerializeToString()) for event in events))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one step to the event file."""
        with open(self._path, "ab") as file:
            file.write(frames.frame(_event(step, values).SerializeToString()))

    def close(self, is_complete: bool) -> None:
        """Nothing is left to do."""


def _event(step: int, values: Mapping[str, float]) -> Event:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
    return Event(wall_time=time.time(), step=step, summary=Summary(value=scalars))
