"""Confidence intervals from a bootstrap over users.

Photos of a user resemble each other, so whole users are redrawn and not photos. A resample draws as many users as there
are, with replacement; a user drawn twice counts twice with every photo. All metrics here are functions of sums over
users, so that a resample is a vector of weights, and all resamples of a sum are one sparse matrix product.
"""

from __future__ import annotations

import numpy as np

from benchmark.run.seeds import derive_generator

LEVEL = 0.95
METHOD = "bias-corrected percentile bootstrap over users (Efron), expanded for few users (Hesterberg)"

# Measured by the test of coverage in tests/evaluation/test_bootstrap.py, which prints it: macro averaged precision of
# 17 labels.
FEW_USERS = 500
FEW_USERS_WARNING = "95% intervals of macro averaged precision covered 90% at 60 users, 92% at 200 in simulations"
# The same for the average precision of single labels, and for the macro average where many labels are that rare.
RARE_LABEL_USERS = 10
RARE_LABEL_WARNING = "95% intervals of such labels covered 85% in simulations; of macro averages over many, 76%"

_DRAWS_AT_ONCE = 1 << 20
_DENSE_ABOVE = 0.002  # a dense product is faster where more than this part of cells times users has an event


class UserBootstrap:
    """Resamples of `num_users` users; equal arguments give equal ones, so that models can be compared in pairs.

    Attributes:
      weights: float32 [users, resamples]: how often each user was drawn.
    """

    def __init__(self, num_users: int, num_resamples: int, seed: int) -> None:
        self.num_users, self.num_resamples = num_users, num_resamples
        generator = derive_generator(seed, "bootstrap")
        self.weights = np.empty((num_users, num_resamples), np.float32)
        at_once = max(1, _DRAWS_AT_ONCE // num_users)
        for start in range(0, num_resamples, at_once):
            size = min(at_once, num_resamples - start)
            drawn = generator.integers(num_users, size=(size, num_users)) + num_users * np.arange(size)[:, None]
            weights = np.bincount(drawn.ravel(), minlength=size * num_users).reshape(size, num_users)
            self.weights[:, start : start + size] = weights.T

    def counts(self, cells: np.ndarray, users: np.ndarray, num_cells: int) -> np.ndarray:
        """How many of the events in each cell every resample holds: float32 [cells, resamples].

        Args:
          cells, users: the cell and the user (both numbers from 0 on) of each event, [events].
        """
        import scipy.sparse

        shape = (num_cells, self.num_users)
        events = scipy.sparse.csr_matrix((np.ones(len(cells), np.float32), (cells, users)), shape)
        # Sums of fewer than 2^24 ones are exact in float32.
        if events.nnz < _DENSE_ABOVE * num_cells * self.num_users:
            return np.asarray(events @ self.weights)
        filled = np.diff(events.indptr) > 0
        counts = np.zeros((num_cells, self.num_resamples), np.float32)
        counts[filled] = events[filled].toarray() @ self.weights
        return counts

    def sums_in_cells(self, values: np.ndarray, cells: np.ndarray, users: np.ndarray, num_cells: int) -> np.ndarray:
        """The sum of `values` [events] of each cell in every resample: float32 [cells, resamples]; few cells."""
        flat = np.bincount(cells * self.num_users + users, values, minlength=num_cells * self.num_users)
        return np.asarray(flat.reshape(num_cells, self.num_users).astype(np.float32) @ self.weights)

    def sums(self, values: np.ndarray, users: np.ndarray) -> np.ndarray:
        """The sum of `values` [events] in every resample: float64 [resamples]."""
        by_user = np.bincount(users, np.asarray(values, np.float64), minlength=self.num_users)
        return np.asarray(by_user @ self.weights.astype(np.float64))

    def mean(self, values: np.ndarray, users: np.ndarray) -> np.ndarray:
        """The mean of `values` [events] in every resample: float64 [resamples]."""
        with np.errstate(invalid="ignore"):  # a resample without a user of these has no mean: NaN
            return self.sums(values, users) / self.sums(np.ones(len(users)), users)


def interval(replicates: np.ndarray, num_users: int, estimate: float | None = None) -> tuple[float, float] | None:
    """The 95% interval between two quantiles of a statistic's resamples [resamples]; those not finite are left out.

    Resamples hold some photos twice, which favours some statistics (average precision of a rare label, above all): with
    the sample's own `estimate` the quantiles move by twice the distance of that from the median, in normal deviates
    (the "bias-corrected percentile interval": B. Efron, https://doi.org/10.2307/3314608).

    For few users the interval is too narrow all the same, like a normal one with the biased standard deviation. The
    quantiles move out as far as Student's t and that bias ask: the "expanded percentile interval" of T. Hesterberg,
    "What Teachers Should Know About the Bootstrap", https://arxiv.org/abs/1411.5279. For thousands of users by nothing.

    Returns:
      (low, high), or None for fewer than two users, or without any finite resample.

    >>> low, high = interval(np.arange(1001) / 1000, num_users=100_000, estimate=0.5)
    >>> round(low, 3), round(high, 3)
    (0.025, 0.975)
    """
    import scipy.special

    finite = np.asarray(replicates, np.float64)
    finite = finite[np.isfinite(finite)]
    if num_users < 2 or not len(finite):
        return None
    shift = 0.0
    if estimate is not None and np.isfinite(estimate):
        below = float(np.mean(finite < estimate) + np.mean(finite <= estimate)) / 2
        least = 1 / (len(finite) + 1)
        shift = 2 * float(scipy.special.ndtri(min(max(below, least), 1 - least)))
    distance = np.sqrt(num_users / (num_users - 1)) * scipy.special.stdtrit(num_users - 1, 0.5 + LEVEL / 2)
    low, high = (float(np.quantile(finite, scipy.special.ndtr(shift + side * distance))) for side in (-1, 1))
    return low, high


def clopper_pearson(successes: int, trials: int) -> tuple[float, float]:
    """The exact binomial 95% interval of a share (Clopper and Pearson 1934); it takes the trials for independent.

    >>> low, high = clopper_pearson(8, 10)
    >>> round(low, 4), round(high, 4)
    (0.4439, 0.9748)
    """
    import scipy.stats

    low, high = scipy.stats.binomtest(successes, trials).proportion_ci(LEVEL, method="exact")
    return float(low), float(high)
