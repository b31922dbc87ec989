"""Few-shot tasks over fine-grained labels: classes, label sets, and the composition of 10,000 episodes."""

from __future__ import annotations

import collections
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from benchmark.personalization.labels import (
    LABEL_SETS,
    ONE_ALPHABET,
    Alphabet,
    LabelClass,
    LabelEpisodes,
    label_sets,
    one_alphabet,
)
from benchmark.personalization.labels import make_alphabets as make
from flair.errors import FlairError


def _alphabet(name, sizes, start=0):
    ends = start + np.cumsum([0, *sizes])
    classes = [LabelClass(f"{name}{i}", np.arange(ends[i], ends[i + 1])) for i in range(len(sizes))]
    return Alphabet(name, classes)


SIZES = [12, 60, 25, 8, 300, 31, 14, 90, 45, 20, 9, 700]


def test_compositions_over_10000_episodes_are_metadatasets():
    episodes = LabelEpisodes([_alphabet("a", SIZES)], seed=1)
    size_of = {f"a{i}": size for i, size in enumerate(SIZES)}
    other = random.Random(2)
    ways, supports, first_shots, expected_supports, expected_shots = [], [], [], [], []
    for number in range(10_000):
        episode = episodes.episode(number)
        sizes = [size_of[name] for name in episode.classes]
        ways.append(len(sizes))
        query = min([10, *(size // 2 for size in sizes)])
        assert (np.bincount(episode.query_class, minlength=len(sizes)) == query).all()
        shots = np.bincount(episode.support_class, minlength=len(sizes))
        assert (shots >= 1).all()
        supports.append(len(episode.support))
        first_shots.append(shots[0])
        remaining = [size - query for size in sizes]
        beta = other.random()
        total = min(500, sum(math.floor(beta * min(100, one) + 1) for one in remaining))
        weights = [size * math.exp(other.uniform(math.log(0.5), math.log(2))) for size in sizes]
        drawn = [
            min(math.floor(weight / sum(weights) * (total - len(sizes))) + 1, one)
            for weight, one in zip(weights, remaining, strict=True)
        ]
        expected_supports.append(sum(drawn))
        expected_shots.append(drawn[0])
    assert stats.chisquare(np.bincount(ways)[5:]).pvalue > 1e-3
    assert set(ways) == set(range(5, 13))
    assert stats.ks_2samp(supports, expected_supports).pvalue > 1e-3
    assert stats.ks_2samp(first_shots, expected_shots).pvalue > 1e-3


def test_alphabets_and_classes_are_uniform():
    alphabets = [_alphabet("a", [9] * 5), _alphabet("b", [40] * 10, 1000), _alphabet("small", [40] * 4, 5000)]
    episodes = LabelEpisodes(alphabets, seed=5)
    drawn = [episodes.episode(number) for number in range(4000)]
    assert [alphabet.name for alphabet in episodes.alphabets] == ["a", "b"]
    assert stats.chisquare(list(collections.Counter(episode.alphabet for episode in drawn).values())).pvalue > 1e-3
    classes = collections.Counter(name for episode in drawn if episode.alphabet == "b" for name in episode.classes)
    assert len(classes) == 10
    # Draws without replacement vary less than a multinomial's.
    assert stats.chisquare(list(classes.values())).pvalue > 1e-3


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(2, 40), min_size=5, max_size=70),
    st.integers(0, 2**40),
    st.integers(0, 999),
)
def test_no_photo_repeats_within_an_episode_and_each_is_of_its_class(sizes, seed, number):
    alphabet = _alphabet("a", sizes)
    episode = LabelEpisodes([alphabet], seed).episode(number)
    rows = np.concatenate([episode.support, episode.query])
    assert len(set(rows.tolist())) == len(rows)
    assert len(episode.support) <= 500
    assert 5 <= len(episode.classes) == len(set(episode.classes)) <= 50
    photos = {one.name: set(one.photos.tolist()) for one in alphabet.classes}
    for chosen, places in ((episode.support, episode.support_class), (episode.query, episode.query_class)):
        for row, place in zip(chosen.tolist(), places.tolist(), strict=True):
            assert row in photos[episode.classes[place]]
    again = LabelEpisodes([alphabet], seed).episode(number)
    np.testing.assert_array_equal(again.support, episode.support)
    np.testing.assert_array_equal(again.query, episode.query)


def test_fixed_ways_shots_and_queries():
    episodes = LabelEpisodes([_alphabet("a", [19, 20, 21, 30, 30, 30, 4])], seed=0, ways=5, shots=5, num_query=15)
    for number in range(20):
        episode = episodes.episode(number)
        assert "a0" not in episode.classes  # 19 photos are too few for 5 and 15
        assert np.bincount(episode.support_class).tolist() == [5] * 5
        assert np.bincount(episode.query_class).tolist() == [15] * 5


def test_two_ways_are_possible_when_asked_for():
    episode = LabelEpisodes([_alphabet("a", [9, 9, 9])], seed=0, ways=2, shots=1).episode(0)
    assert len(episode.classes) == 2
    assert len(episode.support) == 2
    assert np.bincount(episode.query_class).tolist() == [8, 8]


def test_too_few_classes_are_one_line():
    with pytest.raises(FlairError, match=r"no coarse label has 5 .*the richest has 4.*--label_set"):
        LabelEpisodes([_alphabet("a", [9] * 4), _alphabet("b", [1] * 9)], seed=0)


def test_more_ways_than_a_drawn_support_set_holds_are_one_line():
    alphabet = _alphabet("a", [4] * 510)
    with pytest.raises(FlairError, match="--ways=501: a support set of at most 500 photos is drawn"):
        LabelEpisodes([alphabet], seed=0, ways=501)
    assert len(LabelEpisodes([alphabet], seed=0, ways=501, shots=1).episode(0).support) == 501
    assert len(LabelEpisodes([alphabet], seed=0, ways=500).episode(0).support) == 500


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.text(min_size=1, max_size=6), max_size=60)))
def test_label_sets_are_disjoint_and_complete(alphabets):
    found = label_sets(alphabets)
    assert set(found) == {name for names in alphabets.values() for name in names}
    assert set(found.values()) <= set(LABEL_SETS)


def test_label_sets_have_their_shares_and_do_not_follow_the_alphabet():
    names = [f"label_{index:03d}" for index in range(200)]
    found = label_sets({"a": names})
    assert collections.Counter(found.values()) == {"train": 140, "val": 30, "test": 30}
    assert sorted(names, key=found.__getitem__) != names
    assert label_sets({"a": names[::-1]}) == found


def _in_set(alphabets, label_set):
    return [name for name, where in label_sets(alphabets).items() if where == label_set]


def test_a_photo_belongs_to_a_class_only_where_it_carries_no_other_of_the_alphabet_and_set():
    animals = [f"animal_{i}" for i in range(20)]
    taxonomy = {**{name: ["animal"] for name in animals}, "animal": ["animal"], "fern": ["plant"], "plant": ["plant"]}
    first, second, *_ = _in_set({"animal": animals}, "test")
    other = _in_set({"animal": animals}, "train")[0]
    photos = [
        [first],
        [first, other, "animal"],  # labels of another set, and coarse names, do not matter
        [first, second],  # ambiguous
        [second, "fern"],  # nor do other alphabets
        [other],
    ]
    alphabet = next(one for one in make(photos, taxonomy, "test") if one.name == "animal")
    found = {one.name: one.photos.tolist() for one in alphabet.classes}
    assert found == {first: [0, 1], second: [3]}


def test_a_label_of_two_parents_is_in_both_alphabets():
    taxonomy = {"sea": ["liquid", "outdoor"], **{f"l{i}": ["liquid"] for i in range(9)}}
    names = {"liquid": [*(f"l{i}" for i in range(9)), "sea"], "outdoor": ["sea"]}
    alphabets = make([["sea"]], taxonomy, label_sets(names)["sea"])
    assert {one.name: [c.name for c in one.classes] for one in alphabets} == {"liquid": ["sea"], "outdoor": ["sea"]}


def test_without_a_taxonomy_all_labels_are_one_alphabet():
    photos = [[f"l{i}"] for i in range(100)]
    found = [make(photos, one_alphabet([f"l{i}" for i in range(100)], ()), name) for name in LABEL_SETS]
    assert [[one.name for one in alphabets] for alphabets in found] == [[ONE_ALPHABET]] * 3
    rows = [row for alphabets in found for one in alphabets[0].classes for row in one.photos.tolist()]
    assert sorted(rows) == list(range(100))


def test_without_a_taxonomy_coarse_names_are_no_classes():
    names = [*(f"l{i}" for i in range(100)), "animal"]
    photos = [["animal"], *([name, "animal"] for name in names[:-1])]
    found = [make(photos, one_alphabet(names, ["animal"]), name)[0] for name in LABEL_SETS]
    assert sum(len(alphabet.classes) for alphabet in found) == 100
    assert sorted(row for alphabet in found for one in alphabet.classes for row in one.photos) == list(range(1, 101))


def test_without_a_taxonomy_label_sets_do_not_depend_on_the_photos_at_hand():
    names = [f"l{i}" for i in range(100)]
    of_train = make([[name] for name in names[:60]], one_alphabet(names, ()), "train")[0]
    of_test = make([[name] for name in names[30:]], one_alphabet(names, ()), "test")[0]
    assert not {one.name for one in of_train.classes} & {one.name for one in of_test.classes}
