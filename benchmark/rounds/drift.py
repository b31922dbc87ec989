"""How far the updates of a round's clients lie apart: their norms, gradient diversity, cosines to their mean.

Norms and the sum of all updates come from the round itself, which adds each update to one more sum; cosines need that
sum first, so the clients that are looked at are trained once more, in a second pass, by the same code from the same
weights. An update is a function of seed, round and client, so that both passes see the same one. Two passes rather than
sketches of the updates: the numbers are exact, and memory is a few numbers per weight whatever the cohort, where
sketches of all clients grow with it. What it costs is the training of the clients that are looked at.

All of it is of clean updates: before clipping, noise and weighting, each client once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from benchmark.rounds.config import MAX_UPDATE_NORM
from benchmark.rounds.shard import Broadcast


class Drift(NamedTuple):
    """The updates of one round.

    Attributes:
      norms: float64 [clients], L2 norm of each client's update in the order of the cohort; NaN of a refused one.
      looked_at: int64 [k], places in the cohort.
      cosines: float64 [k], of the angle between each of these clients' updates and the mean update of the cohort; NaN
        where one of the two is zero.
      diversity: sum of squared norms over the squared norm of the sum (Yin et al. 2018, definition 1,
        https://arxiv.org/abs/1706.05699): 1/n where n clients send the same, 1 where their updates are orthogonal.
        NaN of a round without updates, infinite where they cancel.
    """

    norms: np.ndarray
    looked_at: np.ndarray
    cosines: np.ndarray
    diversity: float


def watched(sent: Broadcast) -> Broadcast:
    """What clients are sent in a round whose updates are added up as well."""
    return sent._replace(direction=[tf.zeros_like(weight) for weight in sent.weights])


def measure(
    products: Callable[[Broadcast, Sequence[str]], np.ndarray],
    sent: Broadcast,
    cohort: Sequence[str],
    update_norms: np.ndarray,
    update_sum: Sequence[tf.Tensor],
    looked_at: Sequence[int],
) -> Drift:
    """The drift of a round that was trained with `watched(sent)`.

    Args:
      products: trains clients again; gives `ShardResult.update_products` in their order.
      update_norms, update_sum: `ShardResult`'s, of the whole cohort in its order.
      looked_at: places in the cohort of the clients whose cosines are wanted.
    """
    places = np.asarray(looked_at, np.int64)
    norms = update_norms.astype(np.float64)
    norms[~(norms <= MAX_UPDATE_NORM)] = np.nan
    length = float(tf.linalg.global_norm(update_sum))
    again = products(sent._replace(direction=update_sum), [cohort[place] for place in places])
    squares = np.square(norms[np.isfinite(norms)]).sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        return Drift(norms, places, again / (norms[places] * length), float(squares / length**2))
