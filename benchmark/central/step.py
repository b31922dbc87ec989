"""The compiled step of central training, on one or several devices, and its variables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from benchmark.data.records import Task
from benchmark.evaluation.passes import Batch
from benchmark.metrics.histogram import NUM_BUCKETS, finalize
from benchmark.metrics.keras import histogram, losses_of, scores_of
from benchmark.metrics.loss import CROSS_ENTROPY, LossConfig
from benchmark.metrics.loss import losses_of as losses_to_train
from benchmark.model.clipping import clip_gradients
from benchmark.run.devices import Devices, sum_over_replicas
from flair.errors import FlairError


class CentralTrainer:
    """Trains a model with Adam, one compiled step per batch, on one or several devices.

    Args:
      model: takes pixels, or features; its variables were made in the scope of `devices`.
      task: what the model predicts.
      clipnorm: bound on the gradient of each weight; 0 turns clipping off.
      devices: on what to train.
      microbatch_size: photos that a device passes forward and backward at once. A larger share of a batch is split
        and its gradients added up, which gives the same step up to rounding: no layer looks across photos.
      network: what is to be saved, where `model` is the head of it; None: the model.
      loss: what the steps descend; the losses that are told are binary cross-entropy, whatever it is.
    """

    def __init__(
        self,
        model: tf.keras.Model,
        task: Task,
        clipnorm: float,
        devices: Devices,
        microbatch_size: int = 64,
        network: tf.keras.Model | None = None,
        loss: LossConfig = CROSS_ENTROPY,
    ) -> None:
        self.task, self.clipnorm, self.devices, self.microbatch_size = task, clipnorm, devices, microbatch_size
        once = {"trainable": False, "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA}
        self.model, self.network, self.loss = model, network or model, loss
        with devices.scope():
            # The new Keras optimizers pass over the weights a dozen times in a step, where this one does it once.
            self.optimizer = tf.keras.optimizers.legacy.Adam()
            shape = (task.num_outputs, 2, NUM_BUCKETS)
            self._counts = tf.Variable(tf.zeros(shape, tf.int64), **once)
            self._loss_sum = tf.Variable(0.0, dtype=tf.float64, **once)
            self._num_photos = tf.Variable(0, dtype=tf.int64, **once)
        self._gradient_sums: list[tf.Variable] = []
        inputs = model.input_shape[1:]
        images = tf.zeros((1, *inputs), tf.uint8 if len(inputs) == 3 else tf.float32)
        example = [images, tf.zeros((1, task.num_outputs)), tf.constant(0.0)]
        # The optimizer makes its variables when first used. A step would count, so it is traced and never run.
        self._step.get_concrete_function([example] * len(devices.replicas))

    def step(self, parts: Sequence[Batch], learning_rate: float, save_requested: bool = False) -> tuple[float, bool]:
        """One Adam step; photos are scored before it, into the metrics of the epoch.

        Args:
          parts: a batch (photos, labels) for each device of this process.
          learning_rate: of this step.
          save_requested: whether this process wants to save after this step, which all processes do together.

        Returns:
          The mean loss of the whole batch, and whether any process wants to save.
        """
        self.optimizer.learning_rate.assign(learning_rate)
        flag = tf.constant(float(save_requested))
        photos, size = parts[0][0].shape[0], self.microbatch_size
        if photos <= size:
            loss, requests = self._step([(images, labels, flag) for images, labels in parts])
            return float(loss), float(requests) > 0
        if not self._gradient_sums:
            self._make_gradient_sums()
        loss_sum = total = 0.0
        for start in range(0, photos, size):
            chunks = [(images[start : start + size], labels[start : start + size]) for images, labels in parts]
            sums = self._accumulate(chunks)
            loss_sum, total = loss_sum + float(sums[0]), total + float(sums[1])
        requests = self._apply([(flag, tf.constant(total))] * len(parts))
        return loss_sum / total, float(requests) > 0

    @property
    def num_photos(self) -> int:
        """Photos trained on in the epoch so far."""
        return int(self._num_photos.numpy())

    @property
    def mean_loss(self) -> float:
        """Mean training loss of the epoch so far."""
        return float(self._loss_sum.numpy()) / max(self.num_photos, 1)

    def metrics(self) -> dict[str, float]:
        """The published metrics of the epoch so far, each photo scored before the step it took part in."""
        return finalize(self._counts.numpy(), float(self._loss_sum.numpy()), self.num_photos, self.task.is_binary)

    def reset_metrics(self) -> None:
        """Starts the metrics of a new epoch."""
        for variable in (self._counts, self._loss_sum, self._num_photos):
            variable.assign(tf.zeros_like(variable))

    def arrays(self) -> dict[str, np.ndarray]:
        """Every variable by name: model, optimizer, training metrics of the epoch so far."""
        return {name: variable.numpy() for name, variable in self._variables()}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Takes the variables from a checkpoint."""
        for name, variable in self._variables():
            if name not in arrays or arrays[name].shape != tuple(variable.shape):
                raise FlairError(f"the checkpoint has no {name} of shape {tuple(variable.shape)}; use --overwrite")
            variable.assign(arrays[name])

    def _variables(self) -> Iterator[tuple[str, tf.Variable]]:
        for kind, variables in (
            ("model", self.model.variables),
            ("optimizer", self.optimizer.variables()),
            ("metrics", (self._counts, self._loss_sum, self._num_photos)),
        ):
            for index, variable in enumerate(variables):
                yield f"{kind}/{index:03d}", variable

    # Each is a function of its own: TensorFlow counts how often the source of one is traced, and warns.
    @tf.function(reduce_retracing=True)
    def _step(self, parts: Sequence[Sequence[tf.Tensor]]) -> tuple[tf.Tensor, tf.Tensor]:
        return self.devices.run(self._replica_step, parts)[0]

    @tf.function(reduce_retracing=True)
    def _accumulate(self, parts: Sequence[Batch]) -> tuple[tf.Tensor, tf.Tensor]:
        return self.devices.run(self._replica_accumulate, parts)[0]

    @tf.function
    def _apply(self, parts: Sequence[Sequence[tf.Tensor]]) -> tf.Tensor:
        return self.devices.run(self._replica_apply, parts)[0]

    def _replica_step(
        self, images: tf.Tensor, labels: tf.Tensor, save_requested: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        gradients, loss_sum, total = self._differentiate(images, labels)
        self._descend([sum_over_replicas(gradient) / total for gradient in gradients])
        return loss_sum / total, sum_over_replicas(save_requested)

    def _replica_accumulate(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        gradients, loss_sum, total = self._differentiate(images, labels)
        for gradient_sum, gradient in zip(self._gradient_sums, gradients, strict=True):
            gradient_sum.assign_add(gradient)
        return loss_sum, total

    def _replica_apply(self, save_requested: tf.Tensor, total: tf.Tensor) -> tf.Tensor:
        self._descend([sum_over_replicas(gradient_sum.read_value()) / total for gradient_sum in self._gradient_sums])
        for gradient_sum in self._gradient_sums:
            gradient_sum.assign(tf.zeros_like(gradient_sum))
        return sum_over_replicas(save_requested)

    def _differentiate(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
        """The gradients of this device's sum of losses, and over all devices that sum and the number of photos."""
        is_photo = labels[:, 0] >= 0  # the others fill up an uneven batch
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self.model.trainable_variables)
            logits = self.model(images, training=False)  # no batch statistics, no dropout
            loss_sum = tf.reduce_sum(tf.where(is_photo, losses_to_train(self.loss, labels, logits), 0.0))
        gradients = tape.gradient(loss_sum, self.model.trainable_variables)
        if not self.loss.is_cross_entropy:
            loss_sum = tf.reduce_sum(tf.where(is_photo, losses_of(labels, logits), 0.0))
        counts = histogram(tf.boolean_mask(scores_of(logits), is_photo), tf.boolean_mask(labels, is_photo))
        local = tf.stack([loss_sum, tf.reduce_sum(tf.cast(is_photo, tf.float32))])
        loss_sum, total = tf.unstack(sum_over_replicas(local))
        self._counts.assign_add(sum_over_replicas(counts))
        self._loss_sum.assign_add(tf.cast(loss_sum, tf.float64))
        self._num_photos.assign_add(tf.cast(total, tf.int64))
        return gradients, loss_sum, total

    def _descend(self, gradients: Sequence[tf.Tensor]) -> None:
        clipped = clip_gradients(gradients, self.clipnorm)
        pairs = zip(clipped, self.model.trainable_variables, strict=True)
        self.optimizer.apply_gradients(pairs, experimental_aggregate_gradients=False)

    def _make_gradient_sums(self) -> None:
        options = {"synchronization": tf.VariableSynchronization.ON_READ, "aggregation": tf.VariableAggregation.SUM}
        with self.devices.scope():
            self._gradient_sums = [
                tf.Variable(tf.zeros_like(variable), trainable=False, **options)
                for variable in self.model.trainable_variables
            ]
