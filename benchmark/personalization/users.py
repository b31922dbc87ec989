"""Draws episodes of users: photos to adapt on (support), in which batches, and others to test on (query).

An episode is a function of (seed, number) and of the photos at hand. Pure NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from benchmark.metrics.loss import CROSS_ENTROPY, LossConfig
from benchmark.personalization.sizes import Integers, draw_support_size, query_size
from benchmark.run.seeds import derive_generator
from flair.errors import FlairError

MIN_PHOTOS = 4  # of a user who can be an episode
RANDOM, CHRONOLOGICAL, DUPLICATE_AWARE = SPLITS = ("random", "chronological", "duplicate_aware")


@dataclass(frozen=True)
class Adaptation:
    """How a model is adapted: plain SGD on the support photos from the global weights.

    Attributes:
      trainable: which weights adapt, one of `benchmark.model.trainable.TRAINABLE`.
      batch_size: support photos per step; all where there are fewer.
      proximal_strength: mu of mu / 2 * |w - w_global|^2 added to the loss, as in FedProx.
      clipnorm: bound on the L2 norm of each weight's gradient; 0: no bound.
      loss: what the steps descend; scores have binary cross-entropy, whatever it is.
    """

    trainable: str
    steps: int
    learning_rate: float
    batch_size: int
    proximal_strength: float = 0.0
    clipnorm: float = 0.0
    loss: LossConfig = CROSS_ENTROPY


class UserPhotos(NamedTuple):
    """One user and the ids of their photos, in file order; None where the records have no ids."""

    user_id: str
    image_ids: Sequence[str | None]


class UserEpisode(NamedTuple):
    """One episode: its user, and positions int64 among the user's photos; no photo is in both."""

    user_id: str
    support: Integers
    query: Integers


class UserEpisodes:
    """The episodes of a partition.

    Users with at least 4 photos take turns in random order: nobody comes twice before everybody came once, and every
    turn is a new episode. A user of n photos gives q = min(10, floor(n / 2)) of them to the query and, of the others,
    min(500, ceil(beta * min(100, n - q))) to the support, beta uniform on (0, 1].

    Args:
      split: `random`; `chronological`, the newest photos by Flickr's photo id are the query and those just before
        them the support; or `duplicate_aware`, near duplicates never face each other.
      num_support, num_query: fixed numbers instead; users with too few photos for them are left out. Under
        `duplicate_aware` they are upper bounds.
      component_of: for `duplicate_aware`, image id -> its component of near duplicates.

    Attributes:
      eligible: users that can be episodes.

    Raises:
      FlairError: no user is eligible, or the split needs photo ids (numeric ones, if chronological) and finds others.
    """

    def __init__(
        self,
        users: Sequence[UserPhotos],
        split: str,
        seed: int,
        num_support: int | None = None,
        num_query: int | None = None,
        component_of: Callable[[str], Hashable] | None = None,
    ) -> None:
        self._split, self._seed = split, seed
        self._num_support, self._num_query = num_support, num_query
        self._component_of = component_of
        self._turn: tuple[int, Integers] | None = None
        self.eligible = [user for user in users if self._is_eligible(user)]
        if not self.eligible:
            raise FlairError(
                f"none of {len(users):,} users can be an episode: "
                f"expected one with at least {self._least_photos()} photos"
                + (" that are not all near duplicates" if split == DUPLICATE_AWARE else "")
                + "; choose another --partition or smaller --num_support and --num_query"
            )

    def episode(self, number: int) -> UserEpisode:
        """The episode of this number, from 0."""
        turn, place = divmod(number, len(self.eligible))
        if self._turn is None or self._turn[0] != turn:
            order = derive_generator(self._seed, "users of episodes", turn).permutation(len(self.eligible))
            self._turn = turn, order
        user = self.eligible[self._turn[1][place]]
        support, query = self._divide(user, number)
        return UserEpisode(user.user_id, support, query)

    def _least_photos(self) -> int:
        fixed = (self._num_support or 0) + (self._num_query or 0)
        both = self._num_support is not None and self._num_query is not None
        return max(MIN_PHOTOS, fixed if both else fixed + 1)

    def _is_eligible(self, user: UserPhotos) -> bool:
        if len(user.image_ids) < self._least_photos():
            return False
        return self._component_of is None or len(self._components(user)) > 1

    def _divide(self, user: UserPhotos, number: int) -> tuple[Integers, Integers]:
        photos = len(user.image_ids)
        # Of its own, so that an episode has the same beta under every split.
        size_rng = derive_generator(self._seed, "size of episode", number)
        rng = derive_generator(self._seed, "split of episode", number)
        wanted = self._num_query if self._num_query is not None else query_size([photos], self._num_support)
        if self._split == CHRONOLOGICAL:
            order = chronological_order(user)
            query, others = order[photos - wanted :], order[: photos - wanted]
        elif self._split == DUPLICATE_AWARE:
            query, others = divide_components(self._components(user), wanted, rng)
        else:
            order = rng.permutation(photos)
            query, others = order[:wanted], order[wanted:]
        size = self._num_support if self._num_support is not None else draw_support_size([len(others)], size_rng)
        return (others[max(0, len(others) - size) :] if self._split == CHRONOLOGICAL else others[:size]), query

    def _components(self, user: UserPhotos) -> list[Integers]:
        assert self._component_of is not None
        positions: dict[Hashable, list[int]] = {}
        for position, image_id in enumerate(user.image_ids):
            if image_id is None:
                raise FlairError(
                    f"user {user.user_id}: the records have no photo ids, which --split={DUPLICATE_AWARE} needs; "
                    "prepare them with prepare_tfrecords.py, or give --split=random"
                )
            positions.setdefault(self._component_of(image_id), []).append(position)
        return [np.array(component, np.int64) for component in positions.values()]


def batch_positions(num_support: int, steps: int, batch_size: int, seed: int, number: int) -> np.ndarray:
    """The support photos of every step of an episode: int32 [steps, min(batch_size, num_support)].

    The photos are gone through in a fresh random order each time; batches run across the borders.
    """
    size = min(batch_size, num_support)
    rng = derive_generator(seed, "batches of episode", number)
    passes = [rng.permutation(num_support) for _ in range(-(-steps * size // num_support))]
    order = np.concatenate([*passes, np.zeros(0, np.int64)])[: steps * size]
    return order.reshape(steps, size).astype(np.int32)


def chronological_order(user: UserPhotos) -> Integers:
    """Positions of the user's photos from oldest to newest, assuming that Flickr numbers photos as they arrive.

    Raises:
      FlairError: an id is missing or not a number.

    >>> chronological_order(UserPhotos("1@N00", ["10", "9", "100"])).tolist()
    [1, 0, 2]
    """
    numbers = []
    for image_id in user.image_ids:
        if image_id is None or not (image_id.isascii() and image_id.isdigit()):
            raise FlairError(
                f"user {user.user_id}: photo id {image_id!r} is no number, so --split={CHRONOLOGICAL} cannot order "
                "the photos; give --split=random"
            )
        numbers.append(int(image_id))
    return np.array(sorted(range(len(numbers)), key=numbers.__getitem__), np.int64)


def divide_components(
    components: Sequence[Integers], num_query: int, rng: np.random.Generator
) -> tuple[Integers, Integers]:
    """Divides photos so that no component of near duplicates is on both sides.

    Components are taken in random order, and each that still fits whole goes to the query. Where not one fits, the
    query is `num_query` photos of the smallest, and the rest of that component is left out.

    Args:
      components: positions of the photos of each; at least two components.
      num_query: photos wanted in the query, which may get fewer.

    Returns:
      The query, and the others in random order; neither is empty.
    """
    order = [components[index] for index in rng.permutation(len(components))]
    query: list[Integers] = []
    others: list[Integers] = []
    room = num_query
    for component in order:
        # The last component stays on the other side, whatever the room.
        fits = len(component) <= room and len(query) < len(order) - 1
        (query if fits else others).append(component)
        room -= len(component) if fits else 0
    if not query:
        smallest = min(range(len(order)), key=lambda index: len(order[index]))
        query = [rng.permutation(order[smallest])[:num_query]]
        others = [component for index, component in enumerate(order) if index != smallest]
    return rng.permutation(np.concatenate(query)), rng.permutation(np.concatenate(others))
