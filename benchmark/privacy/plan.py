"""The privacy of one training run: what is released, how cohorts are drawn, how much noise, and the epsilon it costs.

`make_plan` turns flags into a `PrivacyPlan`, refusing what cannot be meant before anything heavy is imported; the
plan says which noise multiplier to give the aggregator and how much epsilon is spent after each round. It imports no
TensorFlow.
"""

from __future__ import annotations

import dataclasses
import enum
import math

from benchmark.privacy import accounting
from benchmark.privacy.accounting import published_noise_multiplier
from benchmark.privacy.adaptive import (
    adaptive_noise,
    check_event,
    check_noise,
    clip_collapses,
    clipped_count_stddev,
)
from benchmark.privacy.tree import Restarts, tree_epsilon, tree_noise_multiplier, tree_squared_sensitivity
from flair.errors import FlairError

__all__ = [
    "Mechanism",
    "PrivacyPlan",
    "Restarts",
    "Sampling",
    "adaptive_noise",
    "check_event",
    "check_flags",
    "check_noise",
    "clip_collapses",
    "clipped_count_stddev",
    "default_delta",
    "make_plan",
    "published_noise_multiplier",
    "tree_epsilon",
    "tree_noise_multiplier",
]


_LEAST_NOISE, _MOST_NOISE = 1e-6, 1e6
_MOST_USERS = 10**9


class Sampling(enum.Enum):
    """How the cohort of a round is chosen."""

    POISSON = "poisson"
    """Every user takes part with probability q, on their own."""
    UNIFORM = "uniform"
    """Exactly cohort users, drawn afresh each round without replacement."""
    CYCLIC = "cyclic"
    """Users shuffled once and cut into cohorts, visited in the same order in every pass: no amplification."""
    FIXED = "fixed"
    """The same cohort in every round (--reuse_clients): no amplification."""


class Mechanism(enum.Enum):
    """Where the noise goes."""

    GAUSSIAN = "gaussian"
    """Fresh noise in every round."""
    TREE = "tree"
    """Noise on the nodes of a binary tree over the rounds (DP-FTRL)."""


def default_delta(num_users: int) -> float:
    """The published choice, n^-1.1.

    >>> f"{default_delta(41131):.2e}"
    '8.40e-06'
    """
    return num_users**-1.1


@dataclasses.dataclass(frozen=True)
class PrivacyPlan:
    """The differential privacy of a run; made by `make_plan`.

    Epsilons hold for the accounted cohort: with `simulated_cohort` the run itself has `own_epsilon_at` instead.
    """

    num_users: int
    cohort: int
    """Clients a round that the run trains: expected (Poisson) or exact."""
    simulated_cohort: int | None
    total_rounds: int
    delta: float
    target_epsilon: float | None
    accountant: str
    sampling: Sampling
    mechanism: Mechanism
    restarts: Restarts | None
    noise_multiplier: float
    """Standard deviation of the noise on the sum over the accounted cohort, in clip norms; total over all queries."""
    published_noise: bool
    epsilon_rdp: float
    """Epsilon of all `total_rounds` rounds by RDP."""
    epsilon_pld: float
    """Epsilon of all `total_rounds` rounds by PLD."""

    @property
    def accounted_cohort(self) -> int:
        """The cohort that the accounting is about: the simulated one where there is one."""
        return self.simulated_cohort or self.cohort

    @property
    def sampling_probability(self) -> float:
        """q: a user's probability of being in a round's accounted cohort; 1.0 where no amplification is claimed."""
        return 1.0 if self.separation else self.accounted_cohort / self.num_users

    @property
    def separation(self) -> int | None:
        """Rounds from one participation of a user to the next, at least; None where cohorts are drawn at random."""
        return separation(self.sampling, self.num_users, self.cohort)

    @property
    def run_noise_multiplier(self) -> float:
        """What the aggregator is given: `noise_multiplier` scaled so that the mean has the accounted cohort's noise."""
        return self.noise_multiplier * self.cohort / self.accounted_cohort

    @property
    def epsilon(self) -> float:
        """Epsilon of all `total_rounds` rounds by the plan's accountant."""
        return self.epsilon_pld if self.accountant == "pld" else self.epsilon_rdp

    def epsilon_at(self, rounds: int, accountant: str | None = None) -> float:
        """Epsilon spent after `rounds` rounds: about a millisecond by RDP, some 50 ms by PLD."""
        sigma, q, compositions = _released(self, self.noise_multiplier, rounds)
        return accounting.epsilon(accountant or self.accountant, sigma, q, compositions, self.delta)

    def own_epsilon_at(self, rounds: int, accountant: str | None = None) -> float:
        """Epsilon of what the run itself did: its own cohort and noise, whatever cohort it simulates."""
        if self.simulated_cohort is None:
            return self.epsilon_at(rounds, accountant)
        return accounting.epsilon(
            accountant or self.accountant, self.run_noise_multiplier, self.cohort / self.num_users, rounds, self.delta
        )

    def replace_one_epsilon_at(self, rounds: int) -> float | None:
        """Fixed-size cohorts only: the epsilon proved for what the run itself did, adjacency "replace one", by RDP."""
        if self.sampling is not Sampling.UNIFORM:
            return None
        return accounting.replace_one_epsilon(
            self.run_noise_multiplier, self.num_users, self.cohort, rounds, self.delta
        )


def separation(sampling: Sampling, num_users: int, cohort: int) -> int | None:
    """Rounds from one participation of a user to the next, at least; None where cohorts are drawn at random.

    >>> separation(Sampling.CYCLIC, num_users=41131, cohort=200)
    206
    """
    if sampling is Sampling.FIXED:
        return 1
    return math.ceil(num_users / cohort) if sampling is Sampling.CYCLIC else None


def make_plan(
    *,
    num_users: int,
    cohort: int,
    total_rounds: int,
    epsilon: float | None = None,
    noise_multiplier: float | None = None,
    delta: float | None = None,
    simulated_cohort: int | None = None,
    sampling: Sampling = Sampling.POISSON,
    accountant: str = "pld",
    mechanism: Mechanism = Mechanism.GAUSSIAN,
    restarts: Restarts | None = None,
    published_noise: bool = False,
) -> PrivacyPlan:
    """The plan for a target `epsilon` or for a given `noise_multiplier` (exactly one of them).

    `delta` None is n^-1.1. `published_noise` takes ml-flair's noise multiplier for `epsilon` instead of the right one;
    the plan's epsilons are what that noise really gives. Raises FlairError, one line naming the flag, on what
    `check_flags` refuses and on an epsilon that no noise reaches.

    >>> plan = make_plan(num_users=41131, cohort=200, total_rounds=5000, epsilon=2.0)
    >>> round(plan.noise_multiplier, 3)
    0.974
    """
    check_flags(
        num_users=num_users,
        cohort=cohort,
        total_rounds=total_rounds,
        epsilon=epsilon,
        noise_multiplier=noise_multiplier,
        delta=delta,
        simulated_cohort=simulated_cohort,
        sampling=sampling,
        accountant=accountant,
        mechanism=mechanism,
        published_noise=published_noise,
    )
    delta = default_delta(num_users) if delta is None else delta
    draft = PrivacyPlan(
        num_users=num_users,
        cohort=cohort,
        simulated_cohort=simulated_cohort,
        total_rounds=total_rounds,
        delta=delta,
        target_epsilon=epsilon,
        accountant=accountant,
        sampling=sampling,
        mechanism=mechanism,
        restarts=restarts,
        noise_multiplier=noise_multiplier or math.nan,
        published_noise=published_noise,
        epsilon_rdp=math.nan,
        epsilon_pld=math.nan,
    )
    if epsilon is not None and published_noise:
        noise_multiplier = published_noise_multiplier(epsilon, num_users, draft.accounted_cohort, total_rounds, delta)
    elif epsilon is not None:
        unit, q, compositions = _released(draft, 1.0, total_rounds)
        needed = accounting.noise_multiplier_for(accountant, epsilon, q, compositions, delta)
        noise_multiplier = needed / unit
    assert noise_multiplier is not None
    planned = dataclasses.replace(draft, noise_multiplier=noise_multiplier)
    return dataclasses.replace(
        planned,
        epsilon_rdp=planned.epsilon_at(total_rounds, "rdp"),
        epsilon_pld=planned.epsilon_at(total_rounds, "pld"),
    )


def check_flags(
    *,
    cohort: int,
    total_rounds: int,
    num_users: int | None = None,
    epsilon: float | None = None,
    noise_multiplier: float | None = None,
    delta: float | None = None,
    simulated_cohort: int | None = None,
    sampling: Sampling = Sampling.POISSON,
    accountant: str = "pld",
    mechanism: Mechanism = Mechanism.GAUSSIAN,
    published_noise: bool = False,
) -> None:
    """Raises FlairError, one line naming the flag, on values that mean nothing; instant, imports nothing heavy.

    `num_users` None (data not yet read) leaves out what depends on it: `make_plan` checks again.
    """
    if epsilon is not None and noise_multiplier is not None:
        raise FlairError("--epsilon and --noise_multiplier are both given: give one, the other follows")
    if epsilon is None and noise_multiplier is None:
        raise FlairError("differential privacy needs --epsilon (say 2.0) or --noise_multiplier (say 1.0)")
    if epsilon is not None and not 0 < epsilon < math.inf:
        raise FlairError(
            f"--epsilon={epsilon:g}: differential privacy needs an epsilon above 0 (say 2.0); "
            "leave the flag out (or at its default 0.0) to train without"
        )
    if noise_multiplier is not None and not 0 < noise_multiplier < math.inf:
        raise FlairError(
            f"--noise_multiplier={noise_multiplier:g}: expected a number above 0 (say 1.0); "
            "leave the flag out to train without differential privacy"
        )
    if noise_multiplier is not None and not _LEAST_NOISE <= noise_multiplier <= _MOST_NOISE:
        raise FlairError(
            f"--noise_multiplier={noise_multiplier:g}: expected {_LEAST_NOISE:g} to {_MOST_NOISE:g} (say 1.0); less "
            "protects nobody, and with more nothing is learned"
        )
    if delta is not None and not 0 < delta < 1:
        raise FlairError(f"--delta={delta:g}: expected a probability between 0 and 1, below 1/users (default: n^-1.1)")
    if accountant not in accounting.ACCOUNTANTS:
        raise FlairError(f"--accountant={accountant}: expected one of {', '.join(accounting.ACCOUNTANTS)}")
    if total_rounds < 1:
        raise FlairError(f"--total_rounds={total_rounds}: expected at least 1")
    if cohort < 1:
        raise FlairError(f"--clients_per_round={cohort}: expected at least 1")
    if simulated_cohort is not None and simulated_cohort < cohort:
        raise FlairError(
            f"--simulated_clients_per_round={simulated_cohort}: expected at least --clients_per_round={cohort}, "
            "since a smaller cohort needs no simulating; leave it out"
        )
    _check_combination(sampling, mechanism, simulated_cohort, published_noise, epsilon)
    if num_users is not None:
        _check_users(num_users, cohort, simulated_cohort)


def _check_combination(
    sampling: Sampling,
    mechanism: Mechanism,
    simulated_cohort: int | None,
    published_noise: bool,
    epsilon: float | None,
) -> None:
    random_cohorts = sampling in (Sampling.POISSON, Sampling.UNIFORM)
    if mechanism is Mechanism.TREE and random_cohorts:
        raise FlairError(
            f"tree aggregation with --client_sampling={sampling.value}: random cohorts put no bound on how often a "
            "user takes part, so that no useful epsilon can be stated; use --client_sampling=cyclic"
        )
    if simulated_cohort is not None and not random_cohorts:
        raise FlairError(
            f"--simulated_clients_per_round={simulated_cohort} supposes cohorts drawn at random; "
            f"leave it out with {sampling.value} cohorts"
        )
    if published_noise and (epsilon is None or mechanism is Mechanism.TREE or not random_cohorts):
        raise FlairError(
            "--published_noise repeats ml-flair's noise for an --epsilon, with randomly drawn cohorts and fresh noise "
            "in every round; leave it out here"
        )


def _check_users(num_users: int, cohort: int, simulated_cohort: int | None) -> None:
    if num_users > _MOST_USERS:
        raise FlairError(f"--num_users={num_users}: expected at most {_MOST_USERS:,}")
    if num_users < 2:
        raise FlairError(f"--num_users={num_users}: differential privacy needs at least 2 users to hide one among")
    if cohort > num_users:
        raise FlairError(
            f"--clients_per_round={cohort}: there are only {num_users:,} users; give at most that many "
            "(privacy gets better with cohorts much smaller than the number of users)"
        )
    if simulated_cohort is not None and simulated_cohort > num_users:
        raise FlairError(
            f"--simulated_clients_per_round={simulated_cohort}: there are only {num_users:,} users; "
            "give at most that many"
        )


def _released(plan: PrivacyPlan, noise_multiplier: float, rounds: int) -> tuple[float, float, int]:
    """What `rounds` rounds release, as (noise multiplier, sampling probability, compositions) of a sampled Gaussian."""
    if plan.separation is None:
        return noise_multiplier, plan.sampling_probability, rounds
    if rounds == 0:
        return noise_multiplier, 1.0, 0
    if plan.mechanism is Mechanism.TREE:
        squared_sensitivity = tree_squared_sensitivity(rounds, plan.separation, plan.restarts)
    else:
        squared_sensitivity = math.ceil(rounds / plan.separation)
    return noise_multiplier / math.sqrt(squared_sensitivity), 1.0, 1
