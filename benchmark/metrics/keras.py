"""The published metrics as one Keras metric, which TFF and a `tf.function` can use too."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import tensorflow as tf

from benchmark.metrics import histogram as score_histogram
from benchmark.metrics.histogram import FIRST_BUCKET_ABOVE_HALF, NUM_BUCKETS, NUM_THRESHOLDS


def scores_of(logits: tf.Tensor) -> tf.Tensor:
    """Sigmoid of the logits, float32: the scores that the published thresholds apply to."""
    return tf.sigmoid(tf.cast(logits, tf.float32))


def losses_of(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Binary cross-entropy of each photo, float32 `[batch]`: the mean over its labels."""
    logits = tf.cast(logits, tf.float32)
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(labels, tf.float32), logits), axis=-1)


def histogram(scores: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """`histogram.histogram` as a TensorFlow function: int64 `[labels, 2, 200]`."""
    num_labels = scores.shape[-1]
    bucket = tf.maximum(tf.math.ceil(scores * float(NUM_THRESHOLDS - 1)) - 1, 0)
    bucket = tf.cast(bucket, tf.int64) + tf.cast(scores > 0.5, tf.int64)
    row = 2 * tf.range(num_labels, dtype=tf.int64) + tf.cast(labels > 0.5, tf.int64)
    flat = tf.reshape(row * NUM_BUCKETS + bucket, [-1])
    counts = tf.math.unsorted_segment_sum(tf.ones_like(flat), flat, num_labels * 2 * NUM_BUCKETS)
    return tf.reshape(counts, [num_labels, 2, NUM_BUCKETS])


class ScoreHistogram(tf.keras.metrics.Metric):
    """All published metrics at once: `result()` is a dict name -> float32 scalar.

    Its variables are sums over photos (histogram, loss and count), so that TFF may add them up across clients.
    """

    def __init__(self, num_labels: int, is_binary: bool = False, name: str = "flair", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.num_labels, self.is_binary = num_labels, is_binary
        self.counts = self.add_weight("counts", (num_labels, 2, NUM_BUCKETS), dtype=tf.int64, initializer="zeros")
        self.loss_sum = self.add_weight("loss_sum", (), initializer="zeros")
        self.num_photos = self.add_weight("num_photos", (), dtype=tf.int64, initializer="zeros")

    def update_state(self, y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None = None) -> None:
        """Adds a batch: labels `[batch, labels]` and logits `[batch, labels]`; sample weights are not supported."""
        if sample_weight is not None:
            raise ValueError("ScoreHistogram counts photos; it takes no sample weights")
        y_true = tf.reshape(tf.cast(y_true, tf.float32), [-1, self.num_labels])
        y_pred = tf.reshape(tf.cast(y_pred, tf.float32), [-1, self.num_labels])
        self.counts.assign_add(histogram(scores_of(y_pred), y_true))
        self.loss_sum.assign_add(tf.reduce_sum(losses_of(y_true, y_pred)))
        self.num_photos.assign_add(tf.shape(y_true, tf.int64)[0])

    def result(self) -> dict[str, tf.Tensor]:
        """Metric name -> float32 scalar, in the published order."""
        return finalize(self.counts, self.loss_sum, self.num_photos, self.is_binary)

    def reset_state(self) -> None:
        """Forgets all photos."""
        for variable in self.variables:
            variable.assign(tf.zeros_like(variable))

    def add(self, other: ScoreHistogram, factor: tf.Tensor | int = 1) -> None:
        """Adds the photos of `other`, or leaves them out where `factor` is 0."""
        self.counts.assign_add(other.counts * tf.cast(factor, tf.int64))
        # A NaN loss of a photo that is left out must not come in as 0 * NaN.
        self.loss_sum.assign_add(tf.where(tf.cast(factor, tf.bool), other.loss_sum, 0.0))
        self.num_photos.assign_add(other.num_photos * tf.cast(factor, tf.int64))

    def summary(self) -> dict[str, float]:
        """Metric name -> float, computed in float64; not inside a `tf.function`."""
        sums = self.counts.numpy(), float(self.loss_sum.numpy()), int(self.num_photos.numpy())
        return score_histogram.finalize(*sums, self.is_binary)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_labels": self.num_labels, "is_binary": self.is_binary}


def finalize(counts: tf.Tensor, loss_sum: tf.Tensor, num_photos: tf.Tensor, is_binary: bool) -> dict[str, tf.Tensor]:
    """`histogram.finalize` as a TensorFlow function."""
    counts = tf.cast(counts, tf.float64)
    by_label, pooled = _curves(counts), _curves(tf.reduce_sum(counts, 0, keepdims=True))
    macro = {name: tf.reduce_mean(values) for name, values in by_label.items()}
    micro = {name: values[0] for name, values in pooled.items()}
    for mean in (macro, micro):
        both = mean["precision"] + mean["recall"]
        mean["f1"] = tf.math.divide_no_nan(2 * mean["precision"] * mean["recall"], both)
    loss = tf.math.divide_no_nan(tf.cast(loss_sum, tf.float64), tf.cast(num_photos, tf.float64))
    result = {"loss": loss, **score_histogram.published(macro, micro, is_binary)}
    return OrderedDict((name, tf.cast(value, tf.float32)) for name, value in result.items())


def _curves(counts: tf.Tensor) -> dict[str, tf.Tensor]:
    above = tf.cumsum(counts, axis=2, reverse=True)
    negatives, positives = above[:, 0], above[:, 1]
    precision = tf.math.divide_no_nan(positives, positives + negatives)
    recall = tf.math.divide_no_nan(positives, positives[:, :1])
    half = FIRST_BUCKET_ABOVE_HALF
    thresholds = tf.concat([tf.range(half), tf.range(half + 1, NUM_BUCKETS)], 0)
    kept_recall = tf.gather(recall, thresholds, axis=1)
    steps = kept_recall - tf.pad(kept_recall[:, 1:], [[0, 0], [0, 1]])
    return {
        "precision": precision[:, half],
        "recall": recall[:, half],
        "averaged_precision": tf.reduce_sum(steps * tf.gather(precision, thresholds, axis=1), 1),
    }
