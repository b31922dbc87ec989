"""Privacy of tree aggregation (DP-FTRL), which needs no random sampling but a bound on how often a user takes part.

The rounds are the leaves of binary trees; every complete node releases the sum below it with noise sigma * clip. A user
changes a node by at most (times they took part below it) * clip, so that all nodes together are one Gaussian mechanism
whose squared sensitivity is the sum of those squares (Kairouz et al., appendix D, https://arxiv.org/abs/2103.00039).
The guarantee is for adjacency "zero out": one user's contributions replaced by zeros, the schedule unchanged.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from benchmark.privacy import accounting


class Restarts(NamedTuple):
    """When new trees start: after `first` rounds, then every `every` (TFF's `tree_adaptive`: 128 and 1024)."""

    first: int
    every: int


def tree_squared_sensitivity(rounds: int, separation: int, restarts: Restarts | None = None) -> int:
    """Squared sensitivity, in clips squared, when a user takes part at most once in any `separation` rounds in a row.

    Level by level: a node of w rounds holds at most ceil(w / separation) participations, and a tree of n rounds at most
    ceil(n / separation) at any level. Exact when a user takes part once; otherwise an upper bound. `restarts` None is
    one tree for ever, as in TFF's `tree_aggregation`.

    >>> tree_squared_sensitivity(rounds=8, separation=8), tree_squared_sensitivity(rounds=8, separation=1)
    (4, 120)
    """
    if restarts is None:
        return _one_tree(rounds, separation)
    first = min(rounds, restarts.first)
    whole, rest = divmod(rounds - first, restarts.every)
    return sum(
        (_one_tree(first, separation), whole * _one_tree(restarts.every, separation), _one_tree(rest, separation))
    )


def tree_epsilon(
    noise_multiplier: float,
    rounds: int,
    separation: int,
    delta: float,
    restarts: Restarts | None = None,
    accountant: str = "pld",
) -> float:
    """Epsilon of tree aggregation with this noise per node, no amplification by sampling, adjacency zero-out.

    >>> round(tree_epsilon(7.0, rounds=1000, separation=1000, delta=1e-5), 2)
    1.78
    """
    squared = tree_squared_sensitivity(rounds, separation, restarts)
    if squared == 0:
        return 0.0
    return accounting.epsilon(accountant, noise_multiplier / math.sqrt(squared), 1.0, 1, delta)


def tree_noise_multiplier(
    target: float,
    rounds: int,
    separation: int,
    delta: float,
    restarts: Restarts | None = None,
    accountant: str = "pld",
) -> float:
    """The least noise multiplier per node with which `rounds` rounds cost at most epsilon `target`."""
    squared = tree_squared_sensitivity(rounds, separation, restarts)
    return math.sqrt(squared) * accounting.noise_multiplier_for(accountant, target, 1.0, 1, delta)


def _one_tree(rounds: int, separation: int) -> int:
    total = 0
    participations = math.ceil(rounds / separation)
    for level in range(rounds.bit_length()):
        width = 1 << level
        at_most = math.ceil(width / separation)
        in_level = min(participations, at_most * (rounds // width))
        full, rest = divmod(in_level, at_most)
        total += full * at_most**2 + rest**2
    return total
