"""What a client does: from global weights to local ones, on one resident model per process, and to what it sends.

The steps are the ones `tff.learning.algorithms` defines (FedAvg: McMahan et al. 2017, https://arxiv.org/abs/1602.05629;
FedProx: Li et al. 2020, https://arxiv.org/abs/1812.06127; FedSGD and MimeLite as in TFF 0.87), and SCAFFOLD's
(Karimireddy et al. 2020, https://arxiv.org/abs/1910.06378), but each step is a compiled function called from Python: a
loop over batches inside a graph costs 1.5 to 2.7 times as much, because the executor cannot use the intra-op threads of
a convolution as well there. Imports TensorFlow only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import tensorflow as tf

from benchmark.metrics.keras import ScoreHistogram
from benchmark.metrics.loss import keras_loss
from benchmark.model.clipping import clip_scales
from benchmark.privacy.noise import client_normals
from benchmark.privacy.noise_key import NoiseKey
from benchmark.rounds.config import FED_AVG, FED_PROX, FED_SGD, MIME_LITE, SCAFFOLD, ClientConfig, LocalNoiseConfig
from benchmark.rounds.graph import GraphFunction, GraphSpec

Batch = tuple[tf.Tensor, tf.Tensor]


class LocalTrainer:
    """Trains one client after another on `model`.

    Args:
      model: takes pixels [batch, height, width, 3] in 0..255, gives logits [batch, outputs].
      config: the client's algorithm.
      step: MimeLite's client step (`RoundSpec.step`).

    Attributes:
      metrics: of the client at hand, each batch scored before its step.
      descends: whether a client's steps are gradient descent, so that `only_update` can stand for a client's only step.
      trainable: the model's weights that train; the global weights are theirs.
      gradient_sum: of the other algorithms: gradients of the client's photos, added up; of SCAFFOLD: what the client's
        steps went down by, before the learning rate.
      num_steps: of the client at hand.
      has_moved: whether a step has changed the model's weights since `start`.
    """

    def __init__(self, model: tf.keras.Model, config: ClientConfig, step: GraphSpec | None = None) -> None:
        self.model, self.config = model, config
        self.metrics = ScoreHistogram(model.output_shape[-1])
        self.trainable = model.trainable_variables
        self.descends = config.algorithm in (FED_AVG, FED_PROX)
        self.gradient_sum = [
            tf.Variable(tf.zeros_like(variable), trainable=False)
            for variable in ([] if self.descends else self.trainable)
        ]
        self._step = None if step is None else GraphFunction(step)
        self._loss = keras_loss(config.loss)
        self.has_moved = True
        self.num_steps = 0

    def start(self, weights: Sequence[tf.Tensor]) -> None:
        """Sets the model to the global weights and forgets the client before."""
        self._start(weights)
        self.has_moved = False

    def forget(self) -> None:
        """Forgets the client before, but for what it did to the weights; to be called while tracing."""
        for gradient_sum in self.gradient_sum:
            gradient_sum.assign(tf.zeros_like(gradient_sum))
        self.metrics.reset_state()

    def only_update(self, pixels: tf.Tensor, labels: tf.Tensor, learning_rate: tf.Tensor) -> list[tf.Tensor]:
        """Global minus local weights of a client of one batch, without moving the model; to be called while tracing.

        The scaled gradient is all of it: FedProx's pull towards the global weights is zero at them.
        """
        gradients = self._gradients(pixels, labels, True)
        return [r * gradient for r, gradient in zip(self._rates(gradients, learning_rate), gradients, strict=True)]

    def run(
        self,
        batches: Callable[[], Iterable[Batch]],
        learning_rate: tf.Tensor,
        global_weights: Sequence[tf.Tensor],
        optimizer_state: Sequence[tf.Tensor] = (),
        proximal_strength: float | None = None,
        correction: Sequence[tf.Tensor] = (),
    ) -> int:
        """Goes through the client's batches once (MimeLite: twice); returns the number of photos shown.

        Args:
          batches: gives the (pixels, labels) batches of a pass.
          learning_rate: float32 scalar.
          global_weights: what the client started from.
          optimizer_state: MimeLite's global optimizer state.
          proximal_strength: FedProx's mu; None: the configuration's.
          correction: SCAFFOLD's, which every gradient is changed by.
        """
        self.has_moved, self.num_steps = True, 0
        strength = self.config.proximal_strength if proximal_strength is None else proximal_strength
        if self.config.algorithm == MIME_LITE:
            for pixels, labels in batches():
                self._add_gradient(pixels, labels, False)
        num_examples = 0
        for pixels, labels in batches():
            num_examples += int(labels.shape[0])
            self.num_steps += 1
            if self.config.algorithm == FED_SGD:
                self._add_gradient(pixels, labels, True)
            elif self.config.algorithm == MIME_LITE:
                self._optimizer_update(pixels, labels, optimizer_state)
            elif self.config.algorithm == FED_PROX:
                self._proximal_update(pixels, labels, learning_rate, global_weights, tf.constant(strength))
            elif self.config.algorithm == SCAFFOLD:
                self._corrected_update(pixels, labels, learning_rate, correction)
            else:
                self._sgd_update(pixels, labels, learning_rate)
        return num_examples

    @tf.function
    def _start(self, weights: Sequence[tf.Tensor]) -> None:
        for variable, weight in zip(self.trainable, weights, strict=True):
            variable.assign(weight)
        self.forget()

    def _gradients(self, pixels: tf.Tensor, labels: tf.Tensor, score: bool) -> list[tf.Tensor]:
        # Only what trains is watched, and the network runs as in evaluation, without batch statistics and dropout: an
        # update is a function of the client's photos.
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self.trainable)
            logits = tf.cast(self.model(pixels, training=False), tf.float32)
            loss = self._loss(labels, logits)
        if score:
            self.metrics.update_state(labels, logits)
        return tape.gradient(loss, self.trainable)

    @tf.function(reduce_retracing=True)
    def _sgd_update(self, pixels: tf.Tensor, labels: tf.Tensor, learning_rate: tf.Tensor) -> None:
        self._descend(self._gradients(pixels, labels, True), learning_rate)

    @tf.function(reduce_retracing=True)
    def _proximal_update(
        self,
        pixels: tf.Tensor,
        labels: tf.Tensor,
        learning_rate: tf.Tensor,
        anchor: Sequence[tf.Tensor],
        strength: tf.Tensor,
    ) -> None:
        gradients = self._gradients(pixels, labels, True)
        self._descend(
            [
                gradient + strength * (variable - weight)
                for gradient, variable, weight in zip(gradients, self.trainable, anchor, strict=True)
            ],
            learning_rate,
        )

    @tf.function(reduce_retracing=True)
    def _corrected_update(
        self, pixels: tf.Tensor, labels: tf.Tensor, learning_rate: tf.Tensor, correction: Sequence[tf.Tensor]
    ) -> None:
        gradients = [
            gradient + change
            for gradient, change in zip(self._gradients(pixels, labels, True), correction, strict=True)
        ]
        scales = self._rates(gradients, tf.constant(1.0))
        for summed, gradient, scale in zip(self.gradient_sum, gradients, scales, strict=True):
            summed.assign_add(scale * gradient)
        self._descend(gradients, learning_rate)

    def _rates(self, gradients: Sequence[tf.Tensor], learning_rate: tf.Tensor) -> list[tf.Tensor]:
        """What each gradient is multiplied by. Clipping scales the rate, so that no gradient is written anew."""
        if self.config.clipnorm <= 0:
            return [learning_rate] * len(gradients)
        scales = clip_scales(gradients, self.config.clipnorm, self.config.global_clipnorm)
        return [learning_rate * scale for scale in scales]

    def _descend(self, gradients: Sequence[tf.Tensor], learning_rate: tf.Tensor) -> None:
        rates = self._rates(gradients, learning_rate)
        for variable, gradient, rate in zip(self.trainable, gradients, rates, strict=True):
            # One pass over the weights, and no product in memory.
            tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=rate, delta=gradient)

    @tf.function(reduce_retracing=True)
    def _optimizer_update(self, pixels: tf.Tensor, labels: tf.Tensor, optimizer_state: Sequence[tf.Tensor]) -> None:
        assert self._step is not None
        gradients = self._gradients(pixels, labels, True)
        updated = self._step([*optimizer_state, *(v.read_value() for v in self.trainable), *gradients])
        for variable, weight in zip(self.trainable, updated, strict=True):
            variable.assign(weight)

    @tf.function(reduce_retracing=True)
    def _add_gradient(self, pixels: tf.Tensor, labels: tf.Tensor, score: bool) -> None:
        weight = tf.cast(tf.shape(labels)[0], tf.float32)
        for gradient_sum, gradient in zip(self.gradient_sum, self._gradients(pixels, labels, score), strict=True):
            gradient_sum.assign_add(weight * gradient)


class Randomizer:
    """Makes updates locally private: clips each and adds the client's own noise; `config` None leaves them alone."""

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
