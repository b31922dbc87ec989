"""Two baselines of few-shot learning on fixed features: nearest centroid and linear head.

Features are centred and scaled by the support set, with one number for all: no distance comparison changes, and one
learning rate fits every network. Pure NumPy; every query photo is scored by itself, so that blocks of queries give the
same numbers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def standardized(support: np.ndarray, query: np.ndarray) -> tuple[Floats, Floats]:
    """Both, minus the mean of the support features, divided by the root mean square of their distances from it.

    Args:
      support, query: [photos, channels].
    """
    support, query = np.asarray(support, np.float64), np.asarray(query, np.float64)
    mean = support.mean(axis=0)
    scale = np.sqrt(np.mean(np.sum((support - mean) ** 2, axis=1)))
    return (support - mean) / (scale or 1.0), (query - mean) / (scale or 1.0)


def centroids(support: Floats, classes: np.ndarray, ways: int) -> Floats:
    """Mean support feature of each class, [ways, channels]; prototypes of Snell et al. 2017 on fixed features.

    https://arxiv.org/abs/1703.05175
    """
    one_hot = _one_hot(classes, ways)
    return np.asarray(one_hot.T @ support / one_hot.sum(axis=0)[:, None])


def nearest(query: Floats, centres: Floats) -> npt.NDArray[np.int64]:
    """Class int64 [photos] of the centroid at the least squared Euclidean distance."""
    return np.array([np.argmin(np.sum((centres - one) ** 2, axis=1)) for one in query], np.int64)


def fine_tune(
    support: Floats, classes: np.ndarray, ways: int, steps: int, learning_rate: float, proximal_strength: float = 0.0
) -> tuple[Floats, Floats]:
    """A linear head, from zero, by gradient descent on the cross-entropy of the whole support set.

    Returns:
      Weights [channels, ways] and bias [ways].
    """
    weights, bias = np.zeros((support.shape[1], ways)), np.zeros(ways)
    truth = _one_hot(classes, ways)
    for _ in range(steps):
        logits = support @ weights + bias
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        error = (shifted / shifted.sum(axis=1, keepdims=True) - truth) / len(support)
        weights -= learning_rate * (support.T @ error + proximal_strength * weights)
        bias -= learning_rate * (error.sum(axis=0) + proximal_strength * bias)
    return weights, bias


def classify(query: Floats, weights: Floats, bias: Floats) -> npt.NDArray[np.int64]:
    """Class int64 [photos] of the largest logit of a linear head."""
    return np.array([np.argmax(one @ weights + bias) for one in query], np.int64)


def _one_hot(classes: np.ndarray, ways: int) -> Floats:
    return np.eye(ways)[np.asarray(classes)]
