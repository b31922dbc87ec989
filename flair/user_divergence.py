"""How far users differ in what they photograph: each user's labels against everybody's, beside a shuffled control.

The measure is the Jensen-Shannon divergence (Lin 1991, https://doi.org/10.1109/18.61115) in bits between the user's
share of each coarse label and the population's: 0 when they are equal, 1 when they have no label in common. A user with
few photos is far from the population by chance alone; so the same is measured after all photos were dealt out anew,
every user keeping their number of photos. What users have beyond that control is their own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flair.annotations import Annotations, Integers

Floats = npt.NDArray[np.float64]


class Divergence(NamedTuple):
    """Per user: photos int64 [users], divergence in bits float64 [users] as it is and of the shuffled control."""

    photos: Integers
    users: Floats
    shuffled: Floats


def user_label_counts(annotations: Annotations) -> Integers:
    """Photos of each user with each coarse label: int64 [users, labels]."""
    num_labels = len(annotations.coarse.names)
    cells = annotations.owner[annotations.coarse.photo] * num_labels + annotations.coarse.label
    return np.bincount(cells, minlength=annotations.num_users * num_labels).reshape(-1, num_labels)


def divergences(counts: Integers) -> Floats:
    """Jensen-Shannon divergence, in bits, of each row's distribution from that of the sum of all rows.

    Args:
      counts: [users, labels], no row and no column all zero.

    >>> divergences(np.array([[4, 0], [0, 4]])).round(4).tolist()
    [0.3113, 0.3113]
    """
    shares = counts / counts.sum(axis=1, keepdims=True)
    population = counts.sum(axis=0) / counts.sum()
    middle = (shares + population) / 2
    return (
        _relative_entropy(shares, middle) + _relative_entropy(np.broadcast_to(population, shares.shape), middle)
    ) / 2


def shuffle_photos(annotations: Annotations, seed: int) -> Annotations:
    """The same photos and labels, dealt out to the users at random; every user keeps their number of photos."""
    return annotations._replace(owner=np.random.default_rng([seed, 51]).permutation(annotations.owner))


def measure(annotations: Annotations, seed: int = 0) -> Divergence:
    """The divergence of every user, and of the same users after their photos were shuffled."""
    return Divergence(
        annotations.photos_per_user(),
        divergences(user_label_counts(annotations)),
        divergences(user_label_counts(shuffle_photos(annotations, seed))),
    )


class SizeGroup(NamedTuple):
    """Users of like size: `least` to `most` photos, their number, and the mean divergence of both kinds."""

    least: int
    most: int
    num_users: int
    users: float
    shuffled: float


def by_size(divergence: Divergence) -> list[SizeGroup]:
    """Mean divergences of the users with 1, 2 to 3, 4 to 7, 8 to 15 ... photos; groups without a user are left out."""
    group = np.floor(np.log2(divergence.photos)).astype(np.int64)
    return [
        SizeGroup(
            2**power,
            2 ** (power + 1) - 1,
            int((group == power).sum()),
            float(divergence.users[group == power].mean()),
            float(divergence.shuffled[group == power].mean()),
        )
        for power in np.unique(group).tolist()
    ]


def _relative_entropy(shares: Floats, other: Floats) -> Floats:
    """Kullback-Leibler divergence of each row in bits, 0 log 0 being 0."""
    ratio = np.divide(shares, other, out=np.ones_like(other), where=shares > 0)
    return np.asarray((shares * np.log2(ratio)).sum(axis=1))
