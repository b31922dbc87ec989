"""Calibration: whether labels are there as often as the scores say.

Scores fall into 15 bins of equal width, as in Guo et al. 2017 (https://arxiv.org/abs/1706.04599). The expected
calibration error of a label is the sum over bins of |sum of (score - label)| / decisions: how far the mean score of a
bin lies from its share of positives, weighted by the bin's decisions. `macro_` is the mean over labels (Nixon et al.
2019, https://arxiv.org/abs/1904.01685), `micro_` takes all decisions together. Of few decisions the error comes out too
large, because chance moves every bin away from its mean score.
"""

from __future__ import annotations

import numpy as np

from benchmark.metrics.histogram import divide

NUM_BINS = 15
_EDGES = np.linspace(0, 1, NUM_BINS + 1)[1:-1]


def bin_of(scores: np.ndarray) -> np.ndarray:
    """The bin of each score, int64 from 0 on; a score on an edge belongs to the bin below, as in scikit-learn.

    >>> bin_of(np.array([0.0, 0.05, 0.5, 1.0])).tolist()
    [0, 0, 7, 14]
    """
    return np.searchsorted(_EDGES, np.asarray(scores, np.float64)).astype(np.int64)


def error_of(excess: np.ndarray, decisions: np.ndarray | float) -> np.ndarray:
    """Expected calibration error.

    Args:
      excess: sum of (score - label) of each bin, [bins, ...].
      decisions: how many fall into all bins together, [...].
    """
    return divide(np.abs(excess).sum(axis=0), np.asarray(decisions))


def combine(of_label: np.ndarray, pooled: np.ndarray, is_binary: bool) -> dict[str, np.ndarray]:
    """Both means, by the names of metrics; `of_label` [..., labels], `pooled` [...]."""
    if is_binary:
        return {"calibration_error": pooled}
    return {"macro_calibration_error": np.mean(of_label, axis=-1), "micro_calibration_error": pooled}
