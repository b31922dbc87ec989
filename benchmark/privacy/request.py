"""What is asked of privacy: a target, cohorts, how they are drawn, where the noise goes."""

from __future__ import annotations

import dataclasses
import enum
import math

from benchmark.privacy import accounting, banded
from flair.errors import FlairError

LEAST_NOISE, MOST_NOISE = 1e-6, 1e6
MOST_BANDS, MOST_BANDED_ROUNDS = banded.MAX_BANDS, banded.MAX_ROUNDS
AUTO = "auto"  # of --bands
MOST_USERS = 10**9


class _Word(str, enum.Enum):
    """One of a few words of the command line; `str` and `repr` are those of the word itself."""

    def __repr__(self) -> str:
        return repr(self.value)

    __str__ = str.__str__


class Sampling(_Word):
    """How the cohort of a round is chosen."""

    POISSON = "poisson"  # every user takes part with probability q, independently of all others
    UNIFORM = "uniform"  # a fixed number of users, drawn anew in each round without replacement
    CYCLIC = "cyclic"  # users are shuffled once and cut into cohorts, which every pass visits in the same order
    FIXED = "fixed"  # the same cohort in every round (--reuse_clients)

    @property
    def is_random(self) -> bool:
        """Whether a cohort is drawn anew in every round, which amplifies privacy."""
        return self in (Sampling.POISSON, Sampling.UNIFORM)


class Mechanism(_Word):
    """Where the noise goes."""

    GAUSSIAN = "gaussian"  # fresh noise in every round
    BANDED = "banded"  # a round's noise is taken back in part by the rounds after it (banded matrix factorization)
    TREE = "tree"  # noise on the nodes of a binary tree over the rounds (DP-FTRL)


def bands_from(text: str) -> int | None:
    """--bands as a number; None: chosen.

    Raises:
      FlairError: it is neither a whole number nor `AUTO`.
    """
    if text == AUTO:
        return None
    if not (text.isascii() and text.isdigit()):
        raise FlairError(f"--bands={text}: expected a whole number, or {AUTO}")
    return int(text)


@dataclasses.dataclass(frozen=True)
class PrivacyRequest:
    """What a run, or a question of the planner, asks for; `make_plan` answers it.

    Attributes:
      cohort: clients per round that the run trains: expected (Poisson) or exact.
      epsilon: the target; a run gives this or `noise_multiplier`.
      noise_multiplier: standard deviation of the noise, in clip norms; 0 clips without noise, and is no privacy.
      delta: None is users^-1.1.
      simulated_cohort: a larger cohort, whose noise on the mean the run is given.
      accountant: `pld` or `rdp`; turns `epsilon` into noise.
      published_noise: take ml-flair's noise multiplier for `epsilon` instead of the right one.
      bands: of banded noise (`benchmark.privacy.banded`); under Poisson sampling users are dealt into so many groups,
        of which rounds sample one after the other. None: `make_plan` chooses.
      server_momentum: what banded noise is shaped for.
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
    published_noise: bool = False
    bands: int | None = None
    server_momentum: float = 0.0

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

    @property
    def groups(self) -> int:
        """How many groups of users take turns: the bands under Poisson sampling, else one."""
        return self.bands or 1 if self.sampling is Sampling.POISSON else 1

    def most_bands(self, num_users: int) -> int:
        """The largest number of bands that these rounds, cohorts and users allow."""
        separation = self.separation(num_users)
        apart = separation or num_users // self.accounted_cohort
        return min(self.total_rounds, apart, banded.MAX_BANDS)

    def released(self, noise_multiplier: float, num_users: int, rounds: int) -> tuple[float, float, int]:
        """The sampled Gaussian mechanism that `rounds` rounds amount to.

        Args:
          noise_multiplier: on the sum over the accounted cohort, in clip norms.

        Returns:
          Noise multiplier, sampling probability, and number of compositions.
        """
        separation = self.separation(num_users)
        if separation is None:
            # A user can take part in the rounds of one group alone, where q is that of a cohort from the group.
            groups = self.groups
            return noise_multiplier, groups * self.accounted_cohort / num_users, math.ceil(rounds / groups)
        if rounds == 0:
            return noise_multiplier, 1.0, 0
        if self.mechanism is Mechanism.TREE:
            squared = squared_sensitivity(rounds, separation)
        else:
            squared = math.ceil(rounds / separation)
        return noise_multiplier / math.sqrt(squared), 1.0, 1

    def check(self, num_users: int | None = None) -> None:
        """Raises FlairError, one line naming the flag, on values that mean nothing; instant.

        `num_users` None, where the data are not read yet, leaves out what depends on it; `make_plan` checks again.
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
        if noise is not None and not 0 <= noise < math.inf:
            raise FlairError(
                f"--noise_multiplier={noise:g}: expected a number above 0 (say 1.0); 0 clips without noise, and leave "
                "the flag out to train without differential privacy"
            )
        if noise and not LEAST_NOISE <= noise <= MOST_NOISE:
            raise FlairError(
                f"--noise_multiplier={noise:g}: expected {LEAST_NOISE:g} to {MOST_NOISE:g} (say 1.0); less "
                "protects nobody, and with more nothing is learned"
            )

    def _check_combination(self) -> None:
        if self.noise_multiplier == 0:
            if self.mechanism is not Mechanism.GAUSSIAN:
                raise FlairError(
                    f"--noise_multiplier=0: --aggregator={self.mechanism} is a way to add noise, and without any it is "
                    "the mean; leave --aggregator out"
                )
            if self.simulated_cohort is not None:
                raise FlairError(
                    f"--simulated_clients_per_round={self.simulated_cohort} scales the noise, and --noise_multiplier=0 "
                    "has none; leave it out"
                )
        if self.mechanism is Mechanism.TREE and self.sampling.is_random:
            raise FlairError(
                f"tree aggregation with --client_sampling={self.sampling}: random cohorts put no bound on how often a "
                "user takes part, so that no useful epsilon can be stated; use --client_sampling=cyclic"
            )
        self._check_bands()
        if self.simulated_cohort is not None and not self.sampling.is_random:
            raise FlairError(
                f"--simulated_clients_per_round={self.simulated_cohort} supposes cohorts drawn at random; "
                f"leave it out with {self.sampling} cohorts"
            )
        fits = self.epsilon is not None and self.mechanism is Mechanism.GAUSSIAN and self.sampling.is_random
        if self.published_noise and not fits:
            raise FlairError(
                "--published_noise repeats ml-flair's noise for an --epsilon, with randomly drawn cohorts and fresh "
                "noise in every round; leave it out here"
            )

    def _check_bands(self) -> None:
        bands = self.bands
        if self.mechanism is not Mechanism.BANDED:
            if bands is not None:
                raise FlairError(f"--bands={bands} has no effect without banded noise; leave it out")
            return
        if self.sampling not in (Sampling.POISSON, Sampling.CYCLIC):
            raise FlairError(
                f"banded noise with {self.sampling} cohorts: it needs to know how far apart a user's rounds are; use "
                "--client_sampling=poisson, from groups that take turns, or cyclic"
            )
        if self.total_rounds > banded.MAX_ROUNDS:
            raise FlairError(
                f"--total_rounds={self.total_rounds}: banded noise is shaped for at most {banded.MAX_ROUNDS:,} rounds"
            )
        if bands is None:
            if self.noise_multiplier is not None:
                raise FlairError("--bands=auto chooses the least noise for an --epsilon; give --bands=N with noise")
            return
        if not 1 <= bands <= banded.MAX_BANDS:
            raise FlairError(f"--bands={bands}: expected 1 to {banded.MAX_BANDS:,}, or auto")
        if bands > self.total_rounds:
            raise FlairError(
                f"--bands={bands}: expected at most --total_rounds={self.total_rounds}, since a band reaches over so "
                "many rounds"
            )

    def _check_users(self, num_users: int) -> None:
        if num_users > MOST_USERS:
            raise FlairError(f"--num_users={num_users}: expected at most {MOST_USERS:,}")
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
        if self.bands is None or self.bands <= self.most_bands(num_users):
            return
        if self.sampling is Sampling.CYCLIC:
            raise FlairError(
                f"--bands={self.bands}: with cyclic cohorts of {self.cohort:,} of {num_users:,} users somebody takes "
                f"part every {self.separation(num_users):,} rounds; give at most so many bands, or auto"
            )
        raise FlairError(
            f"--bands={self.bands}: {num_users:,} users in so many groups are {num_users // self.bands:,} a group, "
            f"fewer than the {self.accounted_cohort:,} clients of a round; give at most "
            f"{self.most_bands(num_users):,} bands, or auto"
        )


def squared_sensitivity(rounds: int, separation: int) -> int:
    """Squared sensitivity of tree aggregation (DP-FTRL), in clip norms squared.

    The rounds are the leaves of a binary tree; every complete node releases the sum below it with noise sigma * clip. A
    user changes a node by at most (times they took part below it) * clip, so that all nodes together are one Gaussian
    mechanism whose squared sensitivity is the sum of those squares (Kairouz et al., appendix D,
    https://arxiv.org/abs/2103.00039).

    Guarantee: an upper bound, and exact for a user who takes part once. It is about replacing one user's contributions
    by zeros, with the schedule unchanged, where a user takes part at most once in any `separation` rounds in a row.
    Edge cases: no rounds have sensitivity 0. A cohort that is drawn at random separates nothing, and has no such bound.

    >>> squared_sensitivity(rounds=8, separation=8), squared_sensitivity(rounds=8, separation=1)
    (4, 120)
    """
    total = 0
    participations = math.ceil(rounds / separation)
    for level in range(rounds.bit_length()):
        # A node of `width` rounds holds at most `at_most` participations, and a level no more than the tree.
        width = 1 << level
        at_most = math.ceil(width / separation)
        in_level = min(participations, at_most * (rounds // width))
        full, rest = divmod(in_level, at_most)
        total += full * at_most**2 + rest**2
    return total
