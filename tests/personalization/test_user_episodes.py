"""Episodes of users: who takes part, which photos face each other, and that only (seed, number) decides."""

from __future__ import annotations

import collections
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from benchmark.personalization.users import (
    CHRONOLOGICAL,
    DUPLICATE_AWARE,
    RANDOM,
    SPLITS,
    UserEpisodes,
    UserPhotos,
)
from flair.errors import FlairError


def _users(sizes):
    numbers = itertools.count(1000)
    return [UserPhotos(f"{index}@N00", [str(next(numbers)) for _ in range(size)]) for index, size in enumerate(sizes)]


def _episodes(users, split=RANDOM, seed=0, component_of=None, **fixed):
    if split == DUPLICATE_AWARE and component_of is None:
        component_of = str
    return UserEpisodes(users, split, seed, component_of=component_of, **fixed)


@st.composite
def cases(draw):
    users = _users(draw(st.lists(st.integers(1, 60), min_size=1, max_size=6).filter(lambda sizes: max(sizes) >= 4)))
    groups = {
        image_id: f"{user.user_id} {draw(st.integers(0, 9))}" if draw(st.booleans()) else image_id
        for user in users
        for image_id in user.image_ids
    }
    # So that somebody is eligible under duplicate_aware too.
    largest = max(users, key=lambda user: len(user.image_ids))
    groups[largest.image_ids[0]] = "alone"
    return users, groups


@settings(max_examples=150, deadline=None)
@given(cases(), st.sampled_from(SPLITS), st.integers(0, 2**40), st.integers(0, 500))
def test_no_photo_is_on_both_sides_and_no_component_straddles(case, split, seed, number):
    users, groups = case
    by_id = {user.user_id: user for user in users}
    episodes = _episodes(users, split, seed, groups.__getitem__ if split == DUPLICATE_AWARE else None)
    episode = episodes.episode(number)
    user = by_id[episode.user_id]
    both = np.concatenate([episode.support, episode.query])
    assert len(set(both.tolist())) == len(both)
    assert both.min() >= 0
    assert both.max() < len(user.image_ids)
    assert 1 <= len(episode.query) <= min(10, len(user.image_ids) // 2)
    assert 1 <= len(episode.support) <= min(100, len(user.image_ids) - len(episode.query))
    if split != DUPLICATE_AWARE:
        assert len(episode.query) == min(10, len(user.image_ids) // 2)
    else:
        sides = [{groups[user.image_ids[row]] for row in rows} for rows in (episode.support, episode.query)]
        assert not sides[0] & sides[1]


@settings(max_examples=30, deadline=None)
@given(cases(), st.sampled_from(SPLITS), st.integers(0, 2**40))
def test_an_episode_is_a_function_of_seed_and_number(case, split, seed):
    users, groups = case
    component_of = groups.__getitem__ if split == DUPLICATE_AWARE else None
    forth, back = (_episodes(users, split, seed, component_of) for _ in range(2))
    numbers = range(3 * len(users))
    first = {number: forth.episode(number) for number in numbers}
    for number in reversed(numbers):
        again = back.episode(number)
        assert again.user_id == first[number].user_id
        np.testing.assert_array_equal(again.support, first[number].support)
        np.testing.assert_array_equal(again.query, first[number].query)


def test_another_seed_gives_other_episodes():
    users = _users([40] * 30)
    one, other = (_episodes(users, seed=seed) for seed in (1, 2))
    assert [one.episode(n).user_id for n in range(30)] != [other.episode(n).user_id for n in range(30)]
    assert set(one.episode(0).query.tolist()) != set(one.episode(30).query.tolist())


def test_users_take_turns_and_the_small_ones_do_not():
    users = _users([1, 2, 3, 4, 5, 60])
    episodes = _episodes(users)
    assert [user.user_id for user in episodes.eligible] == ["3@N00", "4@N00", "5@N00"]
    drawn = [episodes.episode(number).user_id for number in range(30)]
    for start in range(0, 30, 3):
        assert sorted(drawn[start : start + 3]) == ["3@N00", "4@N00", "5@N00"]
    assert len({tuple(drawn[start : start + 3]) for start in range(0, 30, 3)}) > 1


def test_sizes_over_10000_episodes_are_metadatasets():
    sizes = [4, 7, 21, 150]
    episodes = _episodes(_users(sizes), seed=3)
    support = collections.defaultdict(list)
    for number in range(10_000):
        episode = episodes.episode(number)
        photos = sizes[int(episode.user_id.split("@")[0])]
        assert len(episode.query) == min(10, photos // 2)
        support[photos].append(len(episode.support))
    for photos, found in support.items():
        assert len(found) == 2500
        # ceil(beta * m) with beta uniform on (0, 1] is uniform on 1 .. m
        counts = np.bincount(found)[1:]
        assert len(counts) == min(100, photos - min(10, photos // 2))
        assert stats.chisquare(counts).pvalue > 1e-3


def test_every_photo_is_queried_as_often_as_any():
    episodes = _episodes(_users([12]), seed=4)
    queried = np.concatenate([episodes.episode(number).query for number in range(4000)])
    assert stats.chisquare(np.bincount(queried, minlength=12)).pvalue > 1e-3


@pytest.mark.parametrize("split", SPLITS)
def test_fixed_numbers(split):
    episodes = _episodes(_users([4, 7, 8, 9, 30]), split, num_support=5, num_query=3)
    assert [len(user.image_ids) for user in episodes.eligible] == [8, 9, 30]
    for number in range(12):
        episode = episodes.episode(number)
        assert (len(episode.support), len(episode.query)) == (5, 3)


def test_one_fixed_number_leaves_the_other_to_the_rules():
    users = _users([4, 6, 9, 30])
    support = {
        (e.user_id, len(e.support), len(e.query)) for e in map(_episodes(users, num_support=5).episode, range(9))
    }
    assert support == {("1@N00", 5, 1), ("2@N00", 5, 4), ("3@N00", 5, 10)}
    query = [_episodes(users, num_query=5).episode(number) for number in range(60)]
    assert {len(episode.query) for episode in query} == {5}
    assert {episode.user_id for episode in query} == {"1@N00", "2@N00", "3@N00"}


def test_chronological_queries_are_the_newest_photos():
    users = [UserPhotos("9@N00", ["700", "99", "5000", "1200", "100", "8"])]
    episode = _episodes(users, CHRONOLOGICAL, num_support=2).episode(0)
    assert [users[0].image_ids[row] for row in episode.query] == ["100", "700", "1200", "5000"]
    assert [users[0].image_ids[row] for row in episode.support] == ["8", "99"]
    later = _episodes(users, CHRONOLOGICAL, num_support=2, num_query=1).episode(0)
    assert [users[0].image_ids[row] for row in later.query] == ["5000"]
    assert [users[0].image_ids[row] for row in later.support] == ["700", "1200"]


@pytest.mark.parametrize("bad", [None, "cat_12", "-3", "１２"])
def test_chronological_needs_numbers(bad):
    with pytest.raises(FlairError, match=r"user 0@N00.*--split=random"):
        _episodes([UserPhotos("0@N00", ["1", "2", bad, "4"])], CHRONOLOGICAL).episode(0)


def test_a_user_of_one_component_is_not_eligible():
    users = _users([6, 6])
    episodes = _episodes(users, DUPLICATE_AWARE, component_of=lambda i: "burst" if i in users[0].image_ids else i)
    assert [user.user_id for user in episodes.eligible] == ["1@N00"]
    with pytest.raises(FlairError, match="not all near duplicates"):
        _episodes(users, DUPLICATE_AWARE, component_of=lambda _: "all the same")


def test_two_bursts_larger_than_the_query_leave_part_of_one_out():
    user = UserPhotos("7@N00", [str(n) for n in range(40)])
    episodes = _episodes([user], DUPLICATE_AWARE, component_of=lambda image_id: int(image_id) < 15)
    for number in range(20):
        episode = episodes.episode(number)
        assert len(episode.query) == 10
        assert (episode.query < 15).all()
        assert (episode.support >= 15).all()


def test_duplicate_aware_without_ids_is_refused():
    with pytest.raises(FlairError, match="no photo ids"):
        _episodes([UserPhotos("0@N00", [None] * 5)], DUPLICATE_AWARE)


def test_nobody_eligible_is_one_line():
    with pytest.raises(FlairError, match=r"none of 2 users.*at least 9 photos"):
        _episodes(_users([3, 8]), num_support=6, num_query=3)
