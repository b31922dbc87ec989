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

from flair.statistics.labels import Annotations, Integers, UserLabels, labels_of_users

Floats = npt.NDArray[np.float64]


class Divergence(NamedTuple):
    """Per user: photos int64 [users], divergence in bits float64 [users] as it is and of the shuffled control."""

    photos: Integers
    users: Floats
    shuffled: Floats


def divergences(counts: Integers, population: Integers | None = None) -> Floats:
    """Jensen-Shannon divergence, in bits, of each row's distribution from that of a population.

    Args:
      counts: [users, labels], no row all zero.
      population: [labels], which need not hold the users; None: the sum of all rows.

    >>> divergences(np.array([[4, 0], [0, 4]])).round(4).tolist()
    [0.3113, 0.3113]
    >>> divergences(np.array([[4, 0], [0, 4]]), np.array([7, 0])).tolist()
    [0.0, 1.0]
    """
    user, label = np.nonzero(counts)
    return _divergences(UserLabels(user, label, counts[user, label]), population)


def shuffle_photos(annotations: Annotations, seed: int) -> Annotations:
    """The same photos and labels, dealt out to the users at random; every user keeps their number of photos."""
    return annotations._replace(owner=np.random.default_rng([seed, 51]).permutation(annotations.owner))


def measure(annotations: Annotations, seed: int = 0) -> Divergence:
    """The divergence of every user, and of the same users after their photos were shuffled."""
    return Divergence(
        annotations.photos_per_user(),
        _divergences(labels_of_users(annotations, annotations.coarse)),
        _divergences(labels_of_users(shuffle_photos(annotations, seed), annotations.coarse)),
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


def _divergences(own: UserLabels, of_label: Integers | None = None) -> Floats:
    """As `divergences`, of nothing but the labels that users have: they may be many, and each user has few."""
    of_user = np.bincount(own.user, own.photos)
    of_label = np.bincount(own.label, own.photos) if of_label is None else of_label
    share, population = own.photos / of_user[own.user], (of_label / of_label.sum())[own.label]
    middle = (share + population) / 2
    # A label that nobody of the population has adds nothing on its side: 0 log 0.
    ratio = np.where(population > 0, population, middle) / middle
    terms = share * np.log2(share / middle) + population * np.log2(ratio)
    # A label that the user does not have gives its share of the population: the middle is half of that, one bit.
    absent = 1 - np.bincount(own.user, population)
    return np.asarray((np.bincount(own.user, terms) + absent) / 2)
