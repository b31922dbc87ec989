"""A shard of a cohort: each client is trained and its update added to one aggregate.

In one process the shard is the whole cohort; on Ray every worker has one. Imports TensorFlow only.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tensorflow as tf

from benchmark.data.clients import BatchPlan, ClientBatch, ClientData, client_batches
from benchmark.metrics.histogram import NUM_BUCKETS
from benchmark.metrics.keras import ScoreHistogram
from benchmark.privacy.noise_key import NoiseKey
from benchmark.rounds.aggregation import Aggregation
from benchmark.rounds.client import Batch, LocalTrainer, Randomizer
from benchmark.rounds.config import FED_SGD, MAX_UPDATE_NORM, MIME_LITE, SCAFFOLD
from benchmark.rounds.control import ControlVariates, States
from benchmark.run.seeds import derive_seed

_Sent = TypeVar("_Sent", "Broadcast", "ShardResult")


class Broadcast(NamedTuple):
    """What the server sends to the clients of a round, as tensors or arrays.

    Attributes:
      round_number: counted from 0.
      learning_rate: of the clients' SGD in this round.
      weights: the global weights.
      aggregator: the aggregator's own (clip norm, ...).
      base_optimizer_state: MimeLite's.
      control: SCAFFOLD's control variate of the server.
      proximal_strength: FedProx's mu; None: that of the clients' configuration.
      direction: what every client's update is held against, a tensor per weight; empty: nothing looks at updates.
    """

    round_number: int
    learning_rate: float
    weights: Sequence[tf.Tensor]
    aggregator: Sequence[tf.Tensor]
    base_optimizer_state: Sequence[tf.Tensor]
    control: Sequence[tf.Tensor] = ()
    proximal_strength: float | None = None
    direction: Sequence[tf.Tensor] = ()

    def tensors(self) -> Broadcast:
        """The same with tensors; the numbers stay what they are, since seeds follow from how one is written."""
        numbers = {"round_number", "learning_rate", "proximal_strength"}
        parts = {name: part for name, part in self._asdict().items() if name not in numbers}
        return self._replace(
            **tf.nest.map_structure(lambda part: part if tf.is_tensor(part) else tf.constant(part), parts)
        )


class ShardResult(NamedTuple):
    """What one shard of the cohort comes to.

    Attributes:
      aggregate: TFF's accumulated results of the clients, as tensors or arrays.
      metric_sums: of `ScoreHistogram`: counts, loss and photos, over the clients whose update was not refused.
      num_examples: photos shown, epochs counted.
      refused_clients: clients whose update was not finite or longer than `MAX_UPDATE_NORM`, and therefore left out.
      client_seconds: float64 [clients], how long each client took.
      update_norms: float32 [clients], the L2 norm of each client's update before clipping, of refused ones too.
      control_change: in SCAFFOLD, the sum over clients of what their control variates changed by.
      states: in SCAFFOLD on another machine, the clients' new control variates, by client.
      update_sum: of the usable updates before clipping, a tensor or array per weight; empty without a direction.
      update_products: float64 [clients], of each update with the direction; empty without one.
    """

    aggregate: Sequence[tf.Tensor]
    metric_sums: Sequence[np.ndarray]
    num_examples: int
    refused_clients: tuple[str, ...]
    client_seconds: np.ndarray
    update_norms: np.ndarray
    control_change: Sequence[tf.Tensor] = ()
    states: tuple[tuple[str, np.ndarray], ...] = ()
    update_sum: Sequence[tf.Tensor] = ()
    update_products: np.ndarray = np.zeros(0)


def in_arrays(sent: _Sent) -> _Sent:
    """A `Broadcast` or `ShardResult` with NumPy arrays in place of tensors, for another process."""
    return tf.nest.map_structure(lambda part: part.numpy() if tf.is_tensor(part) else part, sent)


def no_metrics(num_outputs: int) -> list[Any]:
    """`ShardResult.metric_sums` of nobody, in the types of `ScoreHistogram`: they decide the last bit of a sum."""
    return [np.zeros((num_outputs, 2, NUM_BUCKETS), np.int64), np.float32(0), np.int64(0)]


class _Added(NamedTuple):
    """The aggregate with a client's update in it, whether it may be used, and the update's norm before clipping.

    With a direction also the sum of updates with it, and its product with the direction.
    """

    aggregate: list[tf.Tensor]
    is_usable: tf.Tensor
    norm: tf.Tensor
    update_sum: list[tf.Tensor]
    product: list[tf.Tensor]


class _Sum(NamedTuple):
    """What a client's update is added to: the aggregate of the clients before it, how the update is encoded, its noise.

    `normals` are those of local privacy, empty without; `update_sum` and `direction` are empty where nothing looks at
    updates.
    """

    aggregate: Sequence[tf.Tensor]
    broadcast: Sequence[tf.Tensor]
    seed: tf.Tensor
    normals: Sequence[tf.Tensor]
    update_sum: Sequence[tf.Tensor]
    direction: Sequence[tf.Tensor]


class ShardTrainer:
    """Trains shards of cohorts on the trainer's resident model.

    A client's order, augmentation and encoding follow from the run's `seed`, the round and the client; its noise under
    local privacy from `local_key`, the round and the client.
    """

    def __init__(
        self,
        trainer: LocalTrainer,
        aggregation: Aggregation,
        data: ClientData,
        batch_plan: BatchPlan,
        seed: int,
        local_key: NoiseKey | None = None,
    ) -> None:
        self._randomizer = Randomizer(trainer.config.local_noise, local_key)
        self._trainer, self._aggregation = trainer, aggregation
        self._data, self._batch_plan, self._seed = data, batch_plan, seed
        self._metrics = ScoreHistogram(trainer.metrics.num_labels)
        self._control = ControlVariates(trainer) if trainer.config.algorithm == SCAFFOLD else None
        aggregation.load_for_clients()

    def train(self, sent: Broadcast, clients: Sequence[str], states: States | None = None) -> ShardResult:
        """Trains each client from the weights that were sent, which no order or grouping of the clients changes.

        `states` has the clients' control variates in SCAFFOLD, and is given the new ones.
        """
        sent = sent.tensors()
        learning_rate = tf.constant(sent.learning_rate, tf.float32)
        batches = client_batches(
            self._data,
            clients,
            plan=self._batch_plan,
            seed=self._seed,
            round_number=sent.round_number,
            passes=2 if self._trainer.config.algorithm == MIME_LITE else 1,
        )
        self._metrics.reset_state()
        self._trainer.has_moved = True  # whatever the model was used for since the round before
        control = self._control
        if control is not None:
            if states is None:
                raise ValueError("SCAFFOLD needs the clients' control variates")
            control.begin(sent.control, states)
        aggregate = self._aggregation.zero()
        num_examples, refused, seconds, norms = 0, [], [], []
        update_sum, products = [tf.zeros_like(one) for one in sent.direction], []
        for client_id in clients:
            started = time.perf_counter()
            seed = tf.constant(derive_seed(self._seed, "encoding", sent.round_number, client_id))
            normals = self._randomizer.normals(sent.round_number, client_id, sent.weights)
            drawn = [tf.constant(normal) for normal in normals]
            total = _Sum(aggregate, sent.aggregator, seed, drawn, update_sum, sent.direction)
            correction = [] if control is None else control.correction(client_id)
            photos, added = self._train_client(batches, sent, learning_rate, total, correction)
            aggregate = added.aggregate
            if added.is_usable:
                update_sum = added.update_sum
                if control is not None:
                    control.renew(client_id)
            else:
                # Only now, because to decide it inside the compiled step would select between two results, another way
                # through all weights, for every client because of hardly any.
                aggregate = self._add_nothing(total)
                refused.append(client_id)
            num_examples += photos
            norms.append(added.norm.numpy())
            products += [product.numpy() for product in added.product]
            seconds.append(time.perf_counter() - started)
        metrics = self._metrics
        sums = [variable.numpy() for variable in (metrics.counts, metrics.loss_sum, metrics.num_photos)]
        return ShardResult(
            aggregate,
            sums,
            num_examples,
            tuple(refused),
            np.array(seconds, np.float64),
            np.array(norms, np.float32),
            control_change=[] if control is None else control.change(),
            update_sum=update_sum,
            update_products=np.array(products, np.float64),
        )

    def _train_client(
        self,
        batches: Iterator[ClientBatch],
        sent: Broadcast,
        learning_rate: tf.Tensor,
        total: _Sum,
        correction: Sequence[tf.Tensor],
    ) -> tuple[int, _Added]:
        """Trains a client: photos shown, and the aggregate with its update."""
        one_pass: Callable[[], Iterator[Batch]] = functools.partial(_one_pass, batches)
        if self._trainer.descends:
            # Most clients of FLAIR have a single batch. Their update is the scaled gradient: no weight is set back,
            # moved and subtracted again, each of which costs as much as a good part of the step.
            rest = one_pass()
            ahead = list(itertools.islice(rest, 2))
            if len(ahead) == 1:
                if self._trainer.has_moved:
                    self._trainer.start(sent.weights)
                return int(ahead[0][1].shape[0]), self._add_only_step(ahead[0], learning_rate, total)
            one_pass = functools.partial(itertools.chain, ahead, rest)
        self._trainer.start(sent.weights)
        of_algorithm = sent.base_optimizer_state, sent.proximal_strength, correction
        photos = self._trainer.run(one_pass, learning_rate, sent.weights, *of_algorithm)
        return photos, self._add_difference(sent.weights, tf.constant(photos, tf.float32), total)

    @tf.function(reduce_retracing=True)
    def _add_only_step(self, batch: Batch, learning_rate: tf.Tensor, total: _Sum) -> _Added:
        self._trainer.forget()
        update = self._trainer.only_update(*batch, learning_rate)
        return self._add(update, [], tf.cast(tf.shape(batch[1])[0], tf.float32), total)

    @tf.function
    def _add_difference(self, global_weights: Sequence[tf.Tensor], num_examples: tf.Tensor, total: _Sum) -> _Added:
        gradient = [tf.math.divide_no_nan(summed, num_examples) for summed in self._trainer.gradient_sum]
        if self._trainer.config.algorithm == FED_SGD:
            return self._add(gradient, [], num_examples, total)
        pairs = zip(global_weights, self._trainer.trainable, strict=True)
        return self._add([weight - variable for weight, variable in pairs], gradient, num_examples, total)

    # Nothing below asks a tensor which way to go, and to rewrite it for one that would takes a third of a second.
    @tf.autograph.experimental.do_not_convert
    def _add(
        self, update: Sequence[tf.Tensor], full_gradient: Sequence[tf.Tensor], num_examples: tf.Tensor, total: _Sum
    ) -> _Added:
        # Not a test of every number: clipping needs these sums anyway, and a comparison with NaN is false.
        square = 2 * tf.add_n([tf.nn.l2_loss(tensor) for tensor in update])
        of_gradient = [2 * tf.nn.l2_loss(tensor) for tensor in full_gradient]
        is_usable = tf.add_n([square, *of_gradient]) <= MAX_UPDATE_NORM**2
        weight = tf.where(is_usable, num_examples if self._trainer.config.weighted else 1.0, 0.0)
        self._metrics.add(self._trainer.metrics, tf.cast(is_usable, tf.int64))
        sent_gradient = full_gradient if self._trainer.config.algorithm == MIME_LITE else []
        result = [*self._randomizer.apply(update, square, total.normals), weight, *sent_gradient]
        aggregate = self._aggregation.accumulate(total.aggregate, result, total.broadcast, total.seed)
        looked_at = zip(total.update_sum, total.direction, update, strict=True) if total.direction else ()
        parts = [(before + one, tf.reduce_sum(along * one)) for before, along, one in looked_at]
        product = [tf.add_n([one for _, one in parts])] if parts else []
        return _Added(aggregate, is_usable, tf.sqrt(square), [summed for summed, _ in parts], product)

    def _add_nothing(self, total: _Sum) -> list[tf.Tensor]:
        """The aggregate with a diverged client in it, as TFF counts one: an update of zero, with weight zero.

        Under local privacy the zero has its noise, so that the server cannot tell.
        """
        zeros = [tf.zeros_like(variable) for variable in self._trainer.trainable]
        sent = self._randomizer.apply(zeros, tf.constant(0.0), total.normals)
        result = [*sent, tf.constant(0.0), *(zeros if self._trainer.config.algorithm == MIME_LITE else [])]
        return self._aggregation.accumulate(total.aggregate, result, total.broadcast, total.seed)


def _one_pass(batches: Iterator[ClientBatch]) -> Iterator[Batch]:
    """The batches up to the end of the current client's pass."""
    for batch in batches:
        yield batch.inputs, batch.labels
        if batch.is_last:
            return
