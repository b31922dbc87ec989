"""A client's local training on a resident model: one model a process, whose weights are set anew for every client.

The steps are the ones `tff.learning.algorithms` defines (FedAvg: McMahan et al. 2017, https://arxiv.org/abs/1602.05629;
FedProx: Li et al. 2020, https://arxiv.org/abs/1812.06127; FedSGD and MimeLite as in TFF 0.87), but each step is a
compiled function called from Python: a loop over batches inside a graph costs 1.5 to 2.7 times as much, because the
executor cannot use the intra-op threads of a convolution as well there. Imports TensorFlow only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import tensorflow as tf

from benchmark.federated_config import FED_PROX, FED_SGD, MIME_LITE, ClientConfig
from benchmark.flair_metrics import ScoreHistogram
from benchmark.server import ClientAggregation

Batch = tuple[tf.Tensor, tf.Tensor]
OptimizerStep = Callable[[Sequence[tf.Tensor], Sequence[tf.Tensor], Sequence[tf.Tensor]], Sequence[tf.Tensor]]


class ClientOutcome(NamedTuple):
    """What is kept of one client: the aggregate with it in, its examples, and whether its update was finite."""

    aggregate: list[tf.Tensor]
    num_examples: int
    is_finite: bool


def clip_gradients(gradients: Sequence[tf.Tensor], clipnorm: float, global_clipnorm: bool) -> list[tf.Tensor]:
    """Clips gradients to L2 norm `clipnorm`, each by itself or all together; 0 leaves them as they are."""
    if clipnorm <= 0:
        return list(gradients)
    if global_clipnorm:
        return list(tf.clip_by_global_norm(gradients, clipnorm)[0])
    return [tf.clip_by_norm(gradient, clipnorm) for gradient in gradients]


class ClientTrainer:
    """Trains clients one after another on `model` and adds each result to an aggregate.

    Args:
      model: takes pixels [batch, height, width, 3] in 0..255, gives logits [batch, outputs].
      config: the client's algorithm.
      aggregation: TFF's clip-and-encode and accumulate functions.
      optimizer_step: MimeLite's `next` of the global optimizer, (state, weights, gradients) -> new weights.
      is_binary: whether metrics carry their bare names.
    """

    def __init__(
        self,
        model: tf.keras.Model,
        config: ClientConfig,
        aggregation: ClientAggregation,
        optimizer_step: OptimizerStep | None = None,
        is_binary: bool = False,
    ) -> None:
        self.model, self.config, self.aggregation = model, config, aggregation
        self._optimizer_step = optimizer_step
        self._loss = tf.keras.losses.BinaryCrossentropy(from_logits=True)
        self._trainable = model.trainable_variables
        self._variables = [*model.trainable_variables, *model.non_trainable_variables]
        self._client_metrics = ScoreHistogram(model.output_shape[-1], is_binary)
        self._round_metrics = ScoreHistogram(model.output_shape[-1], is_binary)
        self._gradient_sum = (
            [tf.Variable(tf.zeros_like(v), trainable=False) for v in self._trainable]
            if config.algorithm in (FED_SGD, MIME_LITE)
            else []
        )

    def start_round(self) -> list[tf.Tensor]:
        """Forgets the last round's metrics; returns the aggregate of no client."""
        self._round_metrics.reset_state()
        return self.aggregation.zero()

    def train(
        self,
        batches: Callable[[], Iterable[Batch]],
        global_weights: Sequence[tf.Tensor],
        learning_rate: tf.Tensor,
        aggregate: Sequence[tf.Tensor],
        broadcast: Sequence[tf.Tensor],
        seed: tf.Tensor,
        optimizer_state: Sequence[tf.Tensor] = (),
    ) -> ClientOutcome:
        """Trains one client from `global_weights` and adds its clipped, encoded result to `aggregate`.

        Args:
          batches: called once a pass over the client's data (MimeLite passes twice): (pixels, labels) batches.
          global_weights: trainable ones first.
          learning_rate: float32 scalar.
          aggregate: so far, from `start_round` or the client before.
          broadcast: what the server's aggregator sent for this round.
          seed: int64[2], for an aggregator that rounds stochastically.
          optimizer_state: MimeLite's global optimizer state.
        """
        self._begin(global_weights)
        num_examples = 0
        if self.config.algorithm == MIME_LITE:
            for pixels, labels in batches():
                self._add_gradient(pixels, labels, False)
        for pixels, labels in batches():
            num_examples += int(labels.shape[0])
            if self.config.algorithm == FED_SGD:
                self._add_gradient(pixels, labels, True)
            elif self.config.algorithm == MIME_LITE:
                self._optimizer_update(pixels, labels, optimizer_state)
            elif self.config.algorithm == FED_PROX:
                self._proximal_update(pixels, labels, learning_rate, global_weights)
            else:
                self._sgd_update(pixels, labels, learning_rate)
        aggregate, is_finite = self._finish(
            global_weights, tf.constant(num_examples, tf.float32), aggregate, broadcast, seed
        )
        return ClientOutcome(list(aggregate), num_examples, bool(is_finite))

    def round_metrics(self) -> dict[str, float]:
        """Training metrics over all clients since `start_round`, each batch scored before its step."""
        return self._round_metrics.summary()

    @tf.function
    def _begin(self, weights: Sequence[tf.Tensor]) -> None:
        for variable, weight in zip(self._variables, weights, strict=True):
            variable.assign(weight)
        for gradient_sum in self._gradient_sum:
            gradient_sum.assign(tf.zeros_like(gradient_sum))
        self._client_metrics.reset_state()

    def _gradients(self, pixels: tf.Tensor, labels: tf.Tensor, score: bool) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            logits = tf.cast(self.model(pixels, training=True), tf.float32)
            loss = self._loss(labels, logits)
        if score:
            self._client_metrics.update_state(labels, logits)
        return tape.gradient(loss, self._trainable)

    @tf.function(reduce_retracing=True)
    def _sgd_update(self, pixels: tf.Tensor, labels: tf.Tensor, learning_rate: tf.Tensor) -> None:
        self._descend(self._gradients(pixels, labels, True), learning_rate)

    @tf.function(reduce_retracing=True)
    def _proximal_update(
        self, pixels: tf.Tensor, labels: tf.Tensor, learning_rate: tf.Tensor, anchor: Sequence[tf.Tensor]
    ) -> None:
        gradients = self._gradients(pixels, labels, True)
        self._descend(
            [
                gradient + self.config.proximal_strength * (variable - weight)
                for gradient, variable, weight in zip(gradients, self._trainable, anchor, strict=False)
            ],
            learning_rate,
        )

    def _descend(self, gradients: Sequence[tf.Tensor], learning_rate: tf.Tensor) -> None:
        clipped = clip_gradients(gradients, self.config.clipnorm, self.config.global_clipnorm)
        for variable, gradient in zip(self._trainable, clipped, strict=True):
            tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=learning_rate, delta=gradient)

    @tf.function(reduce_retracing=True)
    def _optimizer_update(self, pixels: tf.Tensor, labels: tf.Tensor, optimizer_state: Sequence[tf.Tensor]) -> None:
        assert self._optimizer_step is not None
        gradients = self._gradients(pixels, labels, True)
        updated = self._optimizer_step(optimizer_state, [v.read_value() for v in self._trainable], gradients)
        for variable, weight in zip(self._trainable, updated, strict=True):
            variable.assign(weight)

    @tf.function(reduce_retracing=True)
    def _add_gradient(self, pixels: tf.Tensor, labels: tf.Tensor, score: bool) -> None:
        weight = tf.cast(tf.shape(labels)[0], tf.float32)
        for gradient_sum, gradient in zip(self._gradient_sum, self._gradients(pixels, labels, score), strict=True):
            gradient_sum.assign_add(weight * gradient)

    @tf.function
    def _finish(
        self,
        global_weights: Sequence[tf.Tensor],
        num_examples: tf.Tensor,
        aggregate: Sequence[tf.Tensor],
        broadcast: Sequence[tf.Tensor],
        seed: tf.Tensor,
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        gradient = [tf.math.divide_no_nan(total, num_examples) for total in self._gradient_sum]
        update = (
            gradient
            if self.config.algorithm == FED_SGD
            else [weight - variable for weight, variable in zip(global_weights, self._trainable, strict=False)]
        )
        is_finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(tensor)) for tensor in update])
        # A diverged client counts as TFF has it: a zero update of weight zero, its metrics left out.
        update = [tf.where(is_finite, tensor, tf.zeros_like(tensor)) for tensor in update]
        weight = tf.where(is_finite, num_examples if self.config.weighted else 1.0, 0.0)
        for total, own in zip(self._round_metrics.variables, self._client_metrics.variables, strict=True):
            total.assign_add(tf.where(is_finite, own, tf.zeros_like(own)))
        result = [*update, weight, *(gradient if self.config.algorithm == MIME_LITE else [])]
        return self.aggregation.accumulate(aggregate, result, broadcast, seed), is_finite
