"""A few real steps of a training, timed: what a dry run multiplies."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from benchmark.data.inputs import Evaluation
from benchmark.data.records import Task
from benchmark.evaluation import passes
from benchmark.evaluation.passes import Batch
from benchmark.features.extraction import compiled
from benchmark.run.machine import peak_bytes
from benchmark.training.plan import Part, Population
from flair.terminal.progress import size

_CPU_BATCH = 64  # larger ones are split without a GPU


class Speed(NamedTuple):
    """Photos per second, and how many photos were timed."""

    photos_per_second: float
    photos: int


def scoring_parts(
    model: tf.keras.Model,
    data: Evaluation,
    task: Task,
    batch_size: int,
    population: Population,
    validations: int,
    tests: int = 1,
) -> tuple[list[Part], Speed]:
    """Validations and tests of a training; their speed is timed on a batch as large as evaluation makes them."""
    photos = batch_size if tf.config.list_physical_devices("GPU") else min(batch_size, _CPU_BATCH)
    batch = tiled(next(iter(data)), photos)
    passes.accumulate(model, [batch], task)  # compiles
    speed = Speed(photos / seconds_of(lambda: passes.accumulate(model, [batch], task)), photos)
    validated, tested = population.photos["val"], population.photos["test"]
    return [
        Part(f"validations of {validated:,} photos", validations, validated / speed.photos_per_second),
        Part(f"test of {tested:,} photos", tests, tested / speed.photos_per_second),
    ], speed


def extraction_parts(body: tf.keras.Model | None, population: Population, views: int) -> list[Part]:
    """The computing of features, timed on a batch; none where photos are trained on."""
    if body is None:
        return []
    batch = tf.zeros((_CPU_BATCH, *body.input_shape[1:]))
    forward = compiled(body)
    forward(batch)
    per_photo = seconds_of(lambda: forward(batch)) / _CPU_BATCH
    photos = population.photos["train"] * max(views, 1) + population.photos["val"] + population.photos["test"]
    return [Part(f"features of {photos:,} photos, unless they are there already", 1, photos * per_photo)]


def tiled(batch: Batch, photos: int) -> Batch:
    """A batch of exactly so many photos, repeated where there are fewer."""
    repeats = -(-photos // int(batch[1].shape[0]))
    images, labels = batch
    return (tf.tile(images, [repeats, *[1] * (len(images.shape) - 1)])[:photos], tf.tile(labels, [repeats, 1])[:photos])


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def memory_row() -> str:
    """The most memory that this process, and each GPU, held so far."""
    rows = [f"{size(peak_bytes())} in this process, at its peak so far"]
    for gpu in tf.config.list_logical_devices("GPU"):
        name = gpu.name.split("device:")[-1]
        rows.append(f"{size(tf.config.experimental.get_memory_info(name)['peak'])} on {name}")
    return ", ".join(rows)
