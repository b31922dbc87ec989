"""How much one user can change what tree aggregation (DP-FTRL) releases."""

from __future__ import annotations

import math


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
