"""All metrics of a model on a dataset: one compiled forward pass a batch and one histogram update."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from benchmark import flair_metrics, score_histogram
from benchmark.records import Task
from flair.progress import Progress


class Evaluation(NamedTuple):
    """Sums over photos, from which every metric follows; add histograms and sums to pool several."""

    counts: np.ndarray  # int64 [num_outputs, 2, 200]
    loss_sum: float
    num_photos: int

    def metrics(self, task: Task) -> dict[str, float]:
        """Metric name -> value, in the published order."""
        return score_histogram.finalize(self.counts, self.loss_sum, self.num_photos, task.is_binary)


def evaluate(
    model: tf.keras.Model, dataset: Iterable, task: Task, progress: Progress | None = None
) -> dict[str, float]:
    """The published metrics of `model` on a dataset of (photos, labels) batches."""
    return accumulate(model, dataset, task, progress).metrics(task)


def accumulate(model: tf.keras.Model, dataset: Iterable, task: Task, progress: Progress | None = None) -> Evaluation:
    """The sums behind `evaluate`."""
    step = predict_step(model)
    counts = np.zeros((task.num_outputs, 2, score_histogram.NUM_BUCKETS), np.int64)
    loss_sum, num_photos = 0.0, 0
    for images, labels in dataset:
        scores, losses = step(images, labels)
        counts += score_histogram.histogram(scores.numpy(), labels.numpy())
        loss_sum += float(np.sum(losses.numpy(), dtype=np.float64))
        num_photos += len(losses)
        if progress is not None:
            progress.add(len(losses))
    return Evaluation(counts, loss_sum, num_photos)


def predict(model: tf.keras.Model, dataset: Iterable) -> tuple[np.ndarray, np.ndarray]:
    """Scores float32 [photos, num_outputs] and labels of the same shape, in the dataset's order."""
    step = predict_step(model)
    batches = [(step(images, labels)[0].numpy(), labels.numpy()) for images, labels in dataset]
    scores, labels = zip(*batches, strict=True)
    return np.concatenate(scores), np.concatenate(labels)


_steps: weakref.WeakKeyDictionary[tf.keras.Model, Callable] = weakref.WeakKeyDictionary()


def predict_step(model: tf.keras.Model) -> Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """(photos, labels) -> (scores [b, num_outputs], losses [b]), compiled once a model."""
    if model not in _steps:
        reference = weakref.ref(model)  # a strong one would keep the model alive through its own cache entry

        @tf.function(reduce_retracing=True)
        def step(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            logits = reference()(images, training=False)
            return flair_metrics.scores_of(logits), flair_metrics.losses_of(labels, logits)

        _steps[model] = step
    return _steps[model]
