"""How a model does on each client by itself: the spread that a pooled average hides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from benchmark.data import augmentation
from benchmark.data.clients import BatchPlan, decoder, training_order
from benchmark.data.records import Records
from benchmark.evaluation import passes
from benchmark.metrics import histogram
from benchmark.metrics.spread import distribution
from benchmark.rounds.client import LocalTrainer
from benchmark.run.seeds import derive_generator, derive_seed
from flair.files import atomic
from flair.terminal.progress import Progress

METRICS = ("loss", "micro_averaged_precision")


class ClientScore(NamedTuple):
    """One client: photos scored, mean binary cross-entropy, exact average precision over all its decisions."""

    client_id: str
    photos: int
    loss: float
    micro_averaged_precision: float


class LocalComparison(NamedTuple):
    """One client's held-out photos before and after training on its other photos."""

    before: ClientScore
    after: ClientScore


def sample_clients(client_ids: Sequence[str], count: int | None, seed: int) -> list[str]:
    """`count` clients drawn without replacement (None: all), in their own order."""
    if count is None or count >= len(client_ids):
        return list(client_ids)
    chosen = derive_generator(seed, "federated evaluation").choice(len(client_ids), count, replace=False)
    return [client_ids[index] for index in sorted(chosen)]


def score_clients(
    model: tf.keras.Model, records: Records, partition: str, clients: Sequence[str], plan: BatchPlan
) -> list[ClientScore]:
    """Scores each client's photos by themselves, whole photos as in central evaluation."""
    with Progress(len(clients), f"scoring {partition} clients", "client") as progress:
        scores = []
        for client_id in clients:
            pixels, labels = _decode_whole(records.read_user(partition, client_id), plan)
            scores.append(_score(model, client_id, pixels, labels))
            progress.add()
        return scores


def compare_local_training(
    trainer: LocalTrainer,
    weights: Sequence[np.ndarray],
    records: Records,
    partition: str,
    clients: Sequence[str],
    plan: BatchPlan,
    learning_rate: float,
    seed: int,
) -> list[LocalComparison]:
    """Trains each client as in a round on a random half of its photos and scores the other half before and after.

    Clients with one photo are left out.
    """
    global_weights = [tf.constant(weight) for weight in weights]
    rate = tf.constant(learning_rate, tf.float32)
    comparisons = []
    with Progress(len(clients), f"training {partition} clients locally", "client") as progress:
        for client_id in clients:
            progress.add()
            serialized = records.read_user(partition, client_id)
            if len(serialized) < 2:
                continue
            order = derive_generator(seed, "local split", client_id).permutation(len(serialized))
            train, held_out = np.array_split(order, 2)
            pixels, labels = _decode_whole([serialized[index] for index in held_out], plan)
            trainer.start(global_weights)
            before = _score(trainer.model, client_id, pixels, labels)
            batches = _local_batches([serialized[index] for index in train], plan, seed, client_id)
            trainer.run(batches.copy, rate, global_weights)
            comparisons.append(LocalComparison(before, _score(trainer.model, client_id, pixels, labels)))
    trainer.start(global_weights)
    return comparisons


def summarize(scores: Sequence[ClientScore]) -> dict[str, dict[str, float]]:
    """The distribution of each metric over clients; the worst decile is the highest one of the loss."""
    return {name: distribution([getattr(score, name) for score in scores]) for name in METRICS}


def write_csv(path: Path, scores: Sequence[ClientScore]) -> None:
    """One row per client, whole or not at all."""
    atomic.write_csv(path, [ClientScore._fields, *scores])


def _decode_whole(serialized: Sequence[bytes], plan: BatchPlan) -> tuple[tf.Tensor, tf.Tensor]:
    decoded = [_decode_one(tf.constant(one), plan) for one in serialized]
    pixels, labels = zip(*decoded, strict=True)
    return tf.stack(pixels), tf.stack(labels)


def _decode_one(serialized: tf.Tensor, plan: BatchPlan) -> tuple[tf.Tensor, tf.Tensor]:
    photo, labels = augmentation.parse(serialized, plan.task)
    return augmentation.decode_evaluation(photo, plan.image_size, plan.task.image_format), labels


def _score(model: tf.keras.Model, client_id: str, pixels: tf.Tensor, labels: tf.Tensor) -> ClientScore:
    scores, losses = passes.predict_step(model)([(pixels, labels)])[0]
    exact = histogram.exact_average_precision(scores.numpy().reshape(-1, 1), labels.numpy().reshape(-1, 1))[0]
    return ClientScore(client_id, len(losses), float(np.mean(losses.numpy())), float(exact))


def _local_batches(
    serialized: Sequence[bytes], plan: BatchPlan, seed: int, client_id: str
) -> list[tuple[tf.Tensor, tf.Tensor]]:
    photos = tf.constant(serialized, tf.string)
    order, seeds = training_order(tf.size(photos), derive_seed(seed, "local training", client_id), plan)
    shown, decode = tf.gather(photos, order), decoder(plan)
    starts = range(0, int(order.shape[0]), plan.batch_size)
    return [decode(shown[i : i + plan.batch_size], seeds[i : i + plan.batch_size]) for i in starts]
