"""How much noise the model carries after many rounds: the number by which mechanisms compare.

A server adds up mean updates, so what counts is the noise on their running sum, not that on one round. It is given as
the root mean square over all rounds, which matrix factorization mechanisms minimize (Choquette-Choo et al., 2023,
https://arxiv.org/abs/2306.08153).
"""

from __future__ import annotations

import math

from benchmark.privacy import banded
from benchmark.privacy.request import Mechanism, PrivacyRequest


def rms_noise(request: PrivacyRequest, noise_multiplier: float, cohort: int) -> float:
    """Deviation of the noise on the sum of the mean updates so far, in clip norms: root mean square over the rounds.

    The sum of t rounds of fresh noise has t times the variance of one. Under tree aggregation it has that of the nodes
    that make up [0, t), and Honaker's estimate of a node of 2^k rounds has 1 / (2 - 2^-k) of the variance of its own
    vector (`noise.TreeNoise`). That of banded noise follows from its matrix (`banded.rms_on_running_sum`).

    Args:
      request: mechanism, bands and rounds.
      noise_multiplier: on the sum over a cohort, on a node of the tree, or on the banded combination of rounds, in clip
        norms.
      cohort: clients a round.

    >>> round(rms_noise(PrivacyRequest(cohort=200, total_rounds=5000), 0.9737, 200), 4)
    0.2434
    >>> round(rms_noise(PrivacyRequest(cohort=1, total_rounds=3, mechanism=Mechanism.TREE), 1.0, 1), 4)
    1.0541
    """
    rounds = request.total_rounds
    if request.mechanism is Mechanism.BANDED:
        return noise_multiplier * banded.rms_on_running_sum(column_of(request), rounds) / cohort
    if request.mechanism is Mechanism.GAUSSIAN:
        variance = (rounds + 1) / 2
    else:
        of_levels = ((_rounds_with_bit(level, rounds), 2 - 0.5**level) for level in range(rounds.bit_length()))
        variance = sum(count / weight for count, weight in of_levels) / rounds
    return noise_multiplier * math.sqrt(variance) / cohort


def column_of(request: PrivacyRequest) -> tuple[float, ...]:
    """The column of the matrix of a request with banded noise, once its bands are known."""
    assert request.bands is not None
    return banded.coefficients(request.bands, request.total_rounds, request.server_momentum)


def _rounds_with_bit(bit: int, rounds: int) -> int:
    """How many of 1, ..., `rounds` have this bit."""
    width = 1 << bit
    whole, rest = divmod(rounds + 1, 2 * width)
    return whole * width + max(0, rest - width)
