"""Losses of training against the formulas of the papers, written out with NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from benchmark.metrics.loss import CROSS_ENTROPY, LossConfig, gradients_of, keras_loss, losses_of

CONFIGS = {
    "bce": CROSS_ENTROPY,
    "focal": LossConfig(2.0, 2.0),
    "asl": LossConfig(4.0, 0.0, 0.05),
    "all parts": LossConfig(0.5, 1.5, 0.3, offsets=(-3.0, 0.5, 2.0)),
    "adjusted": LossConfig(offsets=(-3.0, 0.5, 2.0)),
}


def _paper(config, labels, logits):
    """Ridnik et al. 2021, eq. 4 to 6, with probabilities as they stand there."""
    p = 1 / (1 + np.exp(-(np.float64(logits) + np.array(config.offsets or 0.0))))
    shifted = np.maximum(p - config.margin, 0)
    positive = (1 - p) ** config.gamma_positive * np.log(p)
    negative = shifted**config.gamma * np.log(1 - shifted)
    return -(labels * positive + (1 - labels) * negative)


@pytest.fixture(scope="module")
def decisions():
    rng = np.random.default_rng(0)
    return (rng.random((40, 3)) < 0.3).astype(np.float32), (3 * rng.normal(size=(40, 3))).astype(np.float32)


@pytest.mark.parametrize("name", CONFIGS)
def test_losses_are_those_of_the_papers(name, decisions):
    labels, logits = decisions
    expected = _paper(CONFIGS[name], labels, logits).mean(axis=1)
    np.testing.assert_allclose(losses_of(CONFIGS[name], labels, logits), expected, rtol=2e-5)
    assert float(keras_loss(CONFIGS[name])(labels, logits)) == pytest.approx(expected.mean(), rel=2e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_differences_of_losses(name, decisions):
    labels, logits = decisions
    step = 1e-5
    ends = [_paper(CONFIGS[name], labels, np.float64(logits) + side * step) for side in (1, -1)]
    found = gradients_of(CONFIGS[name], tf.constant(labels), tf.constant(logits))
    np.testing.assert_allclose(found, (ends[0] - ends[1]) / (2 * step), atol=2e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_extreme_logits_have_finite_losses_and_gradients(name):
    logits = tf.repeat([[-1e30], [-200.0], [-20.0], [0.0], [20.0], [200.0], [1e30]], 3, axis=1)
    for label in (0.0, 1.0):
        labels = tf.fill(logits.shape, label)
        assert np.isfinite(losses_of(CONFIGS[name], labels, logits)).all()
        assert np.isfinite(gradients_of(CONFIGS[name], labels, logits)).all()
    # Wrong beyond doubt costs in proportion to the logit, so that there is a way back; margins bound what negatives do.
    wrong = losses_of(CONFIGS[name], tf.ones((2, 3)), tf.constant([[-100.0] * 3, [-200.0] * 3]))
    assert float(wrong[1]) > 1.9 * float(wrong[0])


def test_easy_negatives_below_the_margin_cost_nothing():
    config = CONFIGS["asl"]
    logits = tf.constant([[-3.0, -4.0, -80.0]])  # probabilities 0.047 and less
    assert not losses_of(config, tf.zeros((1, 3)), logits).numpy().any()
    assert not gradients_of(config, tf.zeros((1, 3)), logits).numpy().any()


def test_cross_entropy_is_keras_own_bit_for_bit(decisions):
    labels, logits = decisions
    keras = tf.keras.losses.BinaryCrossentropy(from_logits=True)
    assert keras_loss(CROSS_ENTROPY)(labels, logits).numpy() == keras(labels, logits).numpy()
    assert type(keras_loss(CROSS_ENTROPY)) is type(keras)


def test_the_adjusted_loss_is_minimal_at_even_odds():
    """Where a label is as frequent as its prior says whatever the photo, the network's own logit is zero."""
    prior = 0.02
    config = LossConfig(offsets=(float(np.log(prior / (1 - prior))),))
    labels = (np.arange(1000)[:, None] < 1000 * prior).astype(np.float32)
    logit = tf.Variable(0.0)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(losses_of(config, labels, tf.fill((1000, 1), logit)))
    assert float(tape.gradient(loss, logit)) == pytest.approx(0, abs=1e-7)
