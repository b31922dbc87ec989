"""How a model adapts to the support photos of an episode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmark.metrics.loss import CROSS_ENTROPY, LossConfig
from benchmark.run.seeds import derive_generator


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


def batch_positions(num_support: int, steps: int, batch_size: int, seed: int, number: int) -> np.ndarray:
    """The support photos of every step of an episode: int32 [steps, min(batch_size, num_support)].

    The photos are gone through in a fresh random order each time; batches run across the borders.
    """
    size = min(batch_size, num_support)
    rng = derive_generator(seed, "batches of episode", number)
    passes = [rng.permutation(num_support) for _ in range(-(-steps * size // num_support))]
    order = np.concatenate([*passes, np.zeros(0, np.int64)])[: steps * size]
    return order.reshape(steps, size).astype(np.int32)
