"""What is asked of privacy: a target, a cohort, how cohorts are drawn, where the noise goes."""

from __future__ import annotations

import dataclasses
import enum
import math

from benchmark.privacy import accounting
from benchmark.privacy.tree import Restarts, tree_squared_sensitivity
from flair.errors import FlairError

_LEAST_NOISE, _MOST_NOISE = 1e-6, 1e6
_MOST_USERS = 10**9


class _Word(str, enum.Enum):
    """A word of the command line that is one of a few; it reads and is stored as the word itself."""

    def __repr__(self) -> str:
        return repr(self.value)

    __str__ = str.__str__


class Sampling(_Word):
    """How the cohort of a round is chosen."""

    POISSON = "poisson"
    """Every user takes part with probability q, on their own."""
    UNIFORM = "uniform"
    """Exactly cohort users, drawn afresh each round without replacement."""
    CYCLIC = "cyclic"
    """Users shuffled once and cut into cohorts, visited in the same order in every pass: no amplification."""
    FIXED = "fixed"
    """The same cohort in every round (--reuse_clients): no amplification."""

    @property
    def is_random(self) -> bool:
        """Whether who takes part is drawn afresh in every round, which amplifies privacy."""
        return self in (Sampling.POISSON, Sampling.UNIFORM)


class Mechanism(_Word):
    """Where the noise goes."""

    GAUSSIAN = "gaussian"
    """Fresh noise in every round."""
    TREE = "tree"
    """Noise on the nodes of a binary tree over the rounds (DP-FTRL)."""


@dataclasses.dataclass(frozen=True)
class PrivacyRequest:
    """What a run, or a question of the planner, asks for; `make_plan` answers it.

    Attributes:
      cohort: clients per round that the run trains: expected (Poisson) or exact.
      total_rounds: rounds of training.
      epsilon: target; `noise_multiplier`: given noise, relative to the clip norm. A run gives one of them.
      delta: None is users^-1.1.
      simulated_cohort: scales the noise as if so many clients took part.
      accountant: `pld` or `rdp`; turns `epsilon` into noise.
      restarts: when tree aggregation begins a new tree; None is one tree for ever.
      published_noise: takes ml-flair's noise multiplier for `epsilon` instead of the right one.
    """

    cohort: int
    total_rounds: int
    epsilon: float | None = None
    noise_multiplier: float | None = None
    delta: float | None = None
    simulated_cohort: int | None = None
    sampling: Sampling = Sampling.POISSON
    accountant: str = "pld"
    mechanism: Mechanism = Mechanism.GAUSSIAN
    restarts: Restarts | None = None
    published_noise: bool = False

    @property
    def accounted_cohort(self) -> int:
        """The cohort that the accounting is about: the simulated one where there is one."""
        return self.simulated_cohort or self.cohort

    def separation(self, num_users: int) -> int | None:
        """Rounds from one participation of a user to the next, at least; None where cohorts are drawn at random.

        >>> PrivacyRequest(cohort=200, total_rounds=1, sampling=Sampling.CYCLIC).separation(41131)
        206
        """
        if self.sampling is Sampling.FIXED:
            return 1
        return math.ceil(num_users / self.cohort) if self.sampling is Sampling.CYCLIC else None

    def released(self, noise_multiplier: float, num_users: int, rounds: int) -> tuple[float, float, int]:
        """What `rounds` rounds release: (noise multiplier, sampling probability, compositions) of a sampled Gaussian.

        Args:
          noise_multiplier: on the sum over the accounted cohort, in clip norms.
        """
        separation = self.separation(num_users)
        if separation is None:
            return noise_multiplier, self.accounted_cohort / num_users, rounds
        if rounds == 0:
            return noise_multiplier, 1.0, 0
        if self.mechanism is Mechanism.TREE:
            squared_sensitivity = tree_squared_sensitivity(rounds, separation, self.restarts)
        else:
            squared_sensitivity = math.ceil(rounds / separation)
        return noise_multiplier / math.sqrt(squared_sensitivity), 1.0, 1

    def check(self, num_users: int | None = None) -> None:
        """Raises FlairError, one line naming the flag, on values that mean nothing; instant.

        `num_users` None (data not yet read) leaves out what depends on it: `make_plan` checks again.
        """
        self._check_target()
        if self.delta is not None and not 0 < self.delta < 1:
            raise FlairError(
                f"--delta={self.delta:g}: expected a probability between 0 and 1, below 1/users (default: n^-1.1)"
            )
        if self.accountant not in accounting.ACCOUNTANTS:
            raise FlairError(f"--accountant={self.accountant}: expected one of {', '.join(accounting.ACCOUNTANTS)}")
        if self.total_rounds < 1:
            raise FlairError(f"--total_rounds={self.total_rounds}: expected at least 1")
        if self.cohort < 1:
            raise FlairError(f"--clients_per_round={self.cohort}: expected at least 1")
        if self.simulated_cohort is not None and self.simulated_cohort < self.cohort:
            raise FlairError(
                f"--simulated_clients_per_round={self.simulated_cohort}: expected at least "
                f"--clients_per_round={self.cohort}, since a smaller cohort needs no simulating; leave it out"
            )
        self._check_combination()
        if num_users is not None:
            self._check_users(num_users)

    def _check_target(self) -> None:
        epsilon, noise = self.epsilon, self.noise_multiplier
        if epsilon is not None and noise is not None:
            raise FlairError("--epsilon and --noise_multiplier are both given: give one, the other follows")
        if epsilon is None and noise is None:
            raise FlairError("differential privacy needs --epsilon (say 2.0) or --noise_multiplier (say 1.0)")
        if epsilon is not None and not 0 < epsilon < math.inf:
            raise FlairError(
                f"--epsilon={epsilon:g}: differential privacy needs an epsilon above 0 (say 2.0); "
                "leave the flag out (or at its default 0.0) to train without"
            )
        if noise is not None and not 0 < noise < math.inf:
            raise FlairError(
                f"--noise_multiplier={noise:g}: expected a number above 0 (say 1.0); "
                "leave the flag out to train without differential privacy"
            )
        if noise is not None and not _LEAST_NOISE <= noise <= _MOST_NOISE:
            raise FlairError(
                f"--noise_multiplier={noise:g}: expected {_LEAST_NOISE:g} to {_MOST_NOISE:g} (say 1.0); less "
                "protects nobody, and with more nothing is learned"
            )

    def _check_combination(self) -> None:
        if self.mechanism is Mechanism.TREE and self.sampling.is_random:
            raise FlairError(
                f"tree aggregation with --client_sampling={self.sampling}: random cohorts put no bound on how often a "
                "user takes part, so that no useful epsilon can be stated; use --client_sampling=cyclic"
            )
        if self.simulated_cohort is not None and not self.sampling.is_random:
            raise FlairError(
                f"--simulated_clients_per_round={self.simulated_cohort} supposes cohorts drawn at random; "
                f"leave it out with {self.sampling} cohorts"
            )
        fits = self.epsilon is not None and self.mechanism is not Mechanism.TREE and self.sampling.is_random
        if self.published_noise and not fits:
            raise FlairError(
                "--published_noise repeats ml-flair's noise for an --epsilon, with randomly drawn cohorts and fresh "
                "noise in every round; leave it out here"
            )

    def _check_users(self, num_users: int) -> None:
        if num_users > _MOST_USERS:
            raise FlairError(f"--num_users={num_users}: expected at most {_MOST_USERS:,}")
        if num_users < 2:
            raise FlairError(f"--num_users={num_users}: differential privacy needs at least 2 users to hide one among")
        if self.cohort > num_users:
            raise FlairError(
                f"--clients_per_round={self.cohort}: there are only {num_users:,} users; give at most that many "
                "(privacy gets better with cohorts much smaller than the number of users)"
            )
        if self.simulated_cohort is not None and self.simulated_cohort > num_users:
            raise FlairError(
                f"--simulated_clients_per_round={self.simulated_cohort}: there are only {num_users:,} users; "
                "give at most that many"
            )
