"""What is asked of all users: for every user a vector of bounded length, whose sum over the users answers.

Guarantee: adding or removing one user moves the sum of a question by at most `Question.bound` in L2 norm, however many
photos and labels the user has, because a user counts once for a label, and once for a number of photos.
Edge cases: labels and bins are taken as public. A user without any label contributes nothing; one with more photos
than the last bin counts in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LABELS, FINE_LABELS, PHOTOS = "labels", "fine_labels", "photos"
QUESTIONS = (LABELS, FINE_LABELS, PHOTOS)
_BINS_PER_DOUBLING = 4


@dataclass(frozen=True)
class Question:
    """A question and its answer without noise, which is as secret as the photos.

    Attributes:
      name: one of `QUESTIONS`.
      cells: what is counted: names of labels, or the most photos of a bin.
      bound: the L2 norm of one user's vector, at most.
      sums: float64 [cells], sum of the users' bounded vectors.
      exact: float64, what is compared with: of labels [cells], how many users have each; of photos [users], how many
        each user has, in rising order.
    """

    name: str
    cells: Sequence[str] | Sequence[int]
    bound: float
    sums: np.ndarray
    exact: np.ndarray


def label_question(
    name: str, label_names: Sequence[str], owner: np.ndarray, labels: Sequence[Sequence[int]], most: int
) -> Question:
    """How many users have a photo with each label.

    A user with m > `most` labels counts sqrt(most / m) for each, so that no vector is longer than sqrt(most).

    Args:
      owner: int64 [photos], each photo's user, from 0 without a gap.
      labels: columns of `label_names` that each photo carries.

    >>> owner, labels = np.array([0, 0, 1]), [[0], [0, 1], [1]]
    >>> label_question("labels", ["cat", "dog"], owner, labels, most=2).sums.tolist()
    [1.0, 2.0]
    >>> label_question("labels", ["cat", "dog"], owner, labels, most=1).sums.round(3).tolist()
    [0.707, 1.707]
    """
    size = len(label_names)
    columns = np.fromiter((column for one in labels for column in one), np.int64)
    # One number for each pair of a user and a label, however many photos have it.
    pairs = np.unique(np.repeat(owner, [len(one) for one in labels]) * size + columns)
    user, column = np.divmod(pairs, size)
    weights = np.sqrt(np.minimum(1.0, most / np.bincount(user)[user])) if len(pairs) else np.zeros(0)
    return Question(
        name,
        label_names,
        math.sqrt(min(most, size)),
        np.bincount(column, weights, minlength=size),
        np.bincount(column, minlength=size).astype(np.float64),
    )


def photo_question(num_photos: np.ndarray, most: int) -> Question:
    """How many users have so many photos, int64 [users], in bins (`bin_ends`); a user counts in one of them."""
    ends = bin_ends(most)
    counts = np.bincount(np.searchsorted(ends, np.minimum(num_photos, most)), minlength=len(ends)).astype(np.float64)
    return Question(PHOTOS, ends.tolist(), 1.0, counts, np.sort(num_photos).astype(np.float64))


def bin_ends(most: int) -> np.ndarray:
    """int64 [bins]: the most photos of each bin, single numbers first, then four bins to a doubling.

    >>> bin_ends(40).tolist()
    [1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 13, 16, 19, 23, 27, 32, 38, 40]
    """
    powers = 2.0 ** (np.arange(_BINS_PER_DOUBLING * math.ceil(math.log2(most)) + 1) / _BINS_PER_DOUBLING)
    return np.unique(np.minimum(np.round(powers), most).astype(np.int64))
