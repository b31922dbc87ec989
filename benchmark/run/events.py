"""Scalars for TensorBoard, written as one event file that can be cut back to an earlier step.

TensorFlow's own writer can only append, so a resumed run would show the steps it repeats twice.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary

from flair.files import atomic
from flair.records.tfrecord import frames

# TensorBoard reads the files whose names hold "tfevents".
FILE_NAME = "events.out.tfevents.run"


def write(folder: Path, rows: Mapping[int, Mapping[str, float]]) -> None:
    """Writes the event file anew: step -> tag -> value."""
    events = [Event(wall_time=time.time(), file_version="brain.Event:2"), *map(_event, rows, rows.values())]
    atomic.write_bytes(folder / FILE_NAME, b"".join(frames.frame(event.SerializeToString()) for event in events))


def append(folder: Path, step: int, values: Mapping[str, float]) -> None:
    """Adds one step to the event file."""
    with open(folder / FILE_NAME, "ab") as file:
        file.write(frames.frame(_event(step, values).SerializeToString()))


def _event(step: int, values: Mapping[str, float]) -> Event:
    scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
    return Event(wall_time=time.time(), step=step, summary=Summary(value=scalars))
