"""Decisions by thresholds that are chosen on val, label by label, and applied to other photos.

The rule. A label is there where its score is above its threshold. The threshold of a label gives the highest F1 on the
photos it is chosen on; it lies half way between the two scores that it parts, and of several cuts as good the one with
the fewest positives is taken. A label whose photos are of fewer than `LEAST_USERS` users there has the global
threshold: the one of the published ones that gives all labels together the highest F1 (micro F1).

`macro_` and `micro_` precision, recall and F1 are the published ones, macro F1 the harmonic mean of macro precision and
macro recall. `mean_label_f1` is the mean of the labels' own F1, scikit-learn's `f1_score(average="macro")`, which is
what thresholds of single labels raise. Intervals are those of photos that the thresholds were not chosen on, for these
thresholds: what other val photos would have chosen is not in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from benchmark.evaluation.bootstrap import UserBootstrap
from benchmark.evaluation.resampled import ScoredPhotos, histogram
from benchmark.metrics.histogram import FIRST_BUCKET_ABOVE_HALF, NUM_BUCKETS, NUM_THRESHOLDS, divide

LEAST_USERS = 5
HALF = 0.5
# Lower edges of all buckets but the first.
_EDGES = np.insert(np.arange(1, NUM_THRESHOLDS - 1) / (NUM_THRESHOLDS - 1), FIRST_BUCKET_ABOVE_HALF - 1, HALF)


class Thresholds(NamedTuple):
    """Thresholds float64 [labels], which of them are the labels' own, bool [labels], and the global one."""

    of_label: np.ndarray
    is_own: np.ndarray
    together: float


def choose(photos: ScoredPhotos) -> Thresholds:
    """The thresholds of the rule above, for these photos."""
    together = _best_together(histogram(photos).sum(axis=0))
    chosen, is_own = [], []
    for scores, labels in photos.columns():
        own = len(np.unique(photos.users[labels > 0])) >= LEAST_USERS
        chosen.append(best_threshold(scores, labels) if own else together)
        is_own.append(own)
    return Thresholds(np.array(chosen), np.array(is_own), together)


def best_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """The threshold with the highest F1, from 0 on; `scores` float32 [photos], `labels` [photos], some of them 1.

    >>> best_threshold(np.float32([0.1, 0.2, 0.4, 0.8]), np.array([0, 1, 0, 1]))
    0.15000000223517418
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order].astype(np.float64)
    hits = np.cumsum(labels[order] > 0)
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    ends = ends[ranked[ends] > 0]  # a score of 0 is above no threshold
    if not len(ends):
        return HALF
    best = ends[np.argmax(2 * hits[ends] / (ends + 1 + hits[-1]))]
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return float((ranked[best] + below) / 2)


def decisions(
    photos: ScoredPhotos, thresholds: np.ndarray, bootstrap: UserBootstrap, is_binary: bool
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Precision, recall and F1 by `thresholds` [labels], and the same of every resample, float64 [resamples].

    A label that is there, but in no photo of a resample, has its values of the sample there, as in `resampled`.
    """
    in_sample = np.stack([_confusion(*one) for one in _decided(photos, thresholds)])
    resamples = np.stack(
        [bootstrap.counts(2 * labels + decided, photos.users, 4) for decided, labels in _decided(photos, thresholds)]
    ).astype(np.float64)
    found = _rates(in_sample)
    of_resample = _rates(resamples)
    exists = (resamples[:, 2] + resamples[:, 3]) > 0
    imputed = [np.where(exists, many, one[:, None]) for many, one in zip(of_resample, found, strict=True)]
    return (
        {name: float(value) for name, value in _summary(found, in_sample, is_binary).items()},
        {name: np.asarray(value) for name, value in _summary(imputed, resamples, is_binary).items()},
    )


def label_f1(photos: ScoredPhotos, thresholds: np.ndarray) -> np.ndarray:
    """F1 of each label, float64 [labels]; 0 where there is nothing to find."""
    return _rates(np.stack([_confusion(*one) for one in _decided(photos, thresholds)]))[2]


def _best_together(counts: np.ndarray) -> float:
    """The published threshold with the highest F1 for a histogram [2, 200]."""
    above = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1]
    f1 = 2 * above[1] / np.maximum(above[0] + above[1] + above[1, 0], 1)
    # From the highest threshold down: of several as good, argmax takes the one with the fewest positives.
    best = NUM_BUCKETS - 1 - int(np.argmax(f1[:0:-1]))
    return float(_EDGES[best - 1])


def _decided(photos: ScoredPhotos, thresholds: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What is decided and what is true, int64 0 or 1 [photos], of one label after the other."""
    for (scores, labels), threshold in zip(photos.columns(), thresholds, strict=True):
        yield (scores.astype(np.float64) > threshold).astype(np.int64), (labels > 0).astype(np.int64)


def _confusion(decided: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Photos without and with the label that are decided to be without or with it: float64 [4]."""
    return np.bincount(2 * labels + decided, minlength=4).astype(np.float64)


def _rates(counts: np.ndarray) -> list[np.ndarray]:
    """Precision, recall and F1 of counts [labels, 4, ...] as `_confusion` has them: each [labels, ...]."""
    false, missed, hits = counts[:, 1], counts[:, 2], counts[:, 3]
    return [divide(hits, hits + false), divide(hits, hits + missed), divide(2 * hits, 2 * hits + false + missed)]


def _summary(rates: list[np.ndarray], counts: np.ndarray, is_binary: bool) -> dict[str, np.ndarray]:
    pooled = [values[0] for values in _rates(counts.sum(axis=0, keepdims=True))]
    if is_binary:
        return dict(zip(("precision", "recall", "f1"), pooled, strict=True))
    macro = [values.mean(axis=0) for values in rates]
    return {
        "macro_precision": macro[0],
        "macro_recall": macro[1],
        "macro_f1": divide(np.asarray(2 * macro[0] * macro[1]), np.asarray(macro[0] + macro[1])),
        "micro_precision": pooled[0],
        "micro_recall": pooled[1],
        "micro_f1": pooled[2],
        "mean_label_f1": macro[2],
    }
