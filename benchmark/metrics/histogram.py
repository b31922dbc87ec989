"""The published metrics from one histogram of scores per label.

Precision, recall and F1 at threshold 0.5 (a score counts as positive when strictly above) and averaged precision,
AP = sum_i (R_i - R_{i+1}) P_i over the 200 thresholds of `keras.metrics.AUC`: -1e-7, 1/199, ..., 198/199, 1 + 1e-7.
`macro_` averages over labels, a label without positives counting 0; `micro_` pools all decisions. Macro F1 is the
harmonic mean of macro precision and macro recall. 0/0 is 0.

The published code computes them by nine AUC objects, each O(examples x labels x 200) or nearly; here every score
falls into one bucket once. The histogram is a plain array of counts, so histograms of disjoint photos add up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

NUM_THRESHOLDS = 200
# 199 buckets between the 200 thresholds; 0.5 is no threshold, so the bucket that holds it is cut in two.
NUM_BUCKETS = NUM_THRESHOLDS
FIRST_BUCKET_ABOVE_HALF = 100
_NAMES = ("precision", "recall", "f1", "averaged_precision")


def bucket_of(scores: np.ndarray) -> np.ndarray:
    """The bucket of each score: how many of the interior thresholds, 0.5 included, lie strictly below it.

    Args:
      scores: float32 of any shape, 0 to 1.

    >>> bucket_of(np.float32([0, 1 / 199, 0.5, 0.501, 1])).tolist()
    [0, 0, 99, 100, 199]
    """
    scores = np.asarray(scores, np.float32)
    bucket = np.maximum(np.ceil(scores * np.float32(NUM_THRESHOLDS - 1)) - 1, 0)
    return (bucket + (scores > 0.5)).astype(np.int64)


def histogram(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts int64 [labels, 2, 200]: photos without and with the label, by bucket of their score.

    Args:
      scores: float32 [photos, labels], 0 to 1.
      labels: [photos, labels], 0 or 1.
    """
    num_labels = scores.shape[1]
    row = np.arange(num_labels, dtype=np.int64) * 2 + (np.asarray(labels) > 0.5)
    flat = row * NUM_BUCKETS + bucket_of(scores)
    counts = np.bincount(flat.ravel(), minlength=num_labels * 2 * NUM_BUCKETS)
    return counts.reshape(num_labels, 2, NUM_BUCKETS)


def finalize(
    counts: np.ndarray, loss_sum: float | None = None, num_photos: float | None = None, is_binary: bool = False
) -> dict[str, float]:
    """All metrics from a histogram, in the published order and with the published names.

    Args:
      counts: [labels, 2, 200], as `histogram` or a sum of such.
      loss_sum: sum over photos of the mean over labels of the binary cross-entropy (None: no `loss`).
      num_photos: by which it is divided.
      is_binary: bare names (`precision`); needs exactly one label.
    """
    counts = np.asarray(counts, np.float64)
    pooled = {name: values[0] for name, values in curves(counts.sum(axis=0, keepdims=True)).items()}
    result = {}
    if loss_sum is not None:
        result["loss"] = float(loss_sum) / num_photos if num_photos else 0.0
    return result | {name: float(value) for name, value in combine(curves(counts), pooled, is_binary).items()}


def combine(
    by_label: Mapping[str, np.ndarray], pooled: Mapping[str, np.ndarray], is_binary: bool = False
) -> dict[str, np.ndarray]:
    """The published metrics, without `loss`, from precision, recall and averaged precision, for any number of samples.

    Args:
      by_label: each [..., labels], as `curves` of the labels' histograms.
      pooled: each [...], as `curves` of the histogram of all labels together.
      is_binary: bare names (`precision`); needs exactly one label.
    """
    num_labels = by_label["precision"].shape[-1]
    if is_binary and num_labels != 1:
        raise ValueError(f"bare metric names need one label, found {num_labels}")
    macro, micro = {name: np.mean(values, axis=-1) for name, values in by_label.items()}, dict(pooled)
    for mean in (macro, micro):
        both = mean["precision"] + mean["recall"]
        mean["f1"] = divide(np.asarray(2 * mean["precision"] * mean["recall"]), np.asarray(both))
    return published(macro, micro, is_binary)


def published(macro: Mapping[str, Any], micro: Mapping[str, Any], is_binary: bool) -> dict[str, Any]:
    """Both means of each metric under the published names and in their order; a single label has bare names."""
    if is_binary:
        return {name: micro[name] for name in _NAMES}
    return {f"{mean}_{name}": of[name] for name in _NAMES for mean, of in (("macro", macro), ("micro", micro))}


def metric_names(is_binary: bool) -> list[str]:
    """Names of the published metrics, in order.

    >>> metric_names(is_binary=True)
    ['loss', 'precision', 'recall', 'f1', 'averaged_precision']
    """
    none = dict.fromkeys(_NAMES)
    return ["loss", *published(none, none, is_binary)]


def averaged_precision_by_label(counts: np.ndarray) -> np.ndarray:
    """Averaged precision float64 [labels] over the 200 thresholds; 0 for a label without positives."""
    return curves(np.asarray(counts, np.float64))["averaged_precision"]


def exact_average_precision(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Average precision of each label over every distinct score, as scikit-learn's `average_precision_score`.

    Args:
      scores: [photos, labels]; any monotone function of the probability.
      labels: [photos, labels], 0 or 1.

    Returns:
      float64 [labels]; 0 for a label without positives.

    >>> exact_average_precision(np.array([[.1], [.4], [.35], [.8]]), np.array([[0], [0], [1], [1]])).round(4).tolist()
    [0.8333]
    """
    return np.array([pooled_average_precision(*one) for one in zip(scores.T, np.asarray(labels).T, strict=True)])


def pooled_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Exact average precision over all decisions, whatever the shape of both arrays; 0 where no label is 1."""
    scores, labels = np.ravel(scores), np.ravel(labels) > 0.5
    if not labels.any():
        return 0.0
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(labels[order])
    last_of_tie = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    precision = hits[last_of_tie] / (last_of_tie + 1.0)
    return float(np.sum(np.diff(hits[last_of_tie], prepend=0) * precision) / hits[-1])


def exact_metrics(scores: np.ndarray, labels: np.ndarray, is_binary: bool = False) -> dict[str, float]:
    """Exact average precision under names that tell it from the published one: `macro_exact_average_precision`, ..."""
    micro = pooled_average_precision(scores, labels)
    if is_binary:
        return {"exact_average_precision": micro}
    macro = float(np.mean(exact_average_precision(scores, labels)))
    return {"macro_exact_average_precision": macro, "micro_exact_average_precision": micro}


def know_nothing_macro_precision(photos_by_label: np.ndarray, num_photos: int) -> float:
    """Macro averaged precision of a scorer that knows nothing: the mean frequency of the labels."""
    return float(np.mean(np.asarray(photos_by_label) / max(num_photos, 1)))


def curves(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Precision and recall at 0.5 and averaged precision, float64 [labels], from counts float64 [labels, 2, 200]."""
    above = np.cumsum(counts[:, :, ::-1], axis=2)[:, :, ::-1]  # photos scored above the lower edge of each bucket
    negatives, positives = above[:, 0], above[:, 1]
    totals = positives[:, :1]
    precision = divide(positives, positives + negatives)
    recall = divide(positives, np.broadcast_to(totals, positives.shape))
    # Averaged precision knows only Keras's thresholds, so the cut at 0.5 is left out again.
    kept = np.delete(np.arange(NUM_BUCKETS), FIRST_BUCKET_ABOVE_HALF)
    steps = recall[:, kept] - np.append(recall[:, kept[1:]], np.zeros_like(totals), axis=1)
    return {
        "precision": precision[:, FIRST_BUCKET_ABOVE_HALF],
        "recall": recall[:, FIRST_BUCKET_ABOVE_HALF],
        "averaged_precision": np.sum(steps * precision[:, kept], axis=1),
    }


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient in the dtype of `numerator`, 0 where `denominator` is not above 0."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
