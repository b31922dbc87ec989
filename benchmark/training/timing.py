"""A few real steps of a training, timed: what a dry run multiplies."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from benchmark.data.pipeline import EvaluationData
from benchmark.data.records import Task
from benchmark.evaluation import passes
from benchmark.run.machine import peak_bytes
from flair.terminal.progress import size

Batch = tuple[tf.Tensor, tf.Tensor]
_CPU_BATCH = 64  # larger ones are split without a GPU


class Speed(NamedTuple):
    """Photos a second, and how many photos were timed."""

    photos_per_second: float
    photos: int


def evaluation_speed(model: tf.keras.Model, data: EvaluationData, task: Task, batch_size: int) -> Speed:
    """Times the evaluation of one batch as large as evaluation makes them, after one that compiles it."""
    photos = batch_size if tf.config.list_physical_devices("GPU") else min(batch_size, _CPU_BATCH)
    batch = tiled(next(iter(data)), photos)
    passes.accumulate(model, [batch], task)
    seconds = seconds_of(lambda: passes.accumulate(model, [batch], task))
    return Speed(photos / seconds, photos)


def tiled(batch: Batch, photos: int) -> Batch:
    """A batch of exactly so many photos, repeated where there are fewer."""
    repeats = -(-photos // int(batch[1].shape[0]))
    images, labels = batch
    return (
        tf.tile(images, [repeats, *[1] * (len(images.shape) - 1)])[:photos],
        tf.tile(labels, [repeats, 1])[:photos],
    )


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def memory_row() -> str:
    """The most memory that this process, and each GPU, held so far."""
    rows = [f"{size(peak_bytes())} in this process, at its peak so far"]
    gpus: Sequence[tf.config.LogicalDevice] = tf.config.list_logical_devices("GPU")
    for gpu in gpus:
        name = gpu.name.split("device:")[-1]
        rows.append(f"{size(tf.config.experimental.get_memory_info(name)['peak'])} on {name}")
    return ", ".join(rows)
