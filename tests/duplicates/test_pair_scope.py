"""Which pairs count: by partition and user, tile by tile, against a plain loop over all pairs."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flair.dataset.metadata import Record
from flair.duplicates.audit import exact_pairs
from flair.duplicates.rule import SCOPES
from flair.duplicates.scope import COMPARED, RELATIONS, make_scope
from flair.duplicates.signatures import equal

PHOTOS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=14)


def records(photos: list[tuple[int, int]]) -> list[Record]:
    partition = {user: ("train", "val", "test")[user % 3] for user, _ in photos}
    return [Record(f"u{user}", f"{row}", (), (), partition[user]) for row, (user, _) in enumerate(photos)]


def counts(scope: str, one: Record, other: Record) -> bool:
    return {
        "all": True,
        "cross_partition": one.partition != other.partition,
        "cross_user": one.user_id != other.user_id,
        "within_user": one.user_id == other.user_id,
    }[scope]


@given(PHOTOS, st.sampled_from(SCOPES), st.integers(1, 15))
def test_scopes_count_the_pairs_they_name(photos: list[tuple[int, int]], name: str, chunk: int) -> None:
    scope = make_scope(name, records(photos))
    assert sorted(scope.records) == sorted(records(photos))
    pairs = list(itertools.combinations(range(len(photos)), 2))
    wanted = [pair for pair in pairs if counts(name, *(scope.records[row] for row in pair))]
    first, second = (np.array([pair[side] for pair in pairs], int) for side in (0, 1))
    assert [pair for pair, keep in zip(pairs, scope.has(first, second), strict=True) if keep] == wanted
    assert scope.num_pairs() == len(wanted)
    chunks = [range(start, min(start + chunk, len(photos))) for start in range(0, len(photos), chunk)]
    searched = {
        (one, other)
        for rows, columns in itertools.combinations_with_replacement(chunks, 2)
        if scope.may_have(rows, columns)
        for one in rows
        for other in columns
    }
    assert set(wanted) <= searched
    for row, pair in zip(scope.relation(first, second), pairs, strict=True):
        one, other = (scope.records[index] for index in pair)
        expected = 2 if one.user_id == other.user_id else 1 if one.partition == other.partition else 0
        assert RELATIONS[row] == RELATIONS[expected]
        assert counts(name, one, other) == (RELATIONS[expected] in COMPARED[name])


@given(PHOTOS, st.sampled_from(SCOPES))
def test_exact_pairs_are_those_of_equal_digests(photos: list[tuple[int, int]], name: str) -> None:
    scope = make_scope(name, records(photos))
    content = [photos[int(record.image_id)][1] for record in scope.records]
    # Digests that differ in the last byte only, and there by a zero.
    digests = np.array([[7] * 31 + [value] for value in content], np.uint8)
    found = exact_pairs(digests, scope)
    wanted = [
        (one, other)
        for one, other in itertools.combinations(range(len(content)), 2)
        if content[one] == content[other] and counts(name, scope.records[one], scope.records[other])
    ]
    assert list(zip(found["first"].tolist(), found["second"].tolist(), strict=True)) == wanted
    assert equal(digests, found).all()
