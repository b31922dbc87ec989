"""The metrics against Keras's AUC objects, scikit-learn and arithmetic done by hand."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from benchmark.metrics import histogram
from benchmark.metrics import keras as flair_metrics


def _case(seed, photos=400, labels=5):
    rng = np.random.default_rng(seed)
    truth = (rng.random((photos, labels)) < rng.uniform(0.05, 0.7, labels)).astype(np.float32)
    logits = (rng.normal(size=(photos, labels)) * 2 + 2 * truth - 1).astype(np.float32)
    return logits, truth


def _ours(logits, truth, is_binary=False):
    metric = flair_metrics.ScoreHistogram(truth.shape[1], is_binary)
    for start in range(0, len(truth), 64):
        metric.update_state(truth[start : start + 64], logits[start : start + 64])
    return metric


class _AveragedPrecision(tf.keras.metrics.AUC):
    """The published definition on Keras's own confusion matrices: sum over thresholds of (R_i - R_{i+1}) P_i."""

    def result(self):
        found = tf.math.divide_no_nan(self.true_positives, self.true_positives + self.false_positives)
        recall = tf.math.divide_no_nan(self.true_positives, self.true_positives + self.false_negatives)
        return tf.reduce_mean(tf.reduce_sum((recall[:-1] - recall[1:]) * found[:-1], axis=0))


def _keras(logits, truth):
    """Every published metric from Keras's own metric objects."""
    labels = truth.shape[1]
    scores = tf.sigmoid(logits)
    result = {"loss": tf.keras.metrics.BinaryCrossentropy(from_logits=True)}
    result["macro_averaged_precision"] = _AveragedPrecision(multi_label=True, num_labels=labels, from_logits=True)
    result["micro_averaged_precision"] = _AveragedPrecision(from_logits=True)
    for metric in result.values():
        metric.update_state(truth, logits)
    values = {name: float(metric.result()) for name, metric in result.items()}
    by_label = {"precision": [], "recall": []}
    for column in range(labels):
        for name, kind in (("precision", tf.keras.metrics.Precision), ("recall", tf.keras.metrics.Recall)):
            metric = kind(thresholds=0.5)
            metric.update_state(truth[:, column], scores[:, column])
            by_label[name].append(float(metric.result()))
    for name, kind in (("precision", tf.keras.metrics.Precision), ("recall", tf.keras.metrics.Recall)):
        metric = kind(thresholds=0.5)
        metric.update_state(truth, scores)
        values[f"micro_{name}"] = float(metric.result())
        values[f"macro_{name}"] = float(np.mean(by_label[name]))
    for mean in ("macro", "micro"):
        p, r = values[f"{mean}_precision"], values[f"{mean}_recall"]
        values[f"{mean}_f1"] = 2 * p * r / (p + r)
    return values


@pytest.mark.parametrize("seed", [0, 1])
def test_all_metrics_equal_keras(seed):
    logits, truth = _case(seed)
    ours, keras = _ours(logits, truth).summary(), _keras(logits, truth)
    assert list(ours) == histogram.metric_names(is_binary=False)
    assert set(ours) == set(keras)
    for name, value in keras.items():
        assert ours[name] == pytest.approx(value, abs=2e-6), name


def test_decisions_and_exact_average_precision_equal_scikit_learn():
    logits, truth = _case(2)
    scores = tf.sigmoid(logits).numpy()
    ours = _ours(logits, truth).summary()
    for mean in ("macro", "micro"):
        precision, recall, _, _ = sklearn_metrics.precision_recall_fscore_support(truth, scores > 0.5, average=mean)
        assert ours[f"{mean}_precision"] == pytest.approx(precision)
        assert ours[f"{mean}_recall"] == pytest.approx(recall)
        exact = sklearn_metrics.average_precision_score(truth, scores, average=mean)
        found = histogram.exact_metrics(scores, truth)[f"{mean}_exact_average_precision"]
        assert found == pytest.approx(exact, abs=1e-12)
        # 200 thresholds approximate the exact curve.
        assert ours[f"{mean}_averaged_precision"] == pytest.approx(exact, abs=0.02)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 6))
def test_exact_average_precision_with_ties(seed, photos, levels):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, (photos, 1)) / levels
    truth = rng.integers(0, 2, (photos, 1))
    if truth.any():
        expected = sklearn_metrics.average_precision_score(truth, scores)
        assert histogram.exact_average_precision(scores, truth)[0] == pytest.approx(expected, abs=1e-12)


def test_numpy_and_tensorflow_agree_at_every_threshold():
    edges = np.arange(200, dtype=np.float32) / np.float32(199)
    around = [np.nextafter(edges, np.float32(d), dtype=np.float32) for d in (-1, 2)]
    scores = np.clip(np.concatenate([edges, *around, np.float32([0, 0.5, 1])]), 0, 1)[:, None]
    truth = (np.arange(len(scores)) % 3 == 0).astype(np.float32)[:, None]
    ours = histogram.histogram(scores, truth)
    np.testing.assert_array_equal(ours, flair_metrics.histogram(tf.constant(scores), tf.constant(truth)))
    keras = tf.keras.metrics.AUC()
    keras.update_state(truth, scores)
    above = ours[0, 1][::-1].cumsum()[::-1]
    np.testing.assert_array_equal(np.delete(above, 100), keras.true_positives.numpy()[:-1])


def test_binary_task_has_bare_names():
    logits, truth = _case(3, labels=1)
    ours = _ours(logits, truth, is_binary=True).summary()
    assert list(ours) == ["loss", "precision", "recall", "f1", "averaged_precision"]
    keras = _keras(logits, truth)
    assert ours["averaged_precision"] == pytest.approx(keras["micro_averaged_precision"], abs=1e-6)


def test_keras_result_and_numpy_summary_agree_and_reset_forgets():
    logits, truth = _case(4)
    metric = _ours(logits, truth)
    for name, value in metric.result().items():
        assert float(value) == pytest.approx(metric.summary()[name], abs=1e-6)
    metric.reset_state()
    assert set(metric.summary().values()) == {0.0}


def test_histograms_of_parts_add_up_to_the_whole():
    logits, truth = _case(5)
    whole, part = _ours(logits, truth), _ours(logits[:150], truth[:150])
    part.add(_ours(logits[150:], truth[150:]))
    left_out = _ours(np.full_like(logits, np.nan), truth)
    part.add(left_out, 0)
    assert part.summary() == pytest.approx(whole.summary(), abs=1e-7)


def test_no_positives_and_no_photos_give_zero_not_nan():
    none = histogram.finalize(np.zeros((3, 2, 200)), 0.0, 0)
    assert set(none.values()) == {0.0}
    logits, truth = _case(6)
    truth[:, 2] = 0
    assert histogram.averaged_precision_by_label(_ours(logits, truth).counts)[2] == 0
    scores = tf.sigmoid(logits).numpy()
    assert histogram.exact_average_precision(scores, truth)[2] == 0


def test_inside_a_compiled_keras_model():
    logits, truth = _case(7, photos=64)
    inputs = tf.keras.Input((5,))
    model = tf.keras.Model(inputs, tf.keras.layers.Activation("linear")(inputs))
    model.compile(loss=tf.keras.losses.BinaryCrossentropy(from_logits=True), metrics=[flair_metrics.ScoreHistogram(5)])
    found = model.evaluate(logits, truth, batch_size=10, verbose=0, return_dict=True)
    wanted = _ours(logits, truth).summary()
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)
