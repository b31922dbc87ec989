"""Prototypical networks: gradients against TensorFlow, Adam against Keras, and a training that goes on where it was."""

from __future__ import annotations

import os
import signal
import warnings

import numpy as np
import pytest
import tensorflow as tf

from benchmark.personalization import few_shot
from benchmark.personalization.few_shot import FeatureEpisode, TrainingConfig, episode_loss, train
from benchmark.run.checkpoint import Checkpoints
from flair.errors import FlairError

CHANNELS, WAYS = 12, 4


def _episode(number, useful=CHANNELS):
    """Classes that differ in the first `useful` channels; the others are noise."""
    rng = np.random.default_rng(number)
    centres = rng.normal(size=(WAYS, CHANNELS)) * (np.arange(CHANNELS) < useful)
    classes, truth = np.repeat(np.arange(WAYS), [1, 2, 3, 5]), np.repeat(np.arange(WAYS), 6)
    support, query = (centres[c] + rng.normal(size=(len(c), CHANNELS)) for c in (classes, truth))
    support, query = few_shot.standardized(support, query)
    return FeatureEpisode(support, classes, query, truth, WAYS)


def _loss_by_tensorflow(embedding, episode):
    """As Snell et al. write it: a softmax over minus squared distances from the means of the embedded support."""
    embedded = tf.constant(episode.support) @ embedding
    means = [tf.reduce_mean(tf.boolean_mask(embedded, episode.support_class == way), axis=0) for way in range(WAYS)]
    distances = tf.reduce_sum(((tf.constant(episode.query) @ embedding)[:, None] - tf.stack(means)) ** 2, axis=2)
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=episode.query_class, logits=-distances))


def test_loss_and_gradient_are_tensorflows():
    embedding = tf.Variable(np.random.default_rng(9).normal(size=(CHANNELS, CHANNELS)))
    for number in range(3):
        episode = _episode(number)
        with tf.GradientTape() as tape:
            expected = _loss_by_tensorflow(embedding, episode)
        found = episode_loss(embedding.numpy(), episode)
        assert found.value == pytest.approx(float(expected), rel=1e-12)
        np.testing.assert_allclose(found.gradient, tape.gradient(expected, embedding), rtol=1e-8, atol=1e-12)


def test_steps_are_kerass_adam(tmp_path):
    embedding = tf.Variable(np.eye(CHANNELS))
    optimizer = tf.keras.optimizers.legacy.Adam(0.01, epsilon=1e-8)
    for number in range(20):
        optimizer.minimize(lambda number=number: _loss_by_tensorflow(embedding, _episode(number)), [embedding])
    found = train(_episode, CHANNELS, TrainingConfig(20, 0.01), Checkpoints(tmp_path))
    np.testing.assert_allclose(found, embedding, atol=5e-5)  # Keras adds its epsilon elsewhere


def test_without_training_it_is_the_nearest_centroid(tmp_path):
    np.testing.assert_array_equal(
        train(_episode, CHANNELS, TrainingConfig(0, 0.01), Checkpoints(tmp_path)), np.eye(CHANNELS)
    )


def test_it_learns_which_channels_tell_classes_apart(tmp_path):
    def accuracy(embedding):
        hits = []
        for number in range(1000, 1200):
            one = _episode(number, useful=3)
            centres = few_shot.centroids(one.support, one.support_class, WAYS)
            hits.append(np.mean(few_shot.nearest(one.query @ embedding, centres @ embedding) == one.query_class))
        return np.array(hits)

    learned = train(
        lambda number: _episode(number, useful=3), CHANNELS, TrainingConfig(300, 0.01), Checkpoints(tmp_path)
    )
    gain = accuracy(learned) - accuracy(np.eye(CHANNELS))
    assert gain.mean() - 1.96 * gain.std() / np.sqrt(len(gain)) > 0.02


def test_a_stopped_training_goes_on_to_the_bits_of_an_unbroken_one(tmp_path):
    config = TrainingConfig(30, 0.01)
    expected = train(_episode, CHANNELS, config, Checkpoints(tmp_path / "unbroken"))
    drawn = []

    def draw(number):
        drawn.append(number)
        if number == 11 and drawn.count(11) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return _episode(number)

    broken = Checkpoints(tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        train(draw, CHANNELS, config, broken)
    np.testing.assert_array_equal(train(draw, CHANNELS, config, broken), expected)
    assert drawn == list(range(30))
    np.testing.assert_array_equal(train(draw, CHANNELS, config, broken), expected)
    assert drawn == list(range(30))


def test_a_diverged_training_and_a_foreign_checkpoint_are_one_line(tmp_path):
    with (
        pytest.raises(FlairError, match=r"learning_rate=1e\+200 is too large: after 1 episode the loss is no"),
        warnings.catch_warnings(action="error"),
    ):
        train(_episode, CHANNELS, TrainingConfig(5, 1e200), Checkpoints(tmp_path / "a"))
    train(_episode, CHANNELS, TrainingConfig(1, 0.1), Checkpoints(tmp_path / "b"))
    with pytest.raises(FlairError, match="holds checkpoints of another embedding"):
        train(_episode, CHANNELS + 1, TrainingConfig(2, 0.1), Checkpoints(tmp_path / "b"))
