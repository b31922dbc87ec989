"""Means, intervals and groups of users against SciPy and against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from benchmark.personalization.log import LabelResult, UserResult
from benchmark.personalization.summary import (
    by_divergence,
    by_size,
    interval,
    score_users,
    summarize_labels,
    summarize_users,
)

NAN = float("nan")


def _result(episode, user_id, baseline, adapted, before=0.5, after=0.6, photos=8, divergence=0.1):
    return UserResult(episode, user_id, photos, 2, 4, divergence, baseline, adapted, before, after)


def test_episodes_of_a_user_are_averaged_before_users_are():
    results = [
        _result(0, "a", 1.0, 0.5),
        _result(1, "b", 3.0, 3.0),
        _result(2, "a", 2.0, 1.0),
        _result(3, "a", 3.0, 1.5),
    ]
    scores = score_users(results)
    assert [(s.user_id, s.episodes, s.baseline_loss, s.loss_difference) for s in scores] == [
        ("a", 3, 2.0, 1.0),
        ("b", 1, 3.0, 0.0),
    ]
    loss = summarize_users(scores)["loss"]
    assert loss["users"] == 2
    assert loss["baseline"]["mean"] == 2.5
    assert loss["difference"]["mean"] == 0.5
    assert loss["share_improved"] == 0.5


def test_intervals_cover_the_truth_in_95_of_100_studies():
    rng = np.random.default_rng(0)
    hits = sum(
        found["low"] <= 1.0 <= found["high"]
        for found in (interval(rng.normal(1.0, 2.0, 200).tolist()) for _ in range(2000))
    )
    assert 0.935 < hits / 2000 < 0.965


def test_the_interval_is_scipys_for_a_normal_mean():
    values = np.random.default_rng(1).gamma(2.0, size=600)
    low, high = stats.norm.interval(0.95, values.mean(), stats.sem(values))
    found = interval(values.tolist())
    assert (found["low"], found["high"]) == pytest.approx((low, high), rel=1e-4)


def test_one_user_has_no_interval():
    assert interval([3.0]) == {"mean": 3.0, "low": None, "high": None}


def test_a_user_without_any_label_in_the_query_counts_for_the_loss_alone():
    results = [
        _result(0, "a", 1.0, 0.5, NAN, NAN),
        _result(1, "b", 1.0, 1.5, 0.4, 0.2),
        _result(2, "b", 1.0, 1.5, NAN, NAN),
    ]
    summary = summarize_users(score_users(results))
    assert summary["loss"]["users"] == 2
    assert summary["micro_ap"]["users"] == 1
    assert summary["micro_ap"]["difference"]["mean"] == pytest.approx(-0.2)
    assert summary["micro_ap"]["share_improved"] == 0.0
    nobody = summarize_users(score_users(results[:1]))
    assert nobody["micro_ap"] == {
        "users": 0,
        **{kind: {"mean": None, "low": None, "high": None} for kind in ("baseline", "adapted", "difference")},
        "share_improved": None,
    }


def test_percentiles_are_over_users():
    results = [_result(i, f"u{i:03d}", float(i), 0.0) for i in range(101)]
    baseline = summarize_users(score_users(results))["loss"]["baseline"]
    assert [baseline[name] for name in ("p10", "p50", "p90")] == [10.0, 50.0, 90.0]


def test_groups_by_size_and_divergence():
    sizes = [4, 7, 8, 15, 16, 64, 4000]
    results = [_result(i, f"u{i}", 1.0, i / 10, photos=n, divergence=1 - i / 10) for i, n in enumerate(sizes)]
    scores = score_users(results)
    assert [(g["photos"], g["users"]) for g in by_size(scores)] == [
        ("4 to 7", 2),
        ("8 to 15", 2),
        ("16 to 31", 1),
        ("64 or more", 2),
    ]
    groups = by_divergence(scores)
    assert [g["users"] for g in groups] == [2, 2, 2, 1]
    assert [round(g["least"], 1) for g in groups] == [0.4, 0.6, 0.8, 1.0]
    assert groups[0]["loss_difference"]["mean"] == pytest.approx(1 - 0.55)


def test_labels_are_compared_episode_by_episode():
    results = [
        LabelResult(i, "a", ways, 20, 50, 0.5, 0.5 + gain) for i, (ways, gain) in enumerate([(5, 0.1), (10, -0.3)])
    ]
    summary = summarize_labels(results)
    assert summary["chance"] == pytest.approx(0.15)
    assert summary["difference"]["mean"] == pytest.approx(-0.1)
    assert summary["share_improved"] == 0.5
    assert [(g["ways"], g["episodes"]) for g in summary["by_ways"]] == [("5 to 9", 1), ("10 to 19", 1)]
    assert not [name for name in summary if "networks" in name]


def test_prototypical_networks_are_compared_with_both_where_they_were_trained():
    results = [LabelResult(i, "a", 5, 20, 50, 0.5, 0.6, 0.6 + gain) for i, gain in enumerate([0.1, 0.2, 0.3])]
    summary = summarize_labels(results)
    assert summary["prototypical_networks"] == pytest.approx(interval([0.7, 0.8, 0.9]))
    assert summary["networks_tuning_difference"] == pytest.approx(interval([0.1, 0.2, 0.3]))
    assert summary["networks_centroid_difference"] == pytest.approx(interval([0.2, 0.3, 0.4]))
    assert summary["by_ways"][0]["prototypical_networks"]["mean"] == pytest.approx(0.8)
