"""The classes and functions of ml-flair's module of this name: each published metric as a Keras metric of its own.

They accumulate what Keras's AUC does, and so take its thresholds, label weights and sample weights. The commands have
`benchmark.metrics.keras.ScoreHistogram` instead, which gets the same numbers from one histogram, in less time.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf


class ConfusionMatrixMetrics(tf.keras.metrics.AUC):
    """True and false positives and negatives above each threshold; a subclass says what `result` makes of them.

    Args:
      num_labels: how many; counted one by one with `multi_label`, else all decisions are pooled.
      multi_label: whether `result` is the mean over labels.
      num_thresholds: from 0 to 1 in equal steps, a little beyond at both ends; without `thresholds`.
      thresholds: between 0 and 1; a score counts as positive when it is strictly above.
      label_weights: of the mean over labels.
      from_logits: whether predictions are logits, of which the sigmoid is the score.

    `update_state` takes labels and predictions `[b, num_labels]`, and sample weights.
    """

    _default_thresholds: Sequence[float] | None = None

    def __init__(
        self,
        num_labels: int,
        multi_label: bool,
        num_thresholds: int = 200,
        name: str | None = None,
        dtype: tf.DType | None = None,
        thresholds: Sequence[float] | None = None,
        label_weights: Sequence[float] | None = None,
        from_logits: bool = False,
    ) -> None:
        super().__init__(
            num_thresholds=num_thresholds,
            name=name,
            dtype=dtype,
            thresholds=self._default_thresholds if thresholds is None else np.ravel(thresholds).tolist(),
            multi_label=multi_label,
            num_labels=num_labels if multi_label else None,
            label_weights=label_weights,
            from_logits=from_logits,
        )
        given = {"num_labels": num_labels, "num_thresholds": num_thresholds, "thresholds": thresholds}
        self._config = {**given, "multi_label": multi_label, "label_weights": label_weights, "from_logits": from_logits}

    def get_config(self) -> dict[str, Any]:
        """The arguments, with which TFF makes the metric again."""
        return {"name": self.name, "dtype": self.dtype, **self._config}

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        """Adds a batch; returns nothing, as TFF wants it."""
        super().update_state(*args, **kwargs)

    def result(self) -> tf.Tensor:
        """For subclasses."""
        raise NotImplementedError("ConfusionMatrixMetrics has no result; use Precision, Recall, F1 or a class of yours")

    def get_precision(self) -> tf.Tensor:
        """TP / (TP + FP), 0 where nothing is predicted: `[thresholds]`, or `[thresholds, labels]` by label."""
        return _share(self.true_positives, self.false_positives)

    def get_recall(self) -> tf.Tensor:
        """TP / (TP + FN), 0 where there are no positives; shape as of `get_precision`."""
        return _share(self.true_positives, self.false_negatives)

    def get_macro_average(self, by_label_metrics: tf.Tensor) -> tf.Tensor:
        """The mean over labels, by their weights if there are any."""
        assert self.multi_label
        if self.label_weights is None:
            return tf.reduce_mean(by_label_metrics)
        return tf.reduce_sum(by_label_metrics * self.label_weights) / tf.reduce_sum(self.label_weights)

    def _mean(self, values: tf.Tensor) -> tf.Tensor:
        return self.get_macro_average(values) if self.multi_label else values


class AveragedPrecision(ConfusionMatrixMetrics):
    """The sum over thresholds of (R_i - R_{i+1}) P_i, a scalar; of a label without positives it is 0."""

    def get_averaged_precision(self) -> tf.Tensor:
        """Scalar, or `[labels]` by label."""
        precision, recall = self.get_precision(), self.get_recall()
        return tf.reduce_sum((recall[:-1] - recall[1:]) * precision[:-1], axis=0)

    def result(self) -> tf.Tensor:
        """Scalar float32."""
        return self._mean(self.get_averaged_precision())


class _AtThresholds(ConfusionMatrixMetrics):
    """Metrics at given thresholds; `result` is `[thresholds]`, with `multi_label` a scalar: the mean over labels."""

    _default_thresholds = (0.5,)

    # Keras adds a threshold below 0 and one above 1.
    def _precision(self) -> tf.Tensor:
        return self._mean(self.get_precision()[1:-1])

    def _recall(self) -> tf.Tensor:
        return self._mean(self.get_recall()[1:-1])


class Precision(_AtThresholds):
    """Precision, at 0.5 unless told otherwise."""

    def result(self) -> tf.Tensor:
        """As ml-flair's: float32 `[thresholds]`, or with `multi_label` a scalar."""
        return self._precision()


class Recall(_AtThresholds):
    """Recall, at 0.5 unless told otherwise."""

    def result(self) -> tf.Tensor:
        """Shape as of `Precision.result`."""
        return self._recall()


class F1(_AtThresholds):
    """The harmonic mean of precision and recall; with `multi_label`, of their means over labels."""

    def result(self) -> tf.Tensor:
        """Shape as of `Precision.result`."""
        precision, recall = self._precision(), self._recall()
        return tf.math.divide_no_nan(2 * precision * recall, precision + recall)


def metrics_builder(num_labels: int) -> list[tf.keras.metrics.Metric]:
    """All published metrics of logits `[b, num_labels]`, new ones, for `compile` or TFF's `from_keras_model`.

    >>> [metric.name for metric in metrics_builder(1)]
    ['loss', 'precision', 'recall', 'f1', 'averaged_precision']
    >>> [metric.name for metric in metrics_builder(17)][:5]
    ['loss', 'macro_precision', 'micro_precision', 'macro_recall', 'micro_recall']
    """
    kinds = {"precision": Precision, "recall": Recall, "f1": F1, "averaged_precision": AveragedPrecision}
    means = {"": False} if num_labels == 1 else {"macro_": True, "micro_": False}
    return [
        tf.keras.metrics.BinaryCrossentropy(name="loss", from_logits=True),
        *(
            kind(num_labels, is_macro, name=f"{mean}{name}", from_logits=True)
            for name, kind in kinds.items()
            for mean, is_macro in means.items()
        ),
    ]


def flatten_metrics(nested_metrics: Any, prefix: str | None = None) -> dict[str, float]:
    """Numbers in dicts, lists, tuples and arrays, in one dict; keys and places are joined by spaces.

    A list of one thing is that thing.

    >>> flatten_metrics({"train": {"loss": 0.5, "recall": [1]}, "norms": (3, 4)})
    {'train loss': 0.5, 'train recall': 1.0, 'norms 0': 3.0, 'norms 1': 4.0}
    """
    if isinstance(nested_metrics, Mapping):
        inner = dict(nested_metrics)
    elif isinstance(nested_metrics, list | tuple) or np.ndim(nested_metrics):
        if len(nested_metrics) == 1:
            return flatten_metrics(nested_metrics[0], prefix)
        inner = dict(enumerate(nested_metrics))
    else:
        return {prefix: float(nested_metrics)}  # type: ignore[dict-item]
    flat: dict[str, float] = {}
    for key, value in inner.items():
        flat |= flatten_metrics(value, str(key) if prefix is None else f"{prefix} {key}")
    return flat


def print_metrics(metrics: Mapping[str, float], iteration: int | None = None) -> None:
    """Writes a line a metric to standard output, below a line with the iteration if there is one.

    >>> print_metrics({"loss": 0.25}, iteration=3)
    Metrics at iteration 3:
        loss                                              : 0.25
    """
    if iteration is not None:
        sys.stdout.write(f"Metrics at iteration {iteration}:\n")
    for name, value in metrics.items():
        sys.stdout.write(f"    {name:<50}: {value}\n")


def _share(hits: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    return tf.math.divide_no_nan(hits, hits + others)
