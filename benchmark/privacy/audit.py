"""How much of its canaries a private run gave away: epsilon measured from outside, beside the one that is claimed.

A canary is a client that is nobody. A fair coin decides whether it is in the population; those that are in take part as
users do, with updates in a random direction of their own (`benchmark.rounds.canaries`). An attacker who sees what the
run releases gives every canary a score, and guesses from the scores which of them are in.

Guarantee: with the stated confidence all of this holds together. `bound` is at most the epsilon of the run, whatever
its mechanism is (Steinke, Nasr and Jagielski 2023, theorem 5.2 of https://arxiv.org/abs/2305.08846): coins are
independent, and a guess depends on them through the scores alone. `noise.at_most` is at least the noise multiplier, if
the noise is Gaussian and independent in every round. `influence.at_least` is at most the mean influence of a canary in
a round, if they are normal. The doubt is shared equally by the two attacks, the noise and the influence.
Edge cases: few canaries bound little, however much leaks: with all guesses right 100 prove epsilon 2.8, and epsilon 8
takes 17,000; and a delta that is not far below 0.05 / (2 N) leaves nothing to prove. `estimate` is a fit (Andrew et al.
2023, https://arxiv.org/abs/2302.03098), which holds with no confidence at all, and is too small where the attack is not
the best one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmark.privacy.accounting import epsilon as epsilon_of
from benchmark.privacy.adaptive import effective_noise_multiplier
from benchmark.privacy.rounding import finite

LEAST_CANARIES = 10
CONFIDENCE = 0.95
_STATEMENTS = 4  # that hold together: two attacks, the noise, the influence
# What part of the canaries is guessed about, those with the most extreme scores. Fixed before any score is seen, and
# paid for as so many tests: guessing all is best where much leaks, few where little does.
_GUESSED = (1.0, 0.3, 0.1)
_MOST_EPSILON = 30.0
_LEAST_NOISE = 1e-3  # with less, epsilon is in the millions


class Claim(NamedTuple):
    """What is claimed of the run that is audited, after the rounds that were scored.

    Attributes:
      epsilon: by the accountant; infinite where nothing is promised.
      noise_multiplier: on the sum of updates.
      clipped_count_stddev: of the noise on the count that adapts the clip norm, in clients; None where it is fixed.
      sampling_probability: of a user, and of a canary that is in.
      clients_per_round: expected, without canaries.
    """

    epsilon: float
    delta: float
    accountant: str
    noise_multiplier: float
    clipped_count_stddev: float | None
    sampling_probability: float
    rounds: int
    clients_per_round: float


class Noise(NamedTuple):
    """The released means of one tensor of weights, over all rounds, scaled so that a clip norm on the sum is 1.

    Attributes:
      numbers: in it.
      squares: the sum of all their squares.
    """

    weights: str
    numbers: int
    squares: float


class Influence(NamedTuple):
    """What canaries move the sum by along their direction, in clip norms: with them, less without them.

    One number for each canary, the difference of its means over rounds, because users move along a direction in all
    rounds alike.

    Attributes:
      canaries: how many of them took part in some rounds and not in others.
      total: the sum of the numbers.
      squares: the sum of their squares.
    """

    canaries: int
    total: float
    squares: float


class CanaryScores(NamedTuple):
    """What a run recorded of its canaries.

    Attributes:
      included: bool [N], whether the coin put the canary into the population.
      released: float64 [N], its score by the released means of all rounds.
      final: float64 [N], its score by the final model.
    """

    included: np.ndarray
    released: np.ndarray
    final: np.ndarray
    noise: tuple[Noise, ...]
    influence: Influence


def audit(claim: Claim, scores: CanaryScores, confidence: float = CONFIDENCE) -> dict[str, Any]:
    """The audit as plain JSON values, an epsilon that is not finite as None; its keys are in docs/privacy_audit.md."""
    doubt = (1 - confidence) / _STATEMENTS
    attacks = [
        {"scores": name, **_attack(scores.included, values, claim.delta, doubt)}
        for name, values in (("all released models", scores.released), ("final model only", scores.final))
    ]
    noise, influence = _noise(claim, scores.noise, doubt), _influence(claim, scores.influence, doubt)
    found = {
        "bound": max(attack["bound"] for attack in attacks),
        "noise": noise["epsilon"],
        "influence": influence["epsilon"],
    }
    estimates = [attack["estimate"] for attack in attacks if attack["estimate"] is not None]
    return {
        "canaries": len(scores.included),
        "included": int(scores.included.sum()),
        "rounds": claim.rounds,
        "confidence": confidence,
        "claimed": finite(claim.epsilon),
        "accountant": claim.accountant,
        "bound": found["bound"],
        "estimate": max(estimates, default=None),
        "attacks": attacks,
        "noise": {**noise, "epsilon": finite(noise["epsilon"])},
        "influence": {**influence, "epsilon": finite(influence["epsilon"])},
        "cost": cost(claim, int(scores.included.sum()), sum(one.numbers for one in scores.noise)),
        # Where nothing is claimed (an infinite epsilon), nothing contradicts it.
        "contradicted_by": [name for name, value in found.items() if value > claim.epsilon],
    }


def one_run_p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """At most the probability of so many correct guesses about the coins of a run with (epsilon, delta)-DP.

    Theorem 5.2 of https://arxiv.org/abs/2305.08846.

    >>> round(one_run_p_value(100, 100, 90, epsilon=2.0, delta=0.0), 3)
    0.343
    """
    from scipy import stats

    right = stats.binom(guesses, 1 / (1 + math.exp(-epsilon)))
    steps = np.arange(1, correct + 1)
    below = right.cdf(correct - 1) - right.cdf(correct - 1 - steps)
    return float(min(1.0, right.sf(correct - 1) + 2 * canaries * delta * max(below / steps, default=0.0)))


def one_run_bound(canaries: int, guesses: int, correct: int, delta: float, doubt: float) -> float:
    """The largest epsilon that so many correct guesses refute, 0 where they refute none; wrong with odds of `doubt`.

    >>> round(one_run_bound(100, 100, 100, delta=1e-5, doubt=0.05), 2)
    3.49
    """
    from scipy import optimize

    def excess(epsilon: float) -> float:
        return one_run_p_value(canaries, guesses, correct, epsilon, delta) - doubt

    if guesses == 0 or excess(0.0) >= 0:
        return 0.0
    # From the side where it is refuted still.
    return float(max(0.0, optimize.brentq(excess, 0.0, _MOST_EPSILON, xtol=1e-6) - 1e-6))


def most_provable(canaries: int, delta: float, confidence: float = CONFIDENCE) -> float:
    """The largest bound of an audit, which it has where all guesses are right; 0: none can be proved.

    >>> round(most_provable(100, delta=1e-6), 2), most_provable(100, delta=1e-2)
    (2.88, 0.0)
    """
    doubt = (1 - confidence) / _STATEMENTS / len(_GUESSED)
    guesses = (round(part * canaries) for part in _GUESSED)
    return max(one_run_bound(canaries, count, count, delta, doubt) for count in guesses)


def noise_at_most(noise: Noise, rounds: int, doubt: float) -> float:
    """What the noise multiplier on a tensor is at most, if its noise is Gaussian; wrong with odds of `doubt`.

    In every round a released number is noise and something that does not depend on that noise, so that the sum of all
    squares, over the variance of the noise, is chi-squared or larger.

    >>> round(noise_at_most(Noise("kernel", 1000, 50_000.0), rounds=50, doubt=0.05), 3)
    1.005
    """
    from scipy import stats

    least = float(stats.chi2.ppf(doubt, noise.numbers * rounds))
    return math.sqrt(noise.squares / least) if least > 0 else math.inf


def gaussian_estimate(included: np.ndarray, scores: np.ndarray, delta: float) -> float | None:
    """Epsilon of the Gaussian mechanism whose noise and sensitivity the scores show, None of too few; an estimate.

    The scores of the canaries that are in and of those that are not are taken as normal with one deviation, which is
    what sums over many rounds come to.
    """
    inside, outside = scores[included], scores[~included]
    if min(len(inside), len(outside)) < 2:
        return None
    gap = float(inside.mean() - outside.mean())
    squares = ((inside - inside.mean()) ** 2).sum() + ((outside - outside.mean()) ** 2).sum()
    spread = math.sqrt(float(squares) / (len(scores) - 2))
    if gap <= 0:
        return 0.0
    return finite(epsilon_of("pld", spread / gap, 1.0, 1, delta)) if spread > 0 else None


def cost(claim: Claim, included: float, num_weights: int) -> dict[str, float]:
    """What canaries do to a model, as expected: their part of the cohort, their updates and the noise over all rounds.

    The two lengths are those of what the sum of the rounds' means carries, in clip norms.

    >>> flair = Claim(2.0, 8.4e-6, "pld", 0.974, None, 200 / 41131, 5000, 200.0)
    >>> {name: round(value, 3) for name, value in cost(flair, included=200, num_weights=11_185_233).items()}
    {'part_of_cohort': 0.005, 'canaries_on_running_sum': 1.719, 'noise_on_running_sum': 1151.692}
    """
    participations, cohort = claim.sampling_probability * claim.rounds, claim.clients_per_round
    return {
        "part_of_cohort": included * claim.sampling_probability / cohort,
        "canaries_on_running_sum": math.sqrt(included) * participations / cohort,
        "noise_on_running_sum": claim.noise_multiplier * math.sqrt(claim.rounds * num_weights) / cohort,
    }


def _attack(included: np.ndarray, scores: np.ndarray, delta: float, doubt: float) -> dict[str, Any]:
    """The best of a few numbers of guesses, each with its part of the doubt, and the fit."""
    threshold = _threshold(scores)
    right = (scores > threshold) == included
    surest = np.argsort(-np.abs(scores - threshold), kind="stable")
    best: dict[str, Any] = {"bound": -1.0}
    for part in _GUESSED:
        guesses = round(part * len(scores))
        correct = int(right[surest[:guesses]].sum())
        bound = one_run_bound(len(scores), guesses, correct, delta, doubt / len(_GUESSED))
        if bound > best["bound"]:
            best = {"bound": bound, "guesses": guesses, "correct": correct}
    return {**best, "estimate": gaussian_estimate(included, scores, delta)}


def _threshold(scores: np.ndarray) -> float:
    """Where the scores fall into two clusters with the least squares within them, about a half of them in each.

    It is found without the coins. Of N fair coins nearly always N / 2 and up to 1.5 sqrt(N) more or less say in.
    """
    ordered = np.sort(scores)
    count = len(ordered)
    most_off = min(count // 2 - 1, round(1.5 * math.sqrt(count)))
    sizes = np.arange(count // 2 - most_off, count // 2 + most_off + 1)
    sums = np.cumsum(ordered)[sizes - 1]
    between = sums**2 / sizes + (ordered.sum() - sums) ** 2 / (count - sizes)
    size = sizes[np.argmax(between)]
    return float(ordered[size - 1] + ordered[size]) / 2


def _noise(claim: Claim, noise: Sequence[Noise], doubt: float) -> dict[str, Any]:
    """The tensor of weights with the least noise: whatever users add to the squares makes them larger."""
    bounds = ((one.weights, noise_at_most(one, claim.rounds, doubt / len(noise))) for one in noise)
    weights, most = min(bounds, key=lambda pair: pair[1])
    own = {"claimed": claim.noise_multiplier, "at_most": finite(most), "weights": weights}
    return {**own, "epsilon": _epsilon(claim, most)}


def _influence(claim: Claim, seen: Influence, doubt: float) -> dict[str, Any]:
    from scipy import stats

    count = seen.canaries
    if count < 2:
        return {"canaries": count, "mean": None, "at_least": None, "epsilon": 0.0}
    mean = seen.total / count
    deviation = math.sqrt(max(0.0, seen.squares / count - mean**2) / (count - 1))
    least = mean - float(stats.t.ppf(1 - doubt, count - 1)) * deviation
    noise = claim.noise_multiplier / least if least > 0 else math.inf
    return {"canaries": count, "mean": mean, "at_least": least, "epsilon": _epsilon(claim, noise)}


def _epsilon(claim: Claim, noise_multiplier: float) -> float:
    """Epsilon of the run, had it this noise on the sum: by PLD, since any looser one would be no lower bound."""
    if math.isinf(noise_multiplier):
        return 0.0
    if noise_multiplier < _LEAST_NOISE:
        return math.inf
    if claim.clipped_count_stddev is not None:
        noise_multiplier = effective_noise_multiplier([noise_multiplier, 2 * claim.clipped_count_stddev])
    return epsilon_of("pld", noise_multiplier, claim.sampling_probability, claim.rounds, claim.delta)
