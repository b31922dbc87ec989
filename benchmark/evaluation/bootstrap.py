"""Confidence intervals from a bootstrap over users.

Photos of a user resemble each other, so whole users are redrawn and not photos. A resample draws as many users as there
are, with replacement; a user drawn twice counts twice with every photo. All metrics here are functions of sums over
users, so that a resample is a vector of weights, and all resamples of a sum are one sparse matrix product.
"""

from __future__ import annotations

import numpy as np

from benchmark.run.seeds import derive_generator

LEVEL = 0.95
METHOD = "percentile bootstrap over users, moved by twice its bias, expanded for few users (Hesterberg)"

# Measured by the test of coverage in tests/evaluation/test_bootstrap.py, which prints it: macro averaged precision of
# 17 labels.
FEW_USERS = 500
FEW_USERS_WARNING = "95% intervals of macro averaged precision covered 91% at 60 and at 200 users in simulations"
# The same for the average precision of single labels, and for the macro average where many labels are that rare.
RARE_LABEL_USERS = 10
RARE_LABEL_WARNING = "95% intervals of such labels covered 88% in simulations; of macro averages over many, 74 to 80%"

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
            # The bins of the i-th resample begin at i * num_users, so that one bincount counts many resamples.
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


def interval(
    replicates: np.ndarray,
    num_users: int,
    estimate: float | None = None,
    limits: tuple[float, float] = (-np.inf, np.inf),
) -> tuple[float, float] | None:
    """The 95% interval between two quantiles of a statistic's resamples [resamples]; those not finite are left out.

    Resamples hold some photos twice, which raises some statistics (average precision of a rare label, calibration
    error). The sample is taken to have that bias once and its resamples twice, so both quantiles move by twice the
    distance from the resamples' median to the sample's own `estimate`. Efron's bias-corrected interval
    (https://doi.org/10.2307/3314608) does the same to a normal statistic; in general it moves ranks, of which none are
    left where the bias is several deviations, as for macro averages over many rare labels. There the interval can lie
    beside the estimate. It ends at the `limits` that the statistic has.

    For few users the interval is too narrow all the same, like a normal one with the biased standard deviation. The
    quantiles move out as far as Student's t and that bias ask: the "expanded percentile interval" of T. Hesterberg,
    "What Teachers Should Know About the Bootstrap", https://arxiv.org/abs/1411.5279. For thousands of users by nothing.

    Returns:
      (low, high), or None for fewer than two users, or without any finite resample.

    >>> low, high = interval(np.arange(1001) / 1000, num_users=100_000, estimate=0.45)
    >>> round(low, 3), round(high, 3)
    (-0.075, 0.875)
    """
    import scipy.special

    finite = np.asarray(replicates, np.float64)
    finite = finite[np.isfinite(finite)]
    if num_users < 2 or not len(finite):
        return None
    distance = np.sqrt(num_users / (num_users - 1)) * scipy.special.stdtrit(num_users - 1, 0.5 + LEVEL / 2)
    ends = np.quantile(finite, scipy.special.ndtr([-distance, distance]))
    if estimate is not None and np.isfinite(estimate):
        ends -= 2 * (np.median(finite) - estimate)
    low, high = np.clip(ends, *limits)
    return float(low), float(high)


def clopper_pearson(successes: int, trials: int) -> tuple[float, float]:
    """The exact binomial 95% interval of a share (Clopper and Pearson 1934); it takes the trials for independent.

    >>> low, high = clopper_pearson(8, 10)
    >>> round(low, 4), round(high, 4)
    (0.4439, 0.9748)
    """
    import scipy.stats

    low, high = scipy.stats.binomtest(successes, trials).proportion_ci(LEVEL, method="exact")
    return float(low), float(high)
