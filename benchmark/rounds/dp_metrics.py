"""How a private round went, in numbers that are NOT private: they are made of the clients' updates without noise.

They say whether clipping and noise leave something to learn from. Whoever sees them learns more about the training
users than epsilon says; docs/privacy.md has what that means for a run folder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from benchmark.privacy.adaptive import sum_noise_multiplier
from benchmark.privacy.request import Mechanism
from benchmark.rounds.config import MAX_UPDATE_NORM, NoiseConfig

PREFIX = "not_private/"


def dp_metrics(
    noise: NoiseConfig,
    clip_norm: float,
    norms: np.ndarray,
    aggregate: Sequence[tf.Tensor],
    noised: Sequence[tf.Tensor],
) -> dict[str, float]:
    """The metrics of a round, by names that begin with `PREFIX`; those that mean nothing in it are left out.

    `fraction_clipped`: of the clients that were not refused, those with an update longer than the clip norm.
    `update_norm`: mean L2 norm of their updates before clipping.
    `signal_to_noise`: norm of the clean mean over the norm of the deviations of its noise, sqrt(d) * deviation, as
    pfl-research has it (https://github.com/apple/pfl-research/blob/develop/pfl/privacy/privacy_snr.py). Where noise is
    not fresh its deviation differs from round to round, and the norm of what was drawn stands for it, which is within
    a few parts in sqrt(2 d).
    `cosine`: of the angle between the noised and the clean mean.

    Args:
      clip_norm: in force in this round.
      norms: float32 [clients], of the updates before clipping.
      aggregate: TFF's; the sum of the clipped updates stands last in it, before the count of an adaptive clip norm.
      noised: the mean with its noise, a tensor per weight.
    """
    metrics: dict[str, float] = {}
    usable = norms[norms <= MAX_UPDATE_NORM]  # false for NaN
    if len(usable):
        metrics |= {"fraction_clipped": float(np.mean(usable > clip_norm)), "update_norm": float(np.mean(usable))}
    if noise.noise_multiplier > 0:
        is_adaptive = noise.clipped_count_stddev is not None
        end = len(aggregate) - is_adaptive
        lengths = _lengths(aggregate[end - len(noised) : end], noised, tf.constant(noise.clients_per_round, tf.float32))
        clean, whole, drawn, product = (float(number) for number in lengths)
        multiplier = noise.noise_multiplier
        if noise.clipped_count_stddev is not None:
            multiplier = sum_noise_multiplier(multiplier, noise.clipped_count_stddev)
        num_weights = sum(tensor.shape.num_elements() for tensor in noised)
        expected = multiplier * clip_norm / noise.clients_per_round * math.sqrt(num_weights)
        metrics["signal_to_noise"] = clean / (expected if noise.mechanism is Mechanism.GAUSSIAN else drawn)
        if clean > 0:
            metrics["cosine"] = product / (clean * whole)
    return {PREFIX + name: value for name, value in metrics.items()}


@tf.function(autograph=False)
def _lengths(clean_sum: Sequence[tf.Tensor], noised: Sequence[tf.Tensor], cohort: tf.Tensor) -> list[tf.Tensor]:
    """The L2 norms of the clean mean, the noised mean and their difference, and the product of the first two."""
    clean = [tensor / cohort for tensor in clean_sum]
    difference = [noised_one - clean_one for noised_one, clean_one in zip(noised, clean, strict=True)]
    product = tf.add_n([tf.reduce_sum(one * other) for one, other in zip(clean, noised, strict=True)])
    return [*(tf.linalg.global_norm(tensors) for tensors in (clean, noised, difference)), product]
