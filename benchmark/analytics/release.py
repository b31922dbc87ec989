"""The private release: Gaussian noise on the sums of all questions, intervals, quantiles, and what it spent.

All questions together are one Gaussian mechanism in which every user takes part. The sum of a question gets noise of
sigma * sqrt(questions) times its bound: each user's vector, every part of it divided by its bound and by
sqrt(questions), has at most length 1, and sigma is the noise multiplier of the plan.

Guarantee: the numbers of a release are together (epsilon, delta)-differentially private for adding or removing one
user, where epsilon and delta are those of the plan. The number of users is taken as public, as in training.
Edge cases: an answer is rounded to a 64th or less of its noise, which hides the lowest bits of the floating-point
numbers (Mironov 2012, https://doi.org/10.1145/2382196.2382264) but is no proof about them. A second release with a new
key spends once more; one with the same key is the same release.

TFF's analytics are not in the way of the noise. `tff.analytics.build_hierarchical_histogram_process` draws it in TFF's
worker, from a generator seeded with 32 bits, where no noise key reaches; its bins have one width, and its IBLT for
heavy hitters is for domains that are not known and adds no noise. For the exact sums the tests hold both against this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from benchmark.analytics.questions import FINE_LABELS, PHOTOS, Question
from benchmark.privacy.accounting import ACCOUNTANTS, described
from benchmark.privacy.noise import standard_normals
from benchmark.privacy.noise_key import NoiseKey
from benchmark.privacy.plan import PrivacyPlan
from benchmark.privacy.rounding import finite
from benchmark.privacy.spending import as_json, release_of

FORMAT_VERSION = 1
CONFIDENCE = 0.95


def answer(
    questions: Sequence[Question],
    plan: PrivacyPlan,
    key: NoiseKey,
    quantiles: Sequence[float],
    compare_exact: bool = False,
) -> dict[str, Any]:
    """The result as plain JSON values; its keys are documented in docs/analytics.md.

    Args:
      plan: of one round in which all users take part.
      key: a secret key that nothing else draws from.
      quantiles: of photos per user, each above 0 and below 1.
      compare_exact: adds the exact values, after which nothing of the result is private.
    """
    noise_multiplier = plan.noise_multiplier * math.sqrt(len(questions))
    answers = {}
    for question in questions:
        stddev = noise_multiplier * question.bound
        noised = noised_sums(question, stddev, key)
        answers[question.name] = {
            "bound": question.bound,
            "noise_multiplier": noise_multiplier,
            "noise_stddev": stddev,
            **(
                _photos(question, noised, stddev, plan.num_users, quantiles, compare_exact)
                if question.name == PHOTOS
                else _labels(question, noised, stddev, plan.num_users, compare_exact)
            ),
        }
    return {
        "format": FORMAT_VERSION,
        "private": not compare_exact,
        "unit": "user",
        "adjacency": "one user added or removed",
        "users": plan.num_users,
        "delta": plan.delta,
        "users_times_delta": plan.num_users * plan.delta,
        "target_epsilon": plan.request.epsilon,
        "accountant": described(plan.request.accountant),
        "epsilon": {name: finite(plan.epsilon_at(1, name)) for name in ACCOUNTANTS},
        "noise_multiplier": plan.noise_multiplier,
        "spending": None if compare_exact else as_json([release_of(plan, 1)]),
        "confidence": CONFIDENCE,
        "questions": answers,
    }


def noised_sums(question: Question, stddev: float, key: NoiseKey) -> np.ndarray:
    """float64 [cells]: the sums with noise, in multiples of the power of two below a 64th of the noise."""
    step = 2.0 ** math.floor(math.log2(stddev / 64))
    normals = standard_normals(key.stream("analytics", question.name), len(question.sums))
    noised: np.ndarray = step * np.round((question.sums + stddev * normals.astype(np.float64)) / step)
    return noised


def half_width(stddev: float, at_once: int = 1) -> float:
    """Half of an interval that holds the truth with probability 0.95; so do `at_once` independent ones together.

    >>> round(half_width(1.0), 2), round(half_width(1.0, at_once=1628), 2)
    (1.96, 4.16)
    """
    return stddev * NormalDist().inv_cdf((1 + CONFIDENCE ** (1 / at_once)) / 2)


def _labels(
    question: Question, noised: np.ndarray, stddev: float, num_users: int, compare_exact: bool
) -> dict[str, Any]:
    """All labels; of the fine ones those whose interval does not hold 0, with the most users first.

    These are chosen by their size, so that their intervals have to hold for all labels at once.
    """
    fine = question.name == FINE_LABELS
    margin = half_width(stddev, len(noised) if fine else 1)
    chosen = np.flatnonzero(noised > margin) if fine else np.arange(len(noised))
    rows = []
    for cell in chosen[np.argsort(-noised[chosen], kind="stable")]:
        value = float(noised[cell])
        users, low, high = (min(max(one, 0.0), float(num_users)) for one in (value, value - margin, value + margin))
        row = {"label": question.cells[cell], "users": users, "low": low, "high": high}
        rows.append({**row, "exact": float(question.exact[cell])} if compare_exact else row)
    return {"labels": rows, **({"of": len(noised), "threshold": margin} if fine else {})}


def _photos(
    question: Question,
    noised: np.ndarray,
    stddev: float,
    num_users: int,
    quantiles: Sequence[float],
    compare_exact: bool,
) -> dict[str, Any]:
    ends = np.asarray(question.cells)
    at_most, deviation = cumulative(noised, stddev, num_users)
    rows = []
    for quantile in quantiles:
        low, middle, high = quantile_bins(at_most, half_width(1.0) * deviation, quantile * num_users)
        first = int(ends[low - 1]) + 1 if low else 1
        row = {"quantile": quantile, "photos": int(ends[middle]), "low": first, "high": int(ends[high])}
        if compare_exact:
            row["exact"] = int(np.quantile(question.exact, quantile, method="inverted_cdf"))
        rows.append(row)
    return {"max_photos": int(ends[-1]), "bins": len(ends), "quantiles": rows}


def cumulative(noised: np.ndarray, stddev: float, num_users: int) -> tuple[np.ndarray, np.ndarray]:
    """Users in each bin or one before it, and the standard deviation of that: float64 [bins] both.

    All users are in some bin, so what the noised bins have too much or too little is taken from all of them alike. It
    leaves the variance of k of B bins at k (1 - k / B), in place of k.
    """
    bins = len(noised)
    known = noised + (num_users - noised.sum()) / bins
    counted = np.arange(1, bins + 1)
    return np.cumsum(known), stddev * np.sqrt(counted * (1 - counted / bins))


def quantile_bins(at_most: np.ndarray, margin: np.ndarray, rank: float) -> tuple[int, int, int]:
    """Bins of a quantile: low, estimate, high.

    The quantile is the first bin up to which there are at least `rank` users. Noised numbers may fall again; the first
    bin of their running maximum is the same. If each true number is within `margin` with probability 0.95, the
    quantile's bin is from low to high with probability 0.95: it is below low only if its own number is too small by
    more than the margin, and above high only if that of the bin before it is too large by more.
    """
    last = len(at_most) - 1
    low = int(np.argmax(np.append(at_most + margin, np.inf) >= rank))
    too_few = np.flatnonzero(at_most - margin < rank)
    high = int(too_few[-1]) + 1 if len(too_few) else 0
    estimate = int(np.argmax(np.append(at_most, np.inf) >= rank))
    return min(low, last), min(estimate, last), min(high, last)
