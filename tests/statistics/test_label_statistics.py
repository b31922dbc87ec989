"""Counts of labels, against counting in the plainest way."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flair.dataset.metadata import Record
from flair.statistics.labels import (
    children,
    co_occurrence,
    count_labels,
    describe,
    encode,
    labels_per_photo,
    labels_per_user,
    partition_sizes,
)

NAMES = ["art", "food", "light", "plant"]
labels = st.lists(st.sampled_from(NAMES), min_size=1, unique=True).map(tuple)


@st.composite
def record_lists(draw: st.DrawFn) -> list[Record]:
    """Records of up to six users, each in one partition."""
    owners = draw(st.lists(st.integers(0, 5), min_size=1, max_size=30))
    return [
        Record(f"{owner}@N00", str(row), draw(labels), draw(labels), ("train", "val", "test")[owner % 3])
        for row, owner in enumerate(owners)
    ]


@given(record_lists())
def test_counts_are_those_of_counting_by_hand(records: list[Record]) -> None:
    annotations = encode(records)
    per_user: dict[str, set[str]] = defaultdict(set)
    photos: Counter[str] = Counter()
    owners: dict[str, set[str]] = defaultdict(set)
    pairs: Counter[tuple[str, str]] = Counter()
    for record in records:
        per_user[record.user_id] |= set(record.labels)
        photos.update(record.labels)
        for label in record.labels:
            owners[label].add(record.user_id)
            pairs.update((label, other) for other in record.labels)
    assert labels_per_photo(annotations.coarse, len(records)).tolist() == [len(record.labels) for record in records]
    assert labels_per_photo(annotations.fine, len(records)).sum() == sum(len(r.fine_grained_labels) for r in records)
    found = labels_per_user(annotations, annotations.coarse).tolist()
    assert dict(zip(annotations.user_ids, found, strict=True)) == {user: len(own) for user, own in per_user.items()}
    counted = count_labels(annotations, annotations.coarse)
    assert {label.name: (label.photos, label.users) for label in counted} == {
        name: (photos[name], len(owners[name])) for name in photos
    }
    assert [label.photos for label in counted] == sorted(photos.values(), reverse=True)
    names = annotations.coarse.names
    together = co_occurrence(annotations.coarse, len(records), range(len(names)))
    if len(names) > 1:
        some = co_occurrence(annotations.coarse, len(records), [1, 0])
        np.testing.assert_array_equal(some, together[np.ix_([1, 0], [1, 0])])
    assert {(a, b): together[i, j] for i, a in enumerate(names) for j, b in enumerate(names)} == {
        (a, b): pairs[a, b] for a in names for b in names
    }
    users, sizes = partition_sizes(annotations)
    assert sizes == {name: sum(record.partition == name for record in records) for name in ("train", "val", "test")}
    assert users == {
        name: len({record.user_id for record in records if record.partition == name})
        for name in ("train", "val", "test")
    }


@given(st.lists(st.integers(0, 10_000), min_size=2))
def test_a_description_is_that_of_the_standard_library(values: list[int]) -> None:
    found = describe(values)
    quartiles = statistics.quantiles(values, n=4, method="inclusive")
    assert math.isclose(found.mean, statistics.fmean(values), abs_tol=1e-9)
    assert math.isclose(found.sd, statistics.stdev(values), rel_tol=1e-9, abs_tol=1e-9)
    assert (found.least, found.most) == (min(values), max(values))
    for ours, theirs in zip((found.lower_quartile, found.median, found.upper_quartile), quartiles, strict=True):
        assert math.isclose(ours, theirs, abs_tol=1e-6)


def test_one_value_has_no_spread() -> None:
    assert describe([7]) == (7, 0, 7, 7, 7, 7, 7)


def test_a_fine_label_of_two_parents_lies_below_both() -> None:
    taxonomy = {"waterfall": frozenset({"outdoor", "liquid"}), "beer": frozenset({"liquid"})}
    assert children(taxonomy) == {"liquid": ["beer", "waterfall"], "outdoor": ["waterfall"]}
