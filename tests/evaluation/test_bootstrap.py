"""Intervals over users: against theory, explicit resampling, scikit-learn and binomial tails."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import average_precision_score

from benchmark.evaluation import resampled
from benchmark.evaluation.bootstrap import (
    FEW_USERS,
    FEW_USERS_WARNING,
    RARE_LABEL_USERS,
    RARE_LABEL_WARNING,
    UserBootstrap,
    clopper_pearson,
    interval,
)
from benchmark.evaluation.resampled import ScoredPhotos
from benchmark.metrics import calibration, histogram


def _photos(seed, num_users=12, num_labels=3, ties=True):
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(num_users), rng.geometric(0.3, num_users))
    labels = (rng.random((len(users), num_labels)) < [0.5, 0.2, 0.05][:num_labels]).astype(np.uint8)
    scores = 1 / (
        1 + np.exp(-rng.normal(size=labels.shape) - 1.5 * labels + rng.normal(size=num_users)[users][:, None])
    )
    scores = np.float32(np.round(scores, 2) if ties else scores)
    return ScoredPhotos(scores, labels, rng.random(len(users), np.float32), users, num_users)


def _drawn(photos, weights):
    """The photos of one resample, every user's as often as it was drawn."""
    rows = np.repeat(np.arange(len(photos.users)), weights[photos.users].astype(int))
    return ScoredPhotos(photos.scores[rows], photos.labels[rows], photos.losses[rows], photos.users[rows], 0)


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says():
    """Users differ by a normal effect of deviation 1, photos of a user by 2, so photos are not independent."""
    rng = np.random.default_rng(1)
    truth, draws, covered, covered_by_photos = 0.3, 500, 0, 0
    for draw in range(draws):
        users = np.repeat(np.arange(50), rng.geometric(0.25, 50))
        values = truth + rng.normal(size=50)[users] + rng.normal(scale=2, size=len(users))
        low, high = interval(UserBootstrap(50, 1000, draw).mean(values, users), 50, values.mean())
        covered += low <= truth <= high
        half = 1.96 * values.std() / np.sqrt(len(values))
        covered_by_photos += abs(values.mean() - truth) <= half
    assert 0.93 <= covered / draws <= 0.97
    assert covered_by_photos / draws < 0.9  # what an interval over photos would have said


def test_the_width_of_the_interval_is_that_of_theory():
    """Four photos a user: the mean has variance (1 + 4 / 4) / users."""
    rng = np.random.default_rng(2)
    users = np.repeat(np.arange(4000), 4)
    values = rng.normal(size=4000)[users] + rng.normal(scale=2, size=len(users))
    low, high = interval(UserBootstrap(4000, 1000, 0).mean(values, users), 4000)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(2 / 4000), rel=0.1)


def test_copying_every_photo_ten_times_does_not_narrow_the_interval():
    once = _photos(3)
    rows = np.repeat(np.arange(len(once.users)), 10)
    tenfold = ScoredPhotos(once.scores[rows], once.labels[rows], once.losses[rows], once.users[rows], once.num_users)
    bootstrap = UserBootstrap(once.num_users, 300, 0)
    first, second = (resampled.replicate(photos, bootstrap, False) for photos in (once, tenfold))
    assert resampled.metrics(once, False) == pytest.approx(resampled.metrics(tenfold, False), abs=1e-9)
    for name, values in first.metrics.items():
        assert interval(second.metrics[name], 12) == pytest.approx(interval(values, 12), abs=1e-6), name


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_resamples_have_the_metrics_of_photos_really_drawn(seed, ties):
    photos = _photos(seed, ties=ties)
    bootstrap = UserBootstrap(photos.num_users, 20, seed)
    found = resampled.replicate(photos, bootstrap, False)
    sample = histogram.curves(histogram.histogram(photos.scores, photos.labels).astype(float))
    sample_exact = _scikit_learn(photos)
    for resample in range(20):
        drawn = _drawn(photos, bootstrap.weights[:, resample])
        counts = histogram.histogram(drawn.scores, drawn.labels)
        has_photos = drawn.labels.any(axis=0)
        wanted = histogram.finalize(counts, float(drawn.losses.sum(dtype=np.float64)), len(drawn.losses))
        # A label that this resample lost is as in the sample.
        for name, values in histogram.curves(counts.astype(float)).items():
            wanted[f"macro_{name}"] = np.where(has_photos, values, sample[name]).mean()
        both = wanted["macro_precision"] + wanted["macro_recall"]
        wanted["macro_f1"] = 2 * wanted["macro_precision"] * wanted["macro_recall"] / both if both else 0
        for name, value in wanted.items():
            assert found.metrics[name][resample] == pytest.approx(value, abs=1e-6), name
        by_label = histogram.averaged_precision_by_label(counts)
        assert found.averaged_precision[resample, has_photos] == pytest.approx(by_label[has_photos], abs=1e-6)
        assert np.isnan(found.averaged_precision[resample, ~has_photos]).all()
        macro = np.where(has_photos, _scikit_learn(drawn), sample_exact).mean()
        assert found.metrics["macro_exact_average_precision"][resample] == pytest.approx(macro, abs=1e-5)
        if has_photos.any():
            micro = average_precision_score(drawn.labels.ravel(), drawn.scores.ravel())
            assert found.metrics["micro_exact_average_precision"][resample] == pytest.approx(micro, abs=1e-5)


def _scikit_learn(photos):
    pairs = zip(photos.labels.T, photos.scores.T, strict=True)
    return np.array([average_precision_score(labels, scores) if labels.any() else 0.0 for labels, scores in pairs])


def test_a_label_that_resamples_lose_does_not_pull_the_macro_metrics_down():
    labels = np.zeros((20, 2), np.uint8)
    labels[::2, 0], labels[7, 1] = 1, 1  # one user of twenty has the second label
    photos = ScoredPhotos(np.float32(labels * 0.9), labels, np.zeros(20, np.float32), np.arange(20), 20)
    found = resampled.replicate(photos, UserBootstrap(20, 500, 0), False)
    assert resampled.metrics(photos, False)["macro_averaged_precision"] == 1.0
    assert found.metrics["macro_averaged_precision"].min() == 1.0


def test_a_binary_label_has_accuracy_and_bare_names():
    photos = _photos(5, num_labels=1)
    found = resampled.metrics(photos, True)
    right = ((photos.scores > 0.5) == (photos.labels > 0)).mean()
    assert found["accuracy"] == pytest.approx(right)
    replicates = resampled.replicate(photos, UserBootstrap(12, 200, 0), True).metrics
    assert set(replicates) == set(found)
    assert "averaged_precision" in found and "macro_averaged_precision" not in found
    assert replicates["accuracy"].mean() == pytest.approx(right, abs=0.1)


def test_many_labels_take_memory_of_a_block_and_leave_exact_precision_out(monkeypatch):
    photos = _photos(6)
    monkeypatch.setattr(resampled, "EXACT_DECISIONS", photos.scores.size - 1)
    assert not any("exact" in name for name in resampled.metrics(photos, False))
    found = resampled.replicate(photos, UserBootstrap(12, 200, 0), False)
    assert set(found.metrics) == set(resampled.metrics(photos, False))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 500), st.data())
def test_clopper_pearson_cuts_off_the_binomial_tails(trials, data):
    successes = data.draw(st.integers(0, trials))
    low, high = clopper_pearson(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    if successes > 0:
        assert stats.binom.sf(successes - 1, trials, low) == pytest.approx(0.025, rel=1e-6)
    if successes < trials:
        assert stats.binom.cdf(successes, trials, high) == pytest.approx(0.025, rel=1e-6)


def test_few_users_and_lost_resamples():
    assert interval(np.arange(100.0), 1) is None
    assert interval(np.full(100, np.nan), 30) is None
    assert interval(np.array([np.nan, 1.0, 1.0]), 30) == (1.0, 1.0)
    wide, narrow = (interval(np.random.default_rng(0).normal(size=1000), users) for users in (5, 5000))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_resamples_that_favour_a_statistic_do_not_move_its_interval_away():
    """The resamples of a maximum or of a square lie on one side of it."""
    values = np.random.default_rng(0).normal(size=40)
    means = UserBootstrap(40, 2000, 0).mean(values - values.mean(), np.arange(40))
    plain, corrected = interval(means**2, 40), interval(means**2, 40, 0.0)
    assert plain[0] > 0
    assert corrected[0] <= plain[0] and corrected[1] < plain[1]
    symmetric = interval(means, 40), interval(means, 40, 0.0)
    assert symmetric[1] == pytest.approx(symmetric[0], abs=0.03)


def test_equal_arguments_give_equal_resamples():
    one, other = UserBootstrap(7, 150, 3), UserBootstrap(7, 150, 3)
    assert np.array_equal(one.weights, other.weights)
    assert (one.weights.sum(axis=0) == 7).all()
    assert not np.array_equal(one.weights, UserBootstrap(7, 150, 4).weights)


SHARES = np.geomspace(0.4, 0.01, 17)
RARE_SHARES = np.geomspace(0.4, 0.001, 17)
MANY_SHARES = np.geomspace(0.1, 0.001, 100)


def _population(random, num_users, shares=SHARES):
    """Users of some photos each, their labels more alike than others', and scores of a fair model."""
    user = np.repeat(np.arange(num_users), np.minimum(1 + random.geometric(0.2, num_users), 60))
    taste = random.normal(0, 1.5, (num_users, len(shares)))[user]
    chance = 1 / (1 + np.exp(-(taste + np.log(shares / (1 - shares)) - 0.6)))
    labels = (random.random(taste.shape) < chance).astype(float)
    return user, labels, 1.2 * labels + 0.5 * taste + random.normal(0, 1, labels.shape)


def _average_precisions(labels, scores, weights):
    """[labels, resamples], not a number where a resample lacks the label."""
    each = []
    for column, score in zip(labels.T, scores.T, strict=True):
        order = np.argsort(-score, kind="stable")
        right, weight = column[order, None], weights[order]
        hits = np.cumsum(right * weight, 0)
        precision = hits / np.maximum(np.cumsum(weight, 0), 1)
        each.append((precision * right * weight).sum(0) / np.where(hits[-1] > 0, hits[-1], np.nan))
    return np.stack(each)


@pytest.mark.long
def test_coverage_at_few_users_is_what_the_warning_says(capsys):
    """The share of 200 simulated evaluations whose 95% interval holds the truth of 30,000 users."""
    random = np.random.default_rng(0)
    _, labels, scores = _population(random, 30_000)
    truth = _average_precisions(labels, scores, np.ones((len(labels), 1))).mean()
    for num_users, stated in ((60, 0.91), (200, 0.91)):
        inside = 0
        for trial in range(200):
            user, labels, scores = _population(random, num_users)
            sample = _average_precisions(labels, scores, np.ones((len(labels), 1)))
            weights = UserBootstrap(num_users, 300, trial).weights[user].astype(float)
            replicates = _average_precisions(labels, scores, weights)
            replicates = np.where(np.isnan(replicates), sample, replicates)[~np.isnan(sample[:, 0])]
            low, high = interval(replicates.mean(0), num_users, float(np.nanmean(sample)))
            inside += low <= truth <= high
        with capsys.disabled():
            print(f"{num_users} users: coverage {inside / 200:.3f}")
        assert inside / 200 == pytest.approx(stated, abs=0.03)
        assert num_users < FEW_USERS and f"{stated:.0%} at 60 and at 200" in FEW_USERS_WARNING


@pytest.mark.long
def test_coverage_of_rare_labels_is_what_the_warning_says(capsys):
    """The same at 60 users where half of the labels are rare; one that no photo has counts 0, as in the toolkit."""
    random, num_users, trials = np.random.default_rng(0), 60, 200
    _, labels, scores = _population(random, 60_000, RARE_SHARES)
    truth = _average_precisions(labels, scores, np.ones((len(labels), 1)))[:, 0]
    of_labels, of_mean = [], []
    for trial in range(trials):
        user, labels, scores = _population(random, num_users, RARE_SHARES)
        sample = _average_precisions(labels, scores, np.ones((len(labels), 1)))
        weights = UserBootstrap(num_users, 300, trial).weights[user].astype(float)
        replicates = _average_precisions(labels, scores, weights)
        for column, (single, exact) in enumerate(zip(replicates, truth, strict=True)):
            if 1 < len(np.unique(user[labels[:, column] > 0])) < RARE_LABEL_USERS:
                low, high = interval(single, num_users, float(sample[column, 0]))
                of_labels.append(low <= exact <= high)
        means = np.nan_to_num(np.where(np.isnan(replicates), sample, replicates)).mean(0)
        low, high = interval(means, num_users, float(np.nan_to_num(sample).mean()))
        of_mean.append(low <= truth.mean() <= high)
    coverage, coverage_of_mean = np.mean(of_labels), np.mean(of_mean)
    with capsys.disabled():
        print(f"labels of fewer than {RARE_LABEL_USERS} users: coverage {coverage:.3f}, macro {coverage_of_mean:.3f}")
    assert coverage == pytest.approx(0.88, abs=0.03)
    assert coverage_of_mean == pytest.approx(0.80, abs=0.06)
    assert "covered 88%" in RARE_LABEL_WARNING and "over many, 74 to 80%" in RARE_LABEL_WARNING


@pytest.mark.long
def test_coverage_over_many_rare_labels_is_what_the_page_says(capsys):
    """100 labels, most of them rare, at 200 users, where the bias of resamples is several of their deviations."""
    random, num_users, trials = np.random.default_rng(0), 200, 100

    def scores_in_0_1(users):
        user, labels, scores = _population(random, users, MANY_SHARES)
        return user, labels, 1 / (1 + np.exp(-(scores + np.log(MANY_SHARES / (1 - MANY_SHARES)) - 0.6)))

    def both(labels, scores, weights):
        return _average_precisions(labels, scores, weights), _calibration_errors(labels, scores, weights)

    _, labels, scores = scores_in_0_1(20_000)
    truth = [found[:, 0].mean() for found in both(labels, scores, np.ones((len(labels), 1)))]
    inside = np.zeros((trials, 2))
    for trial in range(trials):
        user, labels, scores = scores_in_0_1(num_users)
        of_sample = both(labels, scores, np.ones((len(labels), 1)))
        weights = UserBootstrap(num_users, 300, trial).weights[user].astype(float)
        for which, (sample, replicates) in enumerate(zip(of_sample, both(labels, scores, weights), strict=True)):
            means = np.nan_to_num(np.where(np.isnan(replicates), sample, replicates)).mean(0)
            low, high = interval(means, num_users, float(np.nan_to_num(sample).mean()))
            inside[trial, which] = low <= truth[which] <= high
    precision, calibration_error = inside.mean(axis=0)
    with capsys.disabled():
        print(f"100 labels: coverage of macro precision {precision:.2f}, of calibration error {calibration_error:.2f}")
    assert precision == pytest.approx(0.74, abs=0.09) and "74 to" in RARE_LABEL_WARNING
    assert calibration_error == pytest.approx(0.85, abs=0.09)


def _calibration_errors(labels, scores, weights):
    """[labels, resamples]."""
    each = []
    for column, score in zip(labels.T, scores.T, strict=True):
        bins = np.eye(calibration.NUM_BINS)[calibration.bin_of(score)]
        each.append(calibration.error_of((bins * (score - column)[:, None]).T @ weights, weights.sum(axis=0)))
    return np.stack(each)


def test_a_bias_of_many_deviations_leaves_the_interval_its_width():
    """It was as good as empty, and on the wrong side of the value: over many rare labels resamples lie far above it."""
    resamples = np.random.default_rng(0).normal(0.13, 0.001, 1000)
    low, high = interval(resamples, 1000, 0.12)
    assert 0.107 < low < 0.109 < 0.111 < high < 0.113
    assert interval(resamples - 0.13, 1000, -0.01, limits=(0, 1)) == (0, 0)
