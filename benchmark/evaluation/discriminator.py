"""Whether two sets of photos can be told apart: a classifier on frozen features, and its AUC with an interval.

Photos of a user resemble each other, so users are dealt into folds, and a photo is scored by a logistic regression
that saw no photo of its user. The AUC counts pairs of photos of one fold only, since the models of two folds have
scales of their own; under no difference it is 0.5 on average.

The interval redraws users and keeps the models. What two folds have in common by chance counts twice, in the model of
each that scores the other; resamples see it once. Without a difference the AUC is, to first order, 0.5 plus a sum over
pairs of folds of such products, each counted twice: its variance is twice what resamples show, so their deviations are
multiplied by the root of two. With a difference, that is on the safe side.
(A "classifier two-sample test": Lopez-Paz and Oquab, ICLR 2017, https://arxiv.org/abs/1610.06545.)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from benchmark.evaluation.bootstrap import UserBootstrap, interval
from benchmark.run.seeds import derive_generator

NUM_FOLDS = 5
_RESAMPLES_AT_ONCE = 64
_WIDENING = 2**0.5


class TwoSets(NamedTuple):
    """Photos of two sets: features [photos, d], whether each is of the second, and the number of its user."""

    features: np.ndarray
    is_second: np.ndarray
    users: np.ndarray

    @property
    def num_users(self) -> int:
        """Users of either set, numbered from 0 on."""
        return int(self.users.max()) + 1


class Found(NamedTuple):
    """The AUC, 0.5 where the sets cannot be told apart, and its 95% interval over users."""

    auc: float
    low: float
    high: float


def discriminate(sets: TwoSets, num_resamples: int, seed: int) -> Found:
    """Trains and scores by folds of users; each set needs NUM_FOLDS users at least."""
    folds = _folds(sets, seed)[sets.users]
    scores = cross_fitted(sets, folds)
    bootstrap = UserBootstrap(sets.num_users, num_resamples, seed)
    value = float(_auc(scores, sets.is_second, folds, np.ones((len(scores), 1), np.float32))[0])
    replicates = [
        _auc(scores, sets.is_second, folds, bootstrap.weights[sets.users, start : start + _RESAMPLES_AT_ONCE])
        for start in range(0, num_resamples, _RESAMPLES_AT_ONCE)
    ]
    widened = value + _WIDENING * (np.concatenate(replicates) - value)
    low, high = interval(widened, sets.num_users, value, (0.0, 1.0)) or (np.nan, np.nan)
    return Found(value, low, high)


def cross_fitted(sets: TwoSets, folds: np.ndarray) -> np.ndarray:
    """Log odds float64 [photos] that each photo is of the second set, by the model of the other folds [photos]."""
    scores = np.empty(len(folds))
    for fold in np.unique(folds):
        held_out = folds == fold
        known = np.asarray(sets.features[~held_out], np.float64)
        mean, deviation = known.mean(axis=0), known.std(axis=0)
        deviation[deviation == 0] = 1
        weights, bias = fit((known - mean) / deviation, sets.is_second[~held_out])
        scores[held_out] = (sets.features[held_out] - mean) / deviation @ weights + bias
    return scores


def fit(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights [d] and bias of the logistic regression with |weights|^2 / 2 added to the summed loss.

    >>> weights, bias = fit(np.array([[-1.0], [1.0]]), np.array([False, True]))
    >>> round(float(weights[0]), 3), round(bias, 3)
    (0.675, 0.0)
    """
    import scipy.optimize
    import scipy.special

    signs = np.where(labels, 1.0, -1.0)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = parameters[:-1], parameters[-1]
        margins = signs * (features @ weights + bias)
        slopes = -signs * scipy.special.expit(-margins)
        value = np.logaddexp(0, -margins).sum() + weights @ weights / 2
        return float(value), np.append(features.T @ slopes + weights, slopes.sum())

    found = scipy.optimize.minimize(loss, np.zeros(features.shape[1] + 1), jac=True, method="L-BFGS-B")
    return found.x[:-1], float(found.x[-1])


def _folds(sets: TwoSets, seed: int) -> np.ndarray:
    """The fold of each user, int [users]: dealt out so that every fold has users of both sets."""
    of_first, of_second = (
        np.bincount(sets.users, sets.is_second == second, sets.num_users) > 0 for second in (False, True)
    )
    order = derive_generator(seed, "folds").permutation(sets.num_users)
    # Users of the first set only, of both, of the second only: those of either set stand together.
    order = order[np.argsort(of_second[order].astype(int) - of_first[order], kind="stable")]
    folds = np.empty(sets.num_users, np.int64)
    folds[order] = np.arange(sets.num_users) % NUM_FOLDS
    return folds


def _auc(scores: np.ndarray, is_second: np.ndarray, folds: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUC of each column of `weights` [photos, resamples]: over pairs of photos of one fold, ties count half."""
    right, pairs = np.zeros((2, weights.shape[1]))
    for fold in np.unique(folds):
        own = np.flatnonzero(folds == fold)
        own = own[np.argsort(scores[own], kind="stable")]
        starts = np.flatnonzero(np.diff(scores[own], prepend=-np.inf))
        of_first, of_second = (
            np.add.reduceat(weights[own] * (is_second[own] == second)[:, None], starts, axis=0, dtype=np.float64)
            for second in (False, True)
        )
        below = np.cumsum(of_first, axis=0) - of_first / 2
        right += (of_second * below).sum(axis=0)
        pairs += of_second.sum(axis=0) * of_first.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return np.asarray(right / pairs)
