"""Adapts a model to one user after another, and scores the same query photos before and after.

Only the adapted weights are set back between users, by assignment; every step is one compiled call. Photos are whole,
as in evaluation, and decoded once per episode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from benchmark.data import augmentation
from benchmark.data.records import Task
from benchmark.metrics import histogram, keras
from benchmark.model import trainable
from benchmark.model.clipping import clip_gradients
from benchmark.personalization.adaptation import Adaptation
from flair.errors import FlairError
from flair.records.tfrecord import example

_Block = tuple[tf.Tensor, tf.Tensor]
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
      query_size_limit: query photos decoded at once. Each goes through the network by itself, so that no number
        depends on it.
    """

    def __init__(
        self,
        model: tf.keras.Model,
        task: Task,
        image_size: tuple[int, int],
        adaptation: Adaptation,
        query_size_limit: int = 500,
    ) -> None:
        self.adaptation = adaptation
        self._task, self._image_size, self._query_size_limit = task, image_size, query_size_limit
        self._variables = trainable.choose(model, adaptation.trainable).trainable_variables
        self._global = [tf.constant(variable.numpy()) for variable in self._variables]
        # Below the classifier nothing changes when only the classifier does: its inputs are computed once.
        is_head = adaptation.trainable == trainable.HEAD
        body, head = trainable.body_and_head(model)
        self._body, self._network = (body, head) if is_head else (None, model)
        input_shape = (self._body.output_shape if self._body is not None else model.input_shape)[1:]
        inputs = tf.TensorSpec((None, *input_shape), tf.float32)
        labels = tf.TensorSpec((None, task.num_outputs), tf.float32)
        positions = tf.TensorSpec((None,), tf.int32)
        self._decode = decoder(task, image_size)
        # With fixed signatures there is one graph each, whatever came first: a continued run gives equal numbers.
        self._step = tf.function(self._step_once, input_signature=[inputs, labels, positions])
        self._predict = tf.function(self._predict_once, input_signature=[inputs, labels])
        self._features = tf.function(
            self._features_once, input_signature=[tf.TensorSpec((None, *image_size, 3), tf.float32)]
        )
        self._restore = tf.function(self._restore_once, input_signature=[])

    def run(self, support: Sequence[bytes], query: Sequence[bytes], positions: np.ndarray) -> tuple[Scores, Scores]:
        """Scores of the query photos before and after the adaptation.

        Args:
          support, query: serialized examples.
          positions: int32 [steps, batch], from `batch_positions`.

        Raises:
          FlairError: a photo cannot be decoded, or the loss is not a number, before or after.
        """
        kept = list(self._query_blocks(query)) if len(query) <= self._query_size_limit else None
        baseline = self._score(kept or self._query_blocks(query))
        if not np.isfinite(baseline.loss):
            raise FlairError(
                f"the loss of the model as it is is {baseline.loss}: its training has diverged; give another --model"
            )
        try:
            if len(positions):
                pixels, labels = decode_photos(self._decode, support)
                inputs = self._inputs(pixels, _SUPPORT_CHUNK)
                for batch in tf.constant(positions, tf.int32):
                    self._step(inputs, labels, batch)
            adapted = self._score(kept or self._query_blocks(query))
        finally:
            self._restore()
        if not np.isfinite(adapted.loss):
            raise FlairError(
                f"the loss after adaptation is {adapted.loss}: --learning_rate={self.adaptation.learning_rate:g} is "
                "too large; give a smaller one"
            )
        return baseline, adapted

    def _query_blocks(self, query: Sequence[bytes]) -> Iterator[_Block]:
        for start in range(0, len(query), self._query_size_limit):
            pixels, labels = decode_photos(self._decode, query[start : start + self._query_size_limit])
            yield self._inputs(pixels, 1), labels

    def _inputs(self, pixels: tf.Tensor, chunk: int) -> tf.Tensor:
        if self._body is None:
            return pixels
        starts = range(0, int(pixels.shape[0]), chunk)
        return tf.concat([self._features(pixels[start : start + chunk]) for start in starts], 0)

    def _score(self, blocks: Iterable[_Block]) -> Scores:
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
            loss = tf.reduce_mean(keras.losses_of(tf.gather(labels, positions), logits))
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


_Decoder = Callable[[tf.Tensor], _Block]


def decode_photos(decode: _Decoder, serialized: Sequence[bytes]) -> _Block:
    """What `decoder` makes of these examples.

    Raises:
      FlairError: one of them cannot be decoded; its image id.
    """
    try:
        return decode(tf.constant(list(serialized), tf.string))
    except tf.errors.InvalidArgumentError as error:
        raise _bad_photo(serialized, decode) or error from None


def decoder(task: Task, image_size: tuple[int, int]) -> _Decoder:
    """Serialized examples string [b] -> whole photos float32 [b, height, width, 3] and labels float32 [b, outputs]."""
    kinds = (tf.TensorSpec((*image_size, 3), tf.float32), tf.TensorSpec((task.num_outputs,), tf.float32))

    def one(serialized: tf.Tensor) -> _Block:
        photo, labels = augmentation.parse(serialized, task)
        return augmentation.decode_evaluation(photo, image_size, task.image_format), labels

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def decode(serialized: tf.Tensor) -> _Block:
        with tf.device("CPU:0"):
            return tf.map_fn(one, serialized, fn_output_signature=kinds, parallel_iterations=16)

    return decode


def _bad_photo(serialized: Sequence[bytes], decode: _Decoder) -> FlairError | None:
    for position, photo in enumerate(serialized):
        try:
            decode(tf.constant([photo]))
        except tf.errors.InvalidArgumentError:
            image_id = example.decode(photo).image_id
            return FlairError(
                f"{'record ' + str(position) if image_id is None else 'image ' + image_id} cannot be decoded; check "
                "the records with flair.verify and prepare them again"
            )
    return None
