"""What makes an update locally private on its client: clipping, and noise of the client's own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from benchmark.privacy.noise import client_normals
from benchmark.privacy.noise_key import NoiseKey
from benchmark.rounds.config import LocalNoiseConfig


class Randomizer:
    """Clips updates and adds noise, or with `config` None leaves them alone."""

    def __init__(self, config: LocalNoiseConfig | None, key: NoiseKey | None) -> None:
        if config is not None and key is None:
            raise ValueError("local noise needs a key")
        self._config, self._key = config, key

    def normals(self, round_number: int, client_id: str, weights: Sequence[tf.Tensor]) -> list[np.ndarray]:
        """A client's normal numbers, float32 in the shapes of `weights`; empty where there is no noise."""
        if self._config is None:
            return []
        assert self._key is not None
        sizes = [weight.shape.num_elements() for weight in weights]
        parts = np.split(client_normals(self._key, round_number, client_id, sum(sizes)), np.cumsum(sizes)[:-1])
        return [part.reshape(weight.shape) for part, weight in zip(parts, weights, strict=True)]

    def apply(
        self, update: Sequence[tf.Tensor], square: tf.Tensor, normals: Sequence[tf.Tensor]
    ) -> Sequence[tf.Tensor]:
        """What a client sends in place of `update`, or several clients, one each in the first dimension.

        Args:
          square: the update's squared norm, a scalar, or [clients].
          normals: of `normals`, in the shapes of `update`.
        """
        if self._config is None:
            return update
        clip = self._config.l2_norm_clip
        scale = clip / tf.maximum(tf.sqrt(square), clip)
        deviation = clip * self._config.noise_multiplier

        def sent(one: tf.Tensor, normal: tf.Tensor) -> tf.Tensor:
            dimensions = len(one.shape) - len(scale.shape)
            return one * tf.reshape(scale, tf.concat([tf.shape(scale), [1] * dimensions], 0)) + deviation * normal

        return [sent(one, normal) for one, normal in zip(update, normals, strict=True)]
