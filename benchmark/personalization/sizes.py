"""How large an episode is: Meta-Dataset's rules for ways, queries, support and shots.

Source: Triantafillou et al., Meta-Dataset (ICLR 2020), section 3.1 and appendix, https://arxiv.org/abs/1903.03096, with
the constants of its published configuration. Pure NumPy; every draw comes from the generator that is passed in.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

MIN_WAYS, MAX_WAYS = 5, 50
MAX_QUERY = 10  # photos of a class
MAX_SUPPORT = 500  # photos of an episode
MAX_SUPPORT_CONTRIBUTION = 100  # photos by which one class can enlarge the support set
LOG_WEIGHT_RANGE = (math.log(0.5), math.log(2.0))

Integers = npt.NDArray[np.int64]


def draw_ways(num_classes: int, rng: np.random.Generator) -> int:
    """Number of classes of an episode: uniform in 5 .. min(50, `num_classes`).

    Raises:
      ValueError: fewer than 5 classes.
    """
    if num_classes < MIN_WAYS:
        raise ValueError(f"{num_classes} classes, expected at least {MIN_WAYS}")
    return int(rng.integers(MIN_WAYS, min(MAX_WAYS, num_classes), endpoint=True))


def query_size(class_sizes: npt.ArrayLike, num_support: int | None = None) -> int:
    """Query photos of each class, the same for all: at most 10, and half of the smallest class.

    Args:
      class_sizes: photos of each class.
      num_support: where the support photos of a class are fixed, the bound is what they leave of the smallest class.

    Raises:
      ValueError: some class is too small for one query photo.

    >>> query_size([9, 40]), query_size([50, 40]), query_size([9, 40], num_support=5)
    (4, 10, 4)
    """
    smallest = int(np.min(class_sizes))
    size = min(MAX_QUERY, smallest // 2 if num_support is None else smallest - num_support)
    if size < 1:
        raise ValueError(f"a class of {smallest} photos has none left to query")
    return size


def draw_support_size(remaining: npt.ArrayLike, rng: np.random.Generator) -> int:
    """Photos of the whole support set: min(500, sum_c ceil(beta * min(100, remaining_c))), beta uniform on (0, 1].

    One beta serves all classes, so that small and large support sets are both common; every class counts at least 1.
    For one class of n photos (a user), it is min(500, ceil(beta * min(100, n - q))).

    Args:
      remaining: photos of each class beside its query photos.
    """
    beta = 1.0 - rng.random()
    contributions = np.ceil(beta * np.minimum(MAX_SUPPORT_CONTRIBUTION, remaining))
    return min(MAX_SUPPORT, int(np.sum(contributions)))


def draw_shots(
    class_sizes: npt.ArrayLike, remaining: npt.ArrayLike, support_size: int, rng: np.random.Generator
) -> Integers:
    """Support photos of each class, int64 [ways]: one each, the rest in loose proportion to the sizes of the classes.

    k_c = min(floor(p_c * (support_size - ways)) + 1, remaining_c), with p_c proportional to n_c * e^alpha_c and alpha_c
    uniform in [log 1/2, log 2].

    Args:
      class_sizes: photos n_c of each class.
      remaining: of these, beside the query photos; at least 1 each.
      support_size: of the whole episode; at least the number of ways.

    Raises:
      ValueError: the support set cannot hold one photo of each class.
    """
    sizes, available = np.asarray(class_sizes, np.float64), np.asarray(remaining, np.int64)
    if support_size < len(sizes) or available.min() < 1:
        raise ValueError(f"a support set of {support_size} photos cannot hold one of each of {len(sizes)} classes")
    weights = sizes * np.exp(rng.uniform(*LOG_WEIGHT_RANGE, size=len(sizes)))
    wanted = np.floor(weights / weights.sum() * (support_size - len(sizes))).astype(np.int64) + 1
    return np.minimum(wanted, available)
