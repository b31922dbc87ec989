"""The matrix of banded noise: how much of a round's noise the rounds after it take back.

Banded matrix factorization (Choquette-Choo et al., 2023, https://arxiv.org/abs/2306.08153): with x the clipped sums of
all rounds and z independent normal vectors, C x + z is released, hence x + w with C w = z. C is lower triangular and
Toeplitz, c_0, ..., c_(b-1) in every column, so that w_t = (z_t - c_1 w_(t-1) - ... - c_(b-1) w_(t-b+1)) / c_0.

Guarantee: where a user takes part in rounds at least b apart, the columns of C at these rounds have no row in common.
A participation then moves C x by at most the norm of a column, 1, times the clip norm, and the participations of a user
are as many Gaussian mechanisms, each on rows of its own (sections 3 and 4 there).
Edge cases: the last b - 1 columns are cut off, and shorter. One band is fresh noise: w = z.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

MAX_BANDS = 1024
MAX_ROUNDS = 100_000  # of which the coefficients are found in seconds
_DECIMALS = 4  # of the ratio of two neighbours, so that another processor finds the same coefficients


@functools.lru_cache(maxsize=64)
def coefficients(bands: int, rounds: int, momentum: float = 0.0) -> tuple[float, ...]:
    """The column of norm 1 with the least noise on the running sums (`rms_on_running_sum`).

    It is sought among columns that fall from one number to the next, whose inverse is stable (Enestroem-Kakeya).

    Args:
      bands: how many coefficients, 1 to `MAX_BANDS`.
      rounds: of training, at most `MAX_ROUNDS`.
      momentum: of the server; a round's update then counts 1 + momentum + momentum^2 ... in the sums after it.

    >>> [round(number, 3) for number in coefficients(4, 5000)]
    [0.55, 0.506, 0.484, 0.455]
    """
    import numpy as np
    from scipy import optimize, signal

    if bands == 1:
        return (1.0,)
    sums_up = _sums_up(momentum)
    # How many sums contain the noise of so many rounds before.
    times = np.arange(rounds, 0, -1.0)

    def filtered(denominator: np.ndarray, signal_in: np.ndarray) -> np.ndarray:
        return np.asarray(signal.lfilter([1.0], denominator, signal_in))

    def cost(ratios: np.ndarray) -> tuple[float, np.ndarray]:
        """Logarithm of squared noise times squared norm, and its gradient."""
        column = np.r_[1.0, np.cumprod(ratios)]
        inverse = _inverse(column, rounds)
        noise = filtered(sums_up, inverse)
        variance, squared_norm = times @ noise**2, column @ column
        by_inverse = filtered(sums_up, (2 * times * noise)[::-1])[::-1]
        # The derivative of 1 / c by c_j is -1 / c^2, j rounds later.
        twice = filtered(column, inverse)
        by_column = np.array([-by_inverse[lag:] @ twice[: rounds - lag] for lag in range(1, bands)]) / variance
        by_column += 2 * column[1:] / squared_norm
        by_ratio = np.cumsum((by_column * column[1:])[::-1])[::-1] / ratios
        return math.log(variance) + math.log(squared_norm), by_ratio

    start = np.array(_square_root(bands))
    bounds = [(10.0**-_DECIMALS, 1.0)] * (bands - 1)
    found = optimize.minimize(cost, start[1:] / start[:-1], jac=True, method="L-BFGS-B", bounds=bounds)
    return _of_norm_one(np.r_[1.0, np.cumprod(np.round(found.x, _DECIMALS))])


@functools.lru_cache(maxsize=64)
def square_root_coefficients(bands: int) -> tuple[float, ...]:
    """The published column, of norm 1: the first coefficients of (1 - x)^(-1/2), whose square sums up.

    For comparison: optimal only where all rounds have a band, and `coefficients` has less noise from 2 bands on.

    >>> [round(number, 3) for number in square_root_coefficients(4)]
    [0.82, 0.41, 0.307, 0.256]
    """
    return _of_norm_one(_square_root(bands))


def rms_on_running_sum(column: Sequence[float], rounds: int, momentum: float = 0.0) -> float:
    """Deviation of the noise on x_1 + ... + x_t for z of deviation 1: root mean square over t = 1, ..., rounds.

    With a momentum the sums are those that the server then takes, in which an update counts on.

    >>> round(rms_on_running_sum((1.0,), 5000), 4), round(rms_on_running_sum(coefficients(16, 5000), 5000), 4)
    (50.005, 13.0543)
    """
    import numpy as np
    from scipy import signal

    noise = signal.lfilter([1.0], _sums_up(momentum), _inverse(np.asarray(column), rounds))
    return math.sqrt(float(np.arange(rounds, 0, -1.0) @ noise**2) / rounds)


def _sums_up(momentum: float) -> np.ndarray:
    """The denominator (1 - x) (1 - momentum x) of one update's weight in the sums after it."""
    import numpy as np

    return np.array([1.0, -1.0 - momentum, momentum])


def _square_root(bands: int) -> list[float]:
    column = [1.0]
    for lag in range(1, bands):
        column.append(column[-1] * (2 * lag - 1) / (2 * lag))
    return column


def _of_norm_one(column: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    norm = math.hypot(*column)
    return tuple(float(number) / norm for number in column)


def _inverse(column: np.ndarray, rounds: int) -> np.ndarray:
    """The first numbers of 1 / (c_0 + c_1 x + ...): what z_0 is worth in w_0, w_1, ..."""
    import numpy as np
    from scipy import signal

    impulse = np.zeros(rounds)
    impulse[0] = 1.0
    return np.asarray(signal.lfilter([1.0], column, impulse))
