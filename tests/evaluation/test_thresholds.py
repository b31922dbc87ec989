"""Thresholds and calibration against scikit-learn, and their resamples against photos that are really repeated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics
from sklearn.calibration import calibration_curve

from benchmark.evaluation import resampled, thresholds
from benchmark.evaluation.bootstrap import UserBootstrap
from benchmark.evaluation.resampled import ScoredPhotos
from benchmark.metrics.calibration import NUM_BINS

NUM_USERS = 30


def _photos(seed, num_labels=4, num_photos=240):
    rng = np.random.default_rng(seed)
    users = rng.integers(NUM_USERS, size=num_photos)
    users[:NUM_USERS] = np.arange(NUM_USERS)
    logits = 2 * rng.normal(size=(num_photos, num_labels)) - np.linspace(0, 4, num_labels)
    labels = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits - 1))).astype(np.uint8)
    scores = (1 / (1 + np.exp(-logits))).astype(np.float32).round(2)  # with ties
    return ScoredPhotos(scores, labels, np.zeros(num_photos, np.float32), users, NUM_USERS)


def _best_f1(labels, scores):
    precision, recall, cuts = sklearn_metrics.precision_recall_curve(labels, scores)
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)
    return f1[:-1][cuts > 0].max(initial=0.0)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=30))
def test_a_threshold_has_the_best_f1_there_is(drawn):
    scores, labels = np.float32([score / 20 for score, _ in drawn]), np.array([label for _, label in drawn], np.uint8)
    labels[0] = 1
    chosen = thresholds.best_threshold(scores, labels)
    assert 0 <= chosen < 1
    found = sklearn_metrics.f1_score(labels, scores > chosen, zero_division=0)
    assert found == pytest.approx(_best_f1(labels, scores), abs=1e-12)


def test_labels_of_few_users_have_the_global_threshold():
    photos = _photos(1)
    few = np.flatnonzero(np.isin(photos.users, np.arange(thresholds.LEAST_USERS - 1)))
    photos.labels[:, 2] = 0
    photos.labels[few, 2] = 1
    enough = np.flatnonzero(np.isin(photos.users, np.arange(thresholds.LEAST_USERS)))
    photos.labels[:, 3] = 0
    photos.labels[enough, 3] = 1
    chosen = thresholds.choose(photos)
    assert chosen.is_own.tolist() == [True, True, False, True]
    assert chosen.of_label[2] == chosen.together
    cuts = np.sort(np.append(np.arange(1, 199) / 199, 0.5))
    pooled = [sklearn_metrics.f1_score(photos.labels.ravel(), photos.scores.ravel() > cut) for cut in cuts]
    reached = sklearn_metrics.f1_score(photos.labels.ravel(), photos.scores.ravel() > chosen.together)
    assert chosen.together in cuts and reached == pytest.approx(max(pooled))
    for label in (0, 1, 3):
        own = photos.scores[:, label] > chosen.of_label[label]
        best = _best_f1(photos.labels[:, label], photos.scores[:, label])
        assert sklearn_metrics.f1_score(photos.labels[:, label], own) == pytest.approx(best)


def _scikit_learn(labels, decided):
    found = {}
    for mean in ("macro", "micro"):
        for name in ("precision", "recall"):
            score = getattr(sklearn_metrics, f"{name}_score")
            found[f"{mean}_{name}"] = score(labels, decided, average=mean, zero_division=0)
        p, r = found[f"{mean}_precision"], found[f"{mean}_recall"]
        found[f"{mean}_f1"] = 2 * p * r / (p + r)
    return found | {"mean_label_f1": sklearn_metrics.f1_score(labels, decided, average="macro", zero_division=0)}


def _repeated(photos, weights):
    """The photos of a resample, each as often as its user was drawn."""
    return np.repeat(np.arange(len(photos.users)), weights[photos.users].astype(int))


def test_decisions_and_those_of_resamples_are_scikit_learns():
    photos, by_label = _photos(2), np.array([0.5, 0.31, 0.2, 0.11])
    bootstrap = UserBootstrap(NUM_USERS, 25, seed=3)
    values, replicates = thresholds.decisions(photos, by_label, bootstrap, is_binary=False)
    decided = photos.scores.astype(np.float64) > by_label
    assert values == pytest.approx(_scikit_learn(photos.labels, decided))
    for number in range(25):
        rows = _repeated(photos, bootstrap.weights[:, number])
        assert photos.labels[rows].any(axis=0).all()
        expected = _scikit_learn(photos.labels[rows], decided[rows])
        assert {name: of[number] for name, of in replicates.items()} == pytest.approx(expected)
    f1 = sklearn_metrics.f1_score(photos.labels, decided, average=None)
    np.testing.assert_allclose(thresholds.label_f1(photos, by_label), f1)
    one = photos._replace(scores=photos.scores[:, :1], labels=photos.labels[:, :1])
    bare, _ = thresholds.decisions(one, by_label[:1], bootstrap, is_binary=True)
    truth = one.labels[:, 0], decided[:, 0]
    assert bare == pytest.approx(
        {
            "precision": sklearn_metrics.precision_score(*truth),
            "recall": sklearn_metrics.recall_score(*truth),
            "f1": sklearn_metrics.f1_score(*truth),
        }
    )


def _calibration_error(labels, scores):
    truth, mean = calibration_curve(labels, scores, n_bins=NUM_BINS, strategy="uniform")
    edges = np.linspace(0, 1, NUM_BINS + 1)
    counts = np.bincount(np.searchsorted(edges[1:-1], scores), minlength=NUM_BINS)
    return float(np.sum(np.abs(truth - mean) * counts[counts > 0]) / len(labels))


def test_calibration_errors_and_those_of_resamples_are_scikit_learns():
    photos = _photos(4)
    bootstrap = UserBootstrap(NUM_USERS, 10, seed=5)
    values, replicates = resampled.metrics(photos, False), resampled.replicate(photos, bootstrap, False).metrics
    everything = np.arange(len(photos.users))
    samples = [(everything, values, lambda of: of)]
    samples += [
        (_repeated(photos, bootstrap.weights[:, number]), replicates, lambda of, number=number: of[number])
        for number in range(10)
    ]
    for rows, found, value in samples:
        labels, scores = photos.labels[rows], photos.scores[rows].astype(np.float64)
        single = [_calibration_error(*one) for one in zip(labels.T, scores.T, strict=True)]
        assert value(found["macro_calibration_error"]) == pytest.approx(np.mean(single), abs=1e-6)
        pooled = _calibration_error(labels.ravel(), scores.ravel())
        assert value(found["micro_calibration_error"]) == pytest.approx(pooled, abs=1e-6)
    assert values["micro_calibration_error"] > 0.02  # the scores were made to be too low
