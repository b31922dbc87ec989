"""Passes of a model over a dataset, and the metrics that follow from them."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from benchmark.data.records import Task
from benchmark.metrics import histogram, keras
from benchmark.run.devices import Devices
from flair.terminal.progress import Progress

Batch = tuple[tf.Tensor, tf.Tensor]


class Evaluation(NamedTuple):
    """Sums over photos, from which every metric follows; add histograms and sums to pool several."""

    counts: np.ndarray  # int64 [num_outputs, 2, 200]
    loss_sum: float
    num_photos: int

    def metrics(self, task: Task) -> dict[str, float]:
        """Metric name -> value, in the published order."""
        return histogram.finalize(self.counts, self.loss_sum, self.num_photos, task.is_binary)

    def know_nothing(self) -> float:
        """Macro averaged precision of a scorer that knows nothing: the mean frequency of the labels."""
        return histogram.know_nothing_macro_precision(self.counts[:, 1].sum(axis=1), self.num_photos)


def evaluate(
    model: tf.keras.Model,
    dataset: Iterable[Batch],
    task: Task,
    progress: Progress | None = None,
    devices: Devices | None = None,
) -> dict[str, float]:
    """The published metrics of `model` on a dataset of (photos, labels) batches.

    With `devices`, each process brings its own part of the photos, and all get the metrics of the whole.
    """
    return accumulate(model, dataset, task, progress, devices).metrics(task)


def accumulate(
    model: tf.keras.Model,
    dataset: Iterable[Batch],
    task: Task,
    progress: Progress | None = None,
    devices: Devices | None = None,
) -> Evaluation:
    """The sums behind `evaluate`."""
    step = predict_step(model, devices)
    counts = np.zeros((task.num_outputs, 2, histogram.NUM_BUCKETS), np.int64)
    loss_sum, num_photos = 0.0, 0
    for parts in grouped(dataset, 1 if devices is None else len(devices.replicas)):
        for (_, labels), (scores, losses) in zip(parts, step(parts), strict=False):
            # NaN has no bucket. The loss of such a photo is NaN too, and so is the sum, which tells the user.
            counts += histogram.histogram(np.nan_to_num(scores.numpy()), labels.numpy())
            loss_sum += float(np.sum(losses.numpy(), dtype=np.float64))
            num_photos += len(losses)
            if progress is not None:
                progress.add(len(losses))
    sums: Sequence[np.ndarray] = [counts, np.array(loss_sum), np.array(num_photos)]
    if devices is not None:
        sums = devices.sum_over_workers(sums)
    return Evaluation(sums[0], float(sums[1]), int(sums[2]))


def predicted(model: tf.keras.Model, dataset: Iterable[Batch]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each batch scores float32 [photos, num_outputs], labels of the same shape and losses [photos]."""
    step = predict_step(model)
    for images, labels in dataset:
        scores, losses = step([(images, labels)])[0]
        yield scores.numpy(), labels.numpy(), losses.numpy()


def predict(model: tf.keras.Model, dataset: Iterable[Batch]) -> tuple[np.ndarray, np.ndarray]:
    """Scores float32 [photos, num_outputs] and labels of the same shape, in the dataset's order."""
    scores, labels, _ = zip(*predicted(model, dataset), strict=True)
    return np.concatenate(scores), np.concatenate(labels)


_Step = Callable[[Sequence[Batch]], list[Batch]]
_steps: weakref.WeakKeyDictionary[tf.keras.Model, dict[Devices | None, _Step]] = weakref.WeakKeyDictionary()


def predict_step(model: tf.keras.Model, devices: Devices | None = None) -> _Step:
    """Takes one (photos, labels) batch per device, gives (scores [b, num_outputs], losses [b]) of each.

    Compiled once per model.
    """
    steps = _steps.setdefault(model, {})
    if devices not in steps:
        steps[devices] = _compile_step(weakref.ref(model), devices)
    return steps[devices]


def _compile_step(model: weakref.ref[tf.keras.Model], devices: Devices | None) -> _Step:
    # A strong reference would keep the model alive through its own entry in the cache.
    def replica_step(images: tf.Tensor, labels: tf.Tensor) -> Batch:
        alive = model()
        assert alive is not None
        logits = alive(images, training=False)
        return keras.scores_of(logits), keras.losses_of(labels, logits)

    @tf.function(reduce_retracing=True)
    def compiled(parts: Sequence[Batch]) -> list[Batch]:
        return [replica_step(*parts[0])] if devices is None else devices.run(replica_step, parts)

    def step(parts: Sequence[Batch]) -> list[Batch]:
        # At the end, devices without a batch of their own repeat the first batch; that result is not looked at.
        missing = 0 if devices is None else len(devices.replicas) - len(parts)
        return compiled([*parts, *[parts[0]] * missing])

    return step


def grouped(dataset: Iterable[Batch], count: int) -> Iterator[list[Batch]]:
    """Groups batches so that each of `count` devices has one; the last group may have fewer."""
    batches = iter(dataset)
    while parts := list(itertools.islice(batches, count)):
        yield parts
