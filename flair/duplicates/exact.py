"""Photos of equal content, found by their digests."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flair.duplicates.scope import Scope
from flair.duplicates.search import MAX_PAIRS, NEAR_PAIR
from flair.errors import FlairError


def exact_pairs(digests: NDArray[np.uint8], scope: Scope) -> NDArray[Any]:
    """All pairs that count whose digests, uint8 [n, 32], are equal: NEAR_PAIR [k], sorted, with all distances 0.

    Raises:
      FlairError: there are too many to list.
    """
    names = np.ascontiguousarray(digests).view("S32")[:, 0]
    _, group, sizes = np.unique(names, return_inverse=True, return_counts=True)
    num_pairs = int((sizes.astype(np.int64) * (sizes - 1) // 2).sum())
    if num_pairs > MAX_PAIRS:
        raise FlairError(f"{num_pairs:,} pairs of photos are equal; at most {MAX_PAIRS:,} can be listed")
    order = np.argsort(group, kind="stable")
    members = np.split(order, np.cumsum(sizes)[:-1])
    rows = [pair for photos in members if len(photos) > 1 for pair in itertools.combinations(photos.tolist(), 2)]
    both = np.array(rows, np.int32).reshape(-1, 2)
    both = both[scope.has(both[:, 0], both[:, 1])]
    found = np.zeros(len(both), NEAR_PAIR)
    found["first"], found["second"], found["correlation"] = both[:, 0], both[:, 1], 1.0
    found.sort(order=["first", "second"])
    return found
