"""TFF's own personalization evaluation on the same episodes gives the same numbers."""

from __future__ import annotations

import collections
import functools

import numpy as np
import pytest
import tensorflow as tf

from benchmark.data.clients import StoredPhotos
from benchmark.data.labels import read_photo_table
from benchmark.data.opening import make_task, open_records
from benchmark.model import networks
from benchmark.personalization.personalizer import Personalizer
from benchmark.personalization.users import Adaptation, UserEpisodes, UserPhotos, batch_positions
from flair.records.tfrecord import example
from tests.support.tiny_network import TINY

SIZE, STEPS, BATCH, LEARNING_RATE, MU = (32, 32), 6, 4, 0.1, 0.3
STRATEGIES = {"head": ("head", 0.0), "all": ("all", 0.0), "proximal": ("all", MU)}


def _build(num_outputs):
    return networks.build_model(TINY, (*SIZE, 3), num_outputs, seed=2)


def _elements(photos, num_outputs):
    pixels = [tf.image.resize(tf.io.decode_jpeg(example.decode(p).image, channels=3), SIZE).numpy() for p in photos]
    labels = np.zeros((len(photos), num_outputs), np.float32)
    for row, photo in enumerate(photos):
        labels[row, list(example.decode(photo).labels)] = 1
    return np.stack(pixels), labels


def _dataset(elements, positions):
    pixels, labels = elements
    return tf.data.Dataset.from_tensor_slices((pixels[positions], labels[positions]))


@tf.function
def _evaluate(model, data):
    """Loss and average precision over all decisions, by TensorFlow operations."""
    pixels, labels = data.batch(500).get_single_element()
    logits = model.predict_on_batch(pixels, training=False)
    loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels, logits))
    scores, truth = tf.reshape(logits, [-1]), tf.reshape(labels, [-1])
    ranked = tf.gather(truth, tf.argsort(scores, direction="DESCENDING", stable=True))
    precision = tf.cumsum(ranked) / tf.range(1.0, tf.cast(tf.size(ranked), tf.float32) + 1.0)
    average_precision = tf.reduce_sum(precision * ranked) / tf.reduce_sum(ranked)
    return collections.OrderedDict(loss=loss, micro_ap=average_precision)


def _personalize(layers, mu):
    @tf.function
    def personalize(model, train_data, test_data):
        weights = model.trainable_variables[-2:] if layers == "head" else model.trainable_variables
        start = [tf.identity(weight) for weight in weights]
        for pixels, labels in train_data.batch(BATCH):
            with tf.GradientTape() as tape:
                output = model.forward_pass((pixels, labels), training=True)
            gradients = tape.gradient(output.loss, weights)
            for weight, gradient, begun in zip(weights, gradients, start, strict=True):
                weight.assign_sub(LEARNING_RATE * (gradient + mu * (weight - begun)))
        return _evaluate(model, test_data)

    return personalize


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_tff_agrees_to_1e_5(tfrecords):
    import tensorflow_federated as tff

    from benchmark.rounds.tff import guard_worker, stop_workers

    records = open_records(tfrecords)
    task = make_task(records, False, None)
    table = read_photo_table(records, "train")
    users = [
        UserPhotos(user, [table.image_ids[row] for row in rows])
        for user, rows in zip(table.users, table.rows_by_user(), strict=True)
    ]
    episodes = UserEpisodes(users, "random", seed=11, num_support=5)
    model = _build(task.num_outputs)
    personalizers = {
        name: Personalizer(model, Adaptation(layers, STEPS, LEARNING_RATE, BATCH, mu))
        for name, (layers, mu) in STRATEGIES.items()
    }
    ours = {name: [] for name in ("baseline_metrics", *STRATEGIES)}
    clients = []
    for number in range(4):
        episode = episodes.episode(number)
        photos = records.read_user("train", episode.user_id)
        positions = batch_positions(len(episode.support), STEPS, BATCH, 11, number)
        stored = StoredPhotos(episode.user_id, photos, task, SIZE)
        support, query = [photos[i] for i in episode.support], [photos[i] for i in episode.query]
        for name, personalizer in personalizers.items():
            baseline, adapted = personalizer.run(stored, episode.support, episode.query, positions)
            ours[name].append(adapted)
        ours["baseline_metrics"].append(baseline)
        clients.append(
            collections.OrderedDict(
                train_data=_dataset(_elements(support, task.num_outputs), positions.ravel()),
                test_data=_dataset(_elements(query, task.num_outputs), np.arange(len(query))),
            )
        )

    def model_fn():
        spec = (tf.TensorSpec([None, *SIZE, 3]), tf.TensorSpec([None, task.num_outputs]))
        loss = tf.keras.losses.BinaryCrossentropy(from_logits=True)
        return tff.learning.models.from_keras_model(_build(task.num_outputs), loss=loss, input_spec=spec)

    guard_worker()
    try:
        evaluation = tff.learning.algorithms.build_personalization_eval_computation(
            model_fn,
            collections.OrderedDict(
                (name, functools.partial(_personalize, *strategy)) for name, strategy in STRATEGIES.items()
            ),
            baseline_evaluate_fn=_evaluate,
        )
        theirs = evaluation(tff.learning.models.ModelWeights.from_model(model), clients)
    finally:
        stop_workers()
        _build(task.num_outputs)  # gives Keras's layers back their bases, which TFF's graphs exchanged
    for name, scores in ours.items():
        for metric in ("loss", "micro_ap"):
            # TFF collects clients in an order of its own.
            found, expected = np.sort(theirs[name][metric]), np.sort([getattr(score, metric) for score in scores])
            np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=f"{name} {metric}")
    losses = np.array([[score.loss for score in scores] for scores in ours.values()])
    assert (np.abs(np.diff(losses, axis=0)) > 1e-4).all()
