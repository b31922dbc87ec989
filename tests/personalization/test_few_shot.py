"""Nearest centroid and the fine-tuned head against scikit-learn and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.neighbors import NearestCentroid

from benchmark.personalization import few_shot


@pytest.fixture
def photos():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, 24))
    classes = np.repeat(np.arange(6), [1, 3, 9, 4, 2, 20])
    query_classes = np.repeat(np.arange(6), 10)
    support, query = (centres[c] + rng.normal(size=(len(c), 24)) for c in (classes, query_classes))
    return 3 + 40 * support, classes, 3 + 40 * query, query_classes


def test_nearest_centroid_is_scikit_learns_on_the_raw_features(photos):
    support, classes, query, _ = photos
    expected = NearestCentroid().fit(support, classes).predict(query)
    scaled, scaled_query = few_shot.standardized(support, query)
    np.testing.assert_array_equal(few_shot.nearest(scaled_query, few_shot.centroids(scaled, classes, 6)), expected)


def test_the_head_reaches_the_optimum_that_scipy_finds(photos):
    support, classes, query, _ = photos
    support, query = few_shot.standardized(support, query)

    def objective(flat):
        weights, bias = flat[:-6].reshape(24, 6), flat[-6:]
        logits = support @ weights + bias
        top = logits.max(axis=1)
        log_likelihood = (
            logits[np.arange(len(classes)), classes] - top - np.log(np.exp(logits - top[:, None]).sum(axis=1))
        )
        return -log_likelihood.mean() + 0.05 * np.sum(flat**2)

    best = minimize(objective, np.zeros(25 * 6), method="L-BFGS-B", options={"maxfun": 10**6, "ftol": 1e-14})
    weights, bias = few_shot.fine_tune(support, classes, 6, steps=3000, learning_rate=0.5, proximal_strength=0.1)
    assert objective(np.concatenate([weights.ravel(), bias])) == pytest.approx(best.fun, abs=1e-6)
    np.testing.assert_allclose(weights.ravel(), best.x[:-6], atol=1e-3)
    guesses = few_shot.classify(query, weights, bias)
    np.testing.assert_array_equal(guesses, np.argmax(query @ best.x[:-6].reshape(24, 6) + best.x[-6:], axis=1))


def test_both_learn(photos):
    support, classes, query, truth = photos
    support, query = few_shot.standardized(support, query)
    centres = few_shot.centroids(support, classes, 6)
    head = few_shot.fine_tune(support, classes, 6, steps=100, learning_rate=1.0)
    for guesses in (few_shot.nearest(query, centres), few_shot.classify(query, *head)):
        assert np.mean(guesses == truth) > 0.6


def test_without_a_step_the_head_guesses_the_first_class(photos):
    support, classes, query, _ = photos
    head = few_shot.fine_tune(support, classes, 6, steps=0, learning_rate=1.0)
    assert (few_shot.classify(query, *head) == 0).all()


def test_equal_features_are_no_division_by_zero():
    support, query = few_shot.standardized(np.ones((4, 3)), np.ones((2, 3)))
    assert not support.any()
    assert not query.any()
