"""Canaries: clients that are nobody, whose updates measure what a private run gives away (`benchmark.privacy.audit`).

Half of them, by fair coins, are in the population. In every round each of those takes part with the probability of a
user, independently. Its update goes through the aggregator as a user's does; no user's part in the round changes, since
the sum is divided by the expected cohort of users.

The directions of canaries are orthogonal: every number that trains belongs to one of them, drawn at random, and a
direction is normal on its numbers and zero on all others. So a canary sees nothing of another, scoring all of them is
one pass over the weights, and no weight is left out. Each that takes part costs a pass of its own, as adding up a
client does. Coins, directions and rounds follow from the noise key.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from benchmark.privacy.audit import CanaryScores, Influence, Noise
from benchmark.privacy.noise import standard_normals
from benchmark.privacy.noise_key import NoiseKey
from benchmark.rounds.aggregation import Aggregation
from benchmark.rounds.config import CanaryConfig
from flair.errors import FlairError

SENT_NORM = 10.0
"""How long an update of a canary is, in clip norms: longer than 1, or a clipping that is left out would not show."""

_NORMAL_MAD = 0.6745  # median of |x| of standard normal x
_LEAST_SPREAD = 1e-3  # clip norms: below, nothing is hidden anyway


class Canaries:
    """The canaries of a run and their scores so far, all of them functions of the released means and the coins.

    Args:
      config: how many, and how often those that are in take part.
      key: of the run.
      weights: names and shapes of the tensors that train.
      clients_per_round: what the sum of updates is divided by.
    """

    def __init__(
        self,
        config: CanaryConfig,
        key: NoiseKey,
        weights: Sequence[tuple[str, tf.TensorShape]],
        clients_per_round: float,
    ) -> None:
        self._config, self._key, self._weights, self._cohort = config, key, weights, clients_per_round
        self._sizes = [shape.num_elements() for _, shape in weights]
        if sum(self._sizes) < config.count:
            raise FlairError(
                f"--audit_canaries={config.count}: only {sum(self._sizes):,} weights train, and each canary needs one "
                "of its own; give at most that many"
            )
        count = config.count
        self._included = np.zeros(count, bool)  # the coins, from the first round on: a complete run has no key any more
        self._rounds = np.zeros((), np.int64)
        self._released, self._final, self._squares = np.zeros((3, count))
        self._noise = np.zeros(len(weights))
        # Of each canary that is in: what it showed, and in how many rounds; without it, and with it.
        self._shown, self._shown_rounds = np.zeros((2, 2, count))

    @functools.cached_property
    def _coins(self) -> np.ndarray:
        """bool [canaries]: which are in."""
        return self._key.stream("canaries", "coins").random(self._config.count) < 0.5

    @functools.cached_property
    def _owners(self) -> np.ndarray:
        """int32 [weights]: which canary a number belongs to."""
        places = self._key.stream("canaries", "owners").permutation(sum(self._sizes))
        return (places % self._config.count).astype(np.int32)

    @functools.cached_property
    def _directions(self) -> np.ndarray:
        """float32 [weights]: the directions of all canaries, each of length 1."""
        normals = standard_normals(self._key.stream("canaries", "directions"), len(self._owners))
        squares = np.bincount(self._owners, np.square(normals, dtype=np.float64), self._config.count)
        return normals / np.sqrt(squares).astype(np.float32)[self._owners]

    def taking_part(self, round_number: int) -> np.ndarray:
        """int64 [n]: the canaries of a round."""
        drawn = self._key.stream("canaries", "round", round_number).random(self._config.count)
        return np.flatnonzero(self._coins & (drawn < self._config.probability))

    def add(
        self,
        aggregation: Aggregation,
        aggregate: list[tf.Tensor],
        broadcast: Sequence[tf.Tensor],
        seed: tf.Tensor,
        clip_norm: float,
        round_number: int,
    ) -> list[tf.Tensor]:
        """The aggregate with the round's canaries in it, clipped as `Aggregation.accumulate` clips users."""
        length = np.float32(SENT_NORM * clip_norm)
        for canary in self.taking_part(round_number):
            update = np.where(self._owners == canary, length * self._directions, np.float32(0))
            parts = np.split(update, np.cumsum(self._sizes)[:-1])
            shaped = [tf.constant(part, shape=shape) for part, (_, shape) in zip(parts, self._weights, strict=True)]
            aggregate = aggregation.accumulate(aggregate, [*shaped, tf.constant(1.0)], broadcast, seed)
        return aggregate

    def observe(
        self, round_number: int, clip_norm: float, update: Sequence[tf.Tensor], moved: Sequence[tf.Tensor]
    ) -> None:
        """Scores all canaries by what a round released: its mean `update`, and how far the global weights `moved`.

        The score of a round is the logarithm of how much likelier the mean is with the canary in the population: the
        sum shows the canary with length 1 at probability q, under normal noise. The attacker takes as its variance
        what canaries show in this round or, where that is more, half of what this one has shown so far: some
        directions lie where users' updates are long.
        """
        scale = self._cohort / clip_norm
        released = scale * _flat(update)
        shown = self._project(released)
        self._included, self._rounds = self._coins, self._rounds + 1
        self._squares = self._squares + np.square(shown)
        spread = np.median(np.abs(shown)) / _NORMAL_MAD
        variance = np.maximum(max(spread, _LEAST_SPREAD) ** 2, self._squares / (2 * self._rounds))
        with np.errstate(divide="ignore"):  # a canary that always takes part: log(0)
            absent, present = np.log1p(-self._config.probability), np.log(self._config.probability)
        self._released = self._released + np.logaddexp(absent, present + (shown - 0.5) / variance)
        self._final = self._final + self._project(_flat(moved))
        starts = np.cumsum([0, *self._sizes])[:-1]
        self._noise = self._noise + np.add.reduceat(np.square(released, dtype=np.float64), starts)
        takes_part = np.zeros(len(shown), bool)
        takes_part[self.taking_part(round_number)] = True
        in_which = np.stack([~takes_part, takes_part])
        self._shown = self._shown + in_which * shown
        self._shown_rounds = self._shown_rounds + in_which

    def scores(self) -> CanaryScores:
        """What has been recorded so far."""
        named = zip((name for name, _ in self._weights), self._sizes, self._noise.tolist(), strict=True)
        # Against the rounds without it, because users' sums move along a canary's direction, too: alike in all rounds.
        means = self._shown / np.maximum(self._shown_rounds, 1)
        moved = (means[1] - means[0])[self._shown_rounds.min(0) > 0]
        return CanaryScores(
            self._included,
            self._released,
            self._final,
            tuple(Noise(*one) for one in named),
            Influence(len(moved), float(moved.sum()), float(np.square(moved).sum())),
        )

    def state(self) -> list[np.ndarray]:
        """The scores as arrays, for a checkpoint: as private as the released means, and nothing of the key."""
        return [getattr(self, name) for name in _STATE]

    def restore(self, state: Sequence[np.ndarray]) -> None:
        """Continues from `state()`."""
        for name, array in zip(_STATE, state, strict=True):
            setattr(self, name, array)

    def _project(self, numbers: np.ndarray) -> np.ndarray:
        """float64 [canaries]: the numbers along each direction."""
        return np.bincount(self._owners, self._directions * numbers, self._config.count)


_STATE = ("_included", "_rounds", "_released", "_final", "_squares", "_noise", "_shown", "_shown_rounds")


def _flat(tensors: Sequence[tf.Tensor]) -> np.ndarray:
    return np.concatenate([np.ravel(tensor) for tensor in tensors])
