"""Adapts a model to one user after another, and scores the same query photos before and after.

Only the adapted weights are set back between users, by assignment; every step is one compiled call. Photos are whole,
as in evaluation, and decoded once per episode, or features of them are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from benchmark.data.clients import Batch, ClientPhotos
from benchmark.metrics import histogram, keras
from benchmark.metrics.loss import losses_of
from benchmark.model import trainable
from benchmark.model.clipping import clip_gradients
from benchmark.personalization.users import Adaptation
from flair.errors import FlairError

Rows = Sequence[int] | np.ndarray
_SUPPORT_CHUNK = 32  # photos of the support set that go through the network at once


class Scores(NamedTuple):
    """Of one query set: mean binary cross-entropy, and exact average precision over all decisions of all labels.

    A label that occurs in no query photo only adds negatives to the pool, so `micro_ap` exists wherever any photo
    carries any label; else it is NaN.
    """

    loss: float
    micro_ap: float


class Personalizer:
    """Runs episodes on `model`, whose weights are the global ones before and after each.

    Args:
      model: takes pixels [batch, height, width, 3] in 0..255, gives logits [batch, outputs].
      has_features: whether photos are given as features, which the model's head takes.
      query_size_limit: query photos decoded at once. Each goes through the network by itself, so that no number
        depends on it.
    """

    def __init__(
        self, model: tf.keras.Model, adaptation: Adaptation, has_features: bool = False, query_size_limit: int = 500
    ) -> None:
        self.adaptation = adaptation
        self._query_size_limit = query_size_limit
        self._variables = trainable.choose(model, adaptation.trainable).trainable_variables
        self._global = [tf.constant(variable.numpy()) for variable in self._variables]
        # Below the classifier nothing changes when only the classifier does: its inputs are computed once.
        is_head = adaptation.trainable == trainable.HEAD
        body, head = trainable.body_and_head(model)
        self._body = body if is_head and not has_features else None
        self._network = head if is_head else model
        inputs = tf.TensorSpec(self._network.input_shape, tf.float32)
        labels = tf.TensorSpec(model.output_shape, tf.float32)
        positions = tf.TensorSpec((None,), tf.int32)
        # With fixed signatures there is one graph each, whatever came first: a continued run gives equal numbers.
        self._step = tf.function(self._step_once, input_signature=[inputs, labels, positions])
        self._predict = tf.function(self._predict_once, input_signature=[inputs, labels])
        self._features = tf.function(
            self._features_once, input_signature=[tf.TensorSpec(model.input_shape, tf.float32)]
        )
        self._restore = tf.function(self._restore_once, input_signature=[])

    def run(self, photos: ClientPhotos, support: Rows, query: Rows, positions: np.ndarray) -> tuple[Scores, Scores]:
        """Scores of the query photos before and after the adaptation.

        Args:
          photos: those of one user.
          support, query: which of them.
          positions: int32 [steps, batch], from `batch_positions`.

        Raises:
          FlairError: a photo cannot be decoded, or the loss is not a number, before or after.
        """
        # Decoded once for both scores where they fit into memory.
        kept = list(self._query_blocks(photos, query)) if len(query) <= self._query_size_limit else None
        baseline = self._score(kept or self._query_blocks(photos, query))
        if not np.isfinite(baseline.loss):
            raise FlairError(
                f"the loss of the model as it is is {baseline.loss}: its training has diverged; give another --model"
            )
        try:
            if len(positions):
                pixels, labels = photos.whole(support)
                inputs = self._inputs(pixels, _SUPPORT_CHUNK)
                for batch in tf.constant(positions, tf.int32):
                    self._step(inputs, labels, batch)
            adapted = self._score(kept or self._query_blocks(photos, query))
        finally:
            self._restore()
        if not np.isfinite(adapted.loss):
            raise FlairError(
                f"the loss after adaptation is {adapted.loss}: --learning_rate={self.adaptation.learning_rate:g} is "
                "too large; give a smaller one"
            )
        return baseline, adapted

    def _query_blocks(self, photos: ClientPhotos, query: Rows) -> Iterator[Batch]:
        for start in range(0, len(query), self._query_size_limit):
            pixels, labels = photos.whole(query[start : start + self._query_size_limit])
            yield self._inputs(pixels, 1), labels

    def _inputs(self, pixels: tf.Tensor, chunk: int) -> tf.Tensor:
        if self._body is None:
            return pixels
        starts = range(0, int(pixels.shape[0]), chunk)
        return tf.concat([self._features(pixels[start : start + chunk]) for start in starts], 0)

    def _score(self, blocks: Iterable[Batch]) -> Scores:
        scores, losses, truth = [], [], []
        for inputs, labels in blocks:
            for photo in range(int(labels.shape[0])):
                # One by one: a product of another shape may round otherwise.
                score, loss = self._predict(inputs[photo : photo + 1], labels[photo : photo + 1])
                scores.append(score.numpy()[0])
                losses.append(float(loss.numpy()[0]))
            truth.append(labels.numpy())
        return Scores(float(np.mean(losses)), micro_average_precision(np.stack(scores), np.concatenate(truth)))

    def _step_once(self, inputs: tf.Tensor, labels: tf.Tensor, positions: tf.Tensor) -> None:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self._variables)
            logits = self._network(tf.gather(inputs, positions), training=False)
            loss = tf.reduce_mean(losses_of(self.adaptation.loss, tf.gather(labels, positions), logits))
        gradients = tape.gradient(loss, self._variables)
        if self.adaptation.proximal_strength > 0:
            gradients = [
                gradient + self.adaptation.proximal_strength * (variable - start)
                for gradient, variable, start in zip(gradients, self._variables, self._global, strict=True)
            ]
        clipped = clip_gradients(gradients, self.adaptation.clipnorm)
        for variable, gradient in zip(self._variables, clipped, strict=True):
            variable.assign_sub(self.adaptation.learning_rate * gradient)

    def _predict_once(self, inputs: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        logits = self._network(inputs, training=False)
        return keras.scores_of(logits), keras.losses_of(labels, logits)

    def _features_once(self, pixels: tf.Tensor) -> tf.Tensor:
        assert self._body is not None
        return tf.cast(self._body(pixels, training=False), tf.float32)

    def _restore_once(self) -> None:
        for variable, start in zip(self._variables, self._global, strict=True):
            variable.assign(start)


def micro_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Exact average precision over all (photo, label) decisions; NaN where no photo carries any label."""
    if not (labels > 0.5).any():
        return float("nan")
    return histogram.pooled_average_precision(scores, labels)
