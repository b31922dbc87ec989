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


def clipping_metrics(clip_norm: float, norms: np.ndarray) -> dict[str, float]:
    """How much was clipped, by names that begin with `PREFIX`; nothing in a round without clients.

    `fraction_clipped`: of the clients that were not refused, those with an update longer than the clip norm.
    `update_norm`: mean L2 norm of their updates before clipping.

    Args:
      clip_norm: in force in this round.
      norms: float32 [clients], of the updates before clipping.
    """
    usable = norms[norms <= MAX_UPDATE_NORM]  # false for NaN
    if not len(usable):
        return {}
    means = {"fraction_clipped": np.mean(usable > clip_norm), "update_norm": np.mean(usable)}
    return {PREFIX + name: float(value) for name, value in means.items()}


def noise_metrics(
    noise: NoiseConfig, clip_norm: float, aggregate: Sequence[tf.Tensor], noised: Sequence[tf.Tensor]
) -> dict[str, float]:
    """What the noise left, by names that begin with `PREFIX`; those that mean nothing in a round are left out.

    `signal_to_noise`: norm of the clean mean over the norm of the deviations of its noise, sqrt(d) * deviation, as
    pfl-research has it (https://github.com/apple/pfl-research/blob/develop/pfl/privacy/privacy_snr.py). Where noise is
    not fresh its deviation differs from round to round, and the norm of what was drawn stands for it, which is within
    a few parts in sqrt(2 d).
    `cosine`: of the angle between the noised and the clean mean.

    Args:
      clip_norm: in force in this round.
      aggregate: TFF's; the sum of the clipped updates stands last in it, before the count of an adaptive clip norm.
      noised: the mean with its noise, a tensor per weight.
    """
    if noise.noise_multiplier == 0:
        return {}
    multiplier = sum_noise_multiplier(noise.noise_multiplier, noise.clipped_count_stddev)
    end = len(aggregate) - (noise.clipped_count_stddev is not None)
    lengths = _lengths(aggregate[end - len(noised) : end], noised, tf.constant(noise.clients_per_round, tf.float32))
    clean, whole, drawn, product = (float(number) for number in lengths)
    num_weights = sum(tensor.shape.num_elements() for tensor in noised)
    expected = multiplier * clip_norm / noise.clients_per_round * math.sqrt(num_weights)
    metrics = {"signal_to_noise": clean / (expected if noise.mechanism is Mechanism.GAUSSIAN else drawn)}
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
