"""The metrics of `benchmark.flair_metrics` against scikit-learn, and against the histogram that the commands use."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from sklearn import metrics as sklearn_metrics

from benchmark import flair_metrics
from benchmark.metrics.keras import ScoreHistogram


@pytest.fixture(scope="module")
def case() -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels int32 [300, 5]; each score lies between two thresholds, alone with those equal to it."""
    rng = np.random.default_rng(0)
    truth = (rng.random((300, 5)) < rng.uniform(0.1, 0.6, 5)).astype(np.int32)
    buckets = np.clip(rng.normal(80 + 40 * truth, 40), 0, 198).astype(int)
    scores = (buckets + 0.25) / 199  # 0.5 lies in a bucket, too, above a quarter of it
    return np.log(scores / (1 - scores)).astype(np.float32), truth


def _results(metrics, logits, truth):
    for metric in metrics:
        for start in range(0, len(truth), 128):
            metric.update_state(truth[start : start + 128], logits[start : start + 128])
    return {metric.name: metric.result().numpy() for metric in metrics}


def test_all_of_them_equal_scikit_learn(case):
    logits, truth = case
    scores = tf.sigmoid(logits).numpy()
    found = _results(flair_metrics.metrics_builder(5), logits, truth)
    expected = {"loss": sklearn_metrics.log_loss(truth.ravel(), scores.ravel())}
    for mean in ("macro", "micro"):
        p, r, _, _ = sklearn_metrics.precision_recall_fscore_support(truth, scores > 0.5, average=mean)
        exact = sklearn_metrics.average_precision_score(truth, scores, average=mean)
        values = {"precision": p, "recall": r, "f1": 2 * p * r / (p + r), "averaged_precision": exact}
        expected |= {f"{mean}_{name}": value for name, value in values.items()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=2e-6), name
    # As ml-flair's: one number for each threshold where decisions are pooled.
    assert {name for name, value in found.items() if value.shape == (1,)} == {
        "micro_precision",
        "micro_recall",
        "micro_f1",
    }


def test_they_equal_the_metrics_of_the_commands():
    rng = np.random.default_rng(1)
    truth = (rng.random((200, 17)) < 0.2).astype(np.int32)
    logits = rng.normal(0, 2, (200, 17)).astype(np.float32)
    histogram = ScoreHistogram(17)
    histogram.update_state(truth, logits)
    found = flair_metrics.flatten_metrics(_results(flair_metrics.metrics_builder(17), logits, truth))
    assert list(found) == list(histogram.summary())
    assert found == pytest.approx(histogram.summary(), abs=2e-6)


def test_a_binary_label_may_come_without_an_axis_of_its_own(case):
    logits, truth = case
    model = tf.keras.Sequential([tf.keras.Input((1,)), tf.keras.layers.Activation("linear")])
    model.compile(loss=tf.keras.losses.BinaryCrossentropy(from_logits=True), metrics=flair_metrics.metrics_builder(1))
    found = flair_metrics.flatten_metrics(model.evaluate(logits[:, :1], truth[:, 0], verbose=0, return_dict=True))
    assert list(found) == ["loss", "precision", "recall", "f1", "averaged_precision"]
    assert found["f1"] == pytest.approx(sklearn_metrics.f1_score(truth[:, 0], logits[:, 0] > 0))


def test_thresholds_and_weights_of_labels_and_photos_count(case):
    logits, truth = case
    scores, weights = tf.sigmoid(logits).numpy(), np.random.default_rng(2).uniform(0.5, 2, (300, 1))
    options = {"num_labels": 5, "multi_label": True, "from_logits": True, "label_weights": [1, 0, 2, 0, 3]}
    metric = flair_metrics.Recall(thresholds=[0.3], **options)
    metric.update_state(truth, logits, sample_weight=weights)
    by_label = [
        sklearn_metrics.recall_score(truth[:, column], scores[:, column] > 0.3, sample_weight=weights[:, 0])
        for column in (0, 2, 4)
    ]
    assert metric.result().numpy() == pytest.approx(np.average(by_label, weights=[1, 2, 3]), abs=1e-6)
    pooled = flair_metrics.Precision(5, multi_label=False, thresholds=[0.2, 0.7])
    pooled.update_state(truth, scores)
    expected = [sklearn_metrics.precision_score(truth.ravel(), scores.ravel() > level) for level in (0.2, 0.7)]
    np.testing.assert_allclose(pooled.result(), expected, atol=1e-6)


def test_a_metric_can_be_made_again_from_its_configuration(case):
    logits, truth = case
    options = {"num_labels": 5, "multi_label": True, "from_logits": True, "label_weights": [1, 0, 2, 0, 3]}
    for metric in (
        flair_metrics.F1(thresholds=[0.4], **options),
        flair_metrics.AveragedPrecision(num_thresholds=50, **options),
    ):
        again = type(metric).from_config(metric.get_config())
        assert _results([metric], logits, truth) == _results([again], logits, truth)
        assert again.thresholds == metric.thresholds


def test_a_class_of_somebodys_can_build_on_the_counts(case):
    class Worst(flair_metrics.ConfusionMatrixMetrics):
        def result(self):
            return tf.reduce_min(self.get_recall()[1:-1])

    logits, truth = case
    found = _results([Worst(5, True, thresholds=[0.5], name="worst", from_logits=True)], logits, truth)["worst"]
    assert found == pytest.approx(min(sklearn_metrics.recall_score(truth, logits > 0, average=None)))
    with pytest.raises(NotImplementedError, match="has no result"):
        flair_metrics.ConfusionMatrixMetrics(5, True).result()


def test_nested_metrics_are_flattened():
    nested = {"a": {"b": np.float32(1), 2: [np.array([3.0])]}, "c": np.array([4, 5]), "d": tf.constant(6.0)}
    expected = {"a b": 1.0, "a 2": 3.0, "c 0": 4.0, "c 1": 5.0, "d": 6.0}
    assert flair_metrics.flatten_metrics(nested) == expected
    assert flair_metrics.flatten_metrics(nested["c"], "norm") == {"norm 0": 4.0, "norm 1": 5.0}
