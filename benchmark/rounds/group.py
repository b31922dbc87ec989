"""Many small clients at once: groups of clients train the head of a network in one compiled call.

A client of a few features costs microseconds of arithmetic and, by itself, milliseconds of calls. Here its weights are
one slice of an array `[clients, ...]`, its batches are padded to those of its group, and what is padded is masked. The
steps are those of `client.LocalTrainer`, written out for one dense layer, whose gradient fits on a line; TFF's
aggregator then takes the updates one by one, as in `shard.ShardTrainer`, in a loop inside the same call.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from benchmark.data.clients import BatchPlan, ClientData, client_seed, prefetched
from benchmark.data.features import FeatureClients, Features
from benchmark.data.group_orders import training_orders
from benchmark.metrics.keras import histogram, losses_of, scores_of
from benchmark.metrics.loss import gradients_of
from benchmark.privacy.noise_key import NoiseKey
from benchmark.rounds.aggregation import Aggregation
from benchmark.rounds.client import LocalTrainer, Randomizer
from benchmark.rounds.config import FED_AVG, FED_PROX, MAX_UPDATE_NORM, ClientConfig
from benchmark.rounds.control import States
from benchmark.rounds.shard import Broadcast, ShardResult, ShardTrainer, no_metrics
from benchmark.run.seeds import derive_seed
from flair.errors import FlairError

_PHOTOS_PER_GROUP = 2048  # padded: of 1,280 features 10 MB, which stay in the processor's caches
_GROUPS_AHEAD = 2


class Group(NamedTuple):
    """Clients of about as many photos, with what they are trained on.

    Attributes:
      clients: int64 [g], their places in the cohort.
      inputs: float32 [g, steps, batch, d], whatever where there is no photo.
      labels: float32 [g, steps, batch, outputs].
      shown: int32 [g, steps], photos of each step.
    """

    clients: np.ndarray
    inputs: tf.Tensor
    labels: tf.Tensor
    shown: tf.Tensor


class GroupTrainer:
    """Trains shards of cohorts by FedAvg or FedProx, with the results of `shard.ShardTrainer` up to rounding."""

    def __init__(
        self,
        config: ClientConfig,
        aggregation: Aggregation,
        data: FeatureClients,
        batch_plan: BatchPlan,
        seed: int,
        local_key: NoiseKey | None = None,
    ) -> None:
        self._randomizer = Randomizer(config.local_noise, local_key)
        self._config, self._aggregation, self._data = config, aggregation, data
        self._plan, self._seed = batch_plan, seed
        aggregation.load_for_clients()

    def train(self, sent: Broadcast, clients: Sequence[str], _states: States | None = None) -> ShardResult:
        """Trains each client from the weights that were sent, which no order or grouping of the clients changes."""
        sent = sent.tensors()
        learning_rate = tf.constant(sent.learning_rate, tf.float32)
        strength = self._config.proximal_strength if sent.proximal_strength is None else sent.proximal_strength
        aggregate = self._aggregation.zero()
        sums = no_metrics(self._plan.task.num_outputs)
        num_examples, refused = 0, []
        seconds, norms = np.zeros(len(clients)), np.zeros(len(clients), np.float32)
        update_sum = [tf.zeros_like(one) for one in sent.direction]
        products = np.zeros(len(clients) if update_sum else 0)
        started = time.perf_counter()
        for group, encoding in prefetched(self._groups(sent.round_number, clients), _GROUPS_AHEAD):
            names = (clients[place] for place in group.clients)
            normals = [self._randomizer.normals(sent.round_number, name, sent.weights) for name in names]
            # Two functions, because TensorFlow warns of one that is traced with a direction as well as without.
            work = self._look_at_group if sent.direction else self._train_group
            aggregate, is_usable, of_clients, looked_at, *of_group = work(
                *group[1:],
                encoding,
                [tf.constant(np.stack(of_weight)) for of_weight in zip(*normals, strict=True)],
                sent.weights,
                learning_rate,
                tf.constant(strength, tf.float32),
                aggregate,
                sent.aggregator,
                sent.direction,
            )
            if looked_at:
                *of_updates, of_direction = looked_at
                update_sum = [total + more for total, more in zip(update_sum, of_updates, strict=True)]
                products[group.clients] = of_direction.numpy()
            sums = [total + more.numpy() for total, more in zip(sums, of_group, strict=True)]
            refused += group.clients[~is_usable.numpy()].tolist()
            norms[group.clients] = of_clients.numpy()
            shown = group.shown.numpy().sum(1)
            num_examples += int(shown.sum())
            seconds[group.clients] = (time.perf_counter() - started) * shown / shown.sum()
            started = time.perf_counter()
        left_out = tuple(clients[place] for place in sorted(refused))
        looked_at = {"update_sum": update_sum, "update_products": products}
        return ShardResult(aggregate, sums, num_examples, left_out, seconds, norms, **looked_at)

    def _groups(self, round_number: int, clients: Sequence[str]) -> Iterator[tuple[Group, tf.Tensor]]:
        """Groups, and the seeds int64 [g, 2] of encoding their clients' updates."""
        if not clients:
            return
        rows = [self._data.rows(client_id) for client_id in clients]
        for client_id, own in zip(clients, rows, strict=True):
            if not len(own):
                raise FlairError(f"client {client_id}: has no photo; prepare the records again")
        seeds = np.stack([client_seed(self._seed, round_number, client_id) for client_id in clients])
        for group in groups_of(self._data.features, rows, seeds, self._plan):
            names = (clients[place] for place in group.clients)
            encoding = [derive_seed(self._seed, "encoding", round_number, client_id) for client_id in names]
            yield group, tf.constant(np.stack(encoding))

    @tf.function(reduce_retracing=True, autograph=False)
    def _train_group(self, *group: Any) -> list[Any]:
        return self._work(*group)

    @tf.function(reduce_retracing=True, autograph=False)
    def _look_at_group(self, *group: Any) -> list[Any]:
        return self._work(*group)

    def _work(
        self,
        inputs: tf.Tensor,
        labels: tf.Tensor,
        shown: tf.Tensor,
        seeds: tf.Tensor,
        normals: Sequence[tf.Tensor],
        global_weights: Sequence[tf.Tensor],
        learning_rate: tf.Tensor,
        strength: tf.Tensor,
        aggregate: Sequence[tf.Tensor],
        broadcast: Sequence[tf.Tensor],
        direction: Sequence[tf.Tensor],
    ) -> list[Any]:
        """The aggregate with these clients, whose update may be used, its norm, sums of the usable ones' metrics.

        Before those sums, with a direction: the sum of the usable updates, then the product of each with it.
        """
        num_clients = tf.shape(shown)[0]
        start = [tf.repeat(weight[tf.newaxis], num_clients, axis=0) for weight in global_weights]
        ended, logits = _descend(self._config, inputs, labels, shown, start, learning_rate, strength)
        updates = [before - after for before, after in zip(start, ended, strict=True)]
        square = tf.add_n(_squares(updates))
        is_usable = square <= MAX_UPDATE_NORM**2  # false for NaN
        examples = tf.cast(tf.reduce_sum(shown, 1), tf.float32) if self._config.weighted else tf.ones_like(square)
        client_weights = tf.where(is_usable, examples, 0.0)
        updates = [tf.where(_of_clients(is_usable, u), u, 0.0) for u in updates]
        looked_at = [tf.reduce_sum(update, 0) for update in updates] if direction else []
        if direction:
            along = zip(updates, direction, strict=True)
            looked_at.append(tf.add_n([tf.linalg.matvec(_rows(u), tf.reshape(d, [-1])) for u, d in along]))
        updates = [*self._randomizer.apply(updates, tf.where(is_usable, square, 0.0), normals)]

        def add(client: tf.Tensor, *summed: tf.Tensor) -> list[tf.Tensor]:
            result = [*(update[client] for update in updates), client_weights[client]]
            return [client + 1, *self._aggregation.accumulate(summed, result, broadcast, seeds[client])]

        _, *aggregate = tf.while_loop(
            lambda client, *_: client < num_clients, add, [tf.constant(0), *aggregate], parallel_iterations=1
        )
        counted = tf.sequence_mask(tf.where(is_usable[:, tf.newaxis], shown, 0), tf.shape(inputs)[2])
        metrics = _metrics(tf.boolean_mask(labels, counted), tf.boolean_mask(logits, counted))
        return [aggregate, is_usable, tf.sqrt(square), looked_at, *metrics]


class LocalGroups:
    """Clients that each train the head by themselves, by plain gradient descent at the last learning rate."""

    def __init__(self, config: ClientConfig, batch_plan: BatchPlan) -> None:
        self._config, self._plan = replace(config, algorithm=FED_AVG), batch_plan

    def train(
        self, features: Features, rows: Sequence[np.ndarray], seeds: np.ndarray, weights: Sequence[np.ndarray]
    ) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Group by group each client, by its place, and the weights that it ends with.

        Args:
          rows: of `features`, that each client trains on.
          seeds: int64 [clients, 2], of the order in which it does.
          weights: where all start.
        """
        for group in groups_of(features, rows, seeds, self._plan):
            ended = self._train_group(*group[1:], weights)
            yield from zip(group.clients.tolist(), zip(*(one.numpy() for one in ended), strict=True), strict=True)

    @tf.function(reduce_retracing=True, autograph=False)
    def _train_group(
        self, inputs: tf.Tensor, labels: tf.Tensor, shown: tf.Tensor, weights: Sequence[tf.Tensor]
    ) -> list[tf.Tensor]:
        start = [tf.repeat(weight[tf.newaxis], tf.shape(shown)[0], axis=0) for weight in weights]
        rate = tf.constant(self._config.learning_rates[-1], tf.float32)
        return _descend(self._config, inputs, labels, shown, start, rate, tf.constant(0.0))[0]


def shard_trainer(
    trainer: LocalTrainer,
    aggregation: Aggregation,
    data: ClientData,
    batch_plan: BatchPlan,
    seed: int,
    local_key: NoiseKey | None = None,
) -> ShardTrainer | GroupTrainer:
    """What trains shards: groups of clients at once where they have features and descend, else one by one."""
    if isinstance(data, FeatureClients) and trainer.descends:
        return GroupTrainer(trainer.config, aggregation, data, batch_plan, seed, local_key)
    return ShardTrainer(trainer, aggregation, data, batch_plan, seed, local_key)


def groups_of(features: Features, rows: Sequence[np.ndarray], seeds: np.ndarray, plan: BatchPlan) -> Iterator[Group]:
    """Clients, each of these rows of features and with a seed int64 [2] for their order, in groups of one size."""
    orders = training_orders([len(own) for own in rows], seeds, plan)
    first = np.cumsum([0, *orders.counts])
    photos = np.concatenate(rows)[orders.photos + np.repeat(np.cumsum([0, *map(len, rows)])[:-1], orders.counts)]
    steps, batch = _padded(orders.counts, plan.batch_size)
    by_size = np.lexsort((batch, steps))
    borders = np.flatnonzero((np.diff(steps[by_size]) != 0) | (np.diff(batch[by_size]) != 0)) + 1
    for alike in np.split(by_size, borders):
        size = int(steps[alike[0]]), int(batch[alike[0]])
        for chosen in np.array_split(alike, -(-len(alike) * size[0] * size[1] // _PHOTOS_PER_GROUP)):
            if len(chosen):
                yield _group(features, chosen, first, photos, orders.draws, size)


def _group(
    features: Features,
    chosen: np.ndarray,
    first: np.ndarray,
    photos: np.ndarray,
    draws: np.ndarray,
    size: tuple[int, int],
) -> Group:
    steps, batch = size
    places = first[chosen][:, np.newaxis] + np.arange(steps * batch)
    is_photo = places < first[chosen + 1][:, np.newaxis]
    places = np.where(is_photo, places, first[chosen][:, np.newaxis]).ravel()  # padded with the client's first photo
    inputs, labels = features.inputs(photos[places], draws[places]), features.labels(photos[places])
    return Group(
        chosen,
        tf.constant(inputs.reshape(len(chosen), steps, batch, -1)),
        tf.constant(labels.reshape(len(chosen), steps, batch, -1)),
        tf.constant(is_photo.reshape(len(chosen), steps, batch).sum(2), tf.int32),
    )


def _descend(
    config: ClientConfig,
    inputs: tf.Tensor,
    labels: tf.Tensor,
    shown: tf.Tensor,
    start: Sequence[tf.Tensor],
    learning_rate: tf.Tensor,
    strength: tf.Tensor,
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """The weights [g, ...] with which the clients of a group end, and logits [g, steps, batch, outputs] on the way."""
    steps = tf.shape(shown)[1]
    all_logits = tf.TensorArray(tf.float32, steps, element_shape=[None, None, labels.shape[-1]])

    def one_step(step: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, logits_of: tf.TensorArray) -> list[tf.Tensor]:
        x, y, count = inputs[:, step], labels[:, step], tf.cast(shown[:, step], tf.float32)
        logits = tf.matmul(x, kernel) + bias[:, tf.newaxis]
        is_photo = tf.sequence_mask(shown[:, step], tf.shape(x)[1], tf.float32)
        # The mean over photos and labels of the loss, differentiated by the logits.
        share = is_photo / (tf.maximum(count, 1.0) * float(labels.shape[-1]))[:, tf.newaxis]
        error = gradients_of(config.loss, y, logits) * share[:, :, tf.newaxis]
        gradients = [tf.matmul(x, error, transpose_a=True), tf.reduce_sum(error, 1)]
        weights = [kernel, bias]
        if config.algorithm == FED_PROX:
            gradients = [
                gradient + strength * (weight - anchor)
                for gradient, weight, anchor in zip(gradients, weights, start, strict=True)
            ]
        rates = [learning_rate * tf.cast(count > 0, tf.float32) * scale for scale in _scales(config, gradients)]
        moved = [
            weight - _of_clients(rate, weight) * gradient
            for weight, rate, gradient in zip(weights, rates, gradients, strict=True)
        ]
        return [step + 1, *moved, logits_of.write(step, logits)]

    _, kernel, bias, all_logits = tf.while_loop(
        lambda step, *_: step < steps, one_step, [tf.constant(0), *start, all_logits], parallel_iterations=1
    )
    return [kernel, bias], tf.transpose(all_logits.stack(), [1, 0, 2, 3])


def _scales(config: ClientConfig, gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """`clipping.clip_scales` of every client: float32 [g] for each weight."""
    bound = config.clipnorm
    if bound <= 0:
        return [tf.ones(tf.shape(gradient)[:1]) for gradient in gradients]
    squares = _squares(gradients)
    if config.global_clipnorm:
        squares = [tf.add_n(squares)] * len(squares)
    return [bound / tf.maximum(tf.sqrt(square), bound) for square in squares]


def _squares(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """The squared L2 norms float32 [g] of each client's slice of tensors [g, ...]."""
    return [tf.reduce_sum(tf.square(one), list(range(1, len(one.shape)))) for one in tensors]


def _rows(tensor: tf.Tensor) -> tf.Tensor:
    """A tensor [g, ...] as a row of numbers per client."""
    return tf.reshape(tensor, [tf.shape(tensor)[0], -1])


def _of_clients(values: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """A number per client, [g], in a shape that goes with a tensor [g, ...]."""
    return tf.reshape(values, [-1] + [1] * (len(like.shape) - 1))


def _metrics(labels: tf.Tensor, logits: tf.Tensor) -> list[tf.Tensor]:
    """The sums of `metrics.keras.ScoreHistogram` over photos: counts, loss, photos."""
    counts = histogram(scores_of(logits), labels)
    return [counts, tf.reduce_sum(losses_of(labels, logits)), tf.shape(labels, tf.int64)[0]]


def _padded(counts: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps and photos per step of each client, rounded up to a power of two, so that there are few kinds of groups."""
    steps = -(-counts // batch_size)
    one_step = np.minimum(_power_of_two(counts), batch_size)
    return _power_of_two(steps), np.where(steps == 1, one_step, batch_size)


def _power_of_two(numbers: np.ndarray) -> np.ndarray:
    return np.asarray(2 ** np.ceil(np.log2(numbers)), np.int64)
