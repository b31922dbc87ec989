"""Rounding and bins, against definitions in exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from flair.testsets.strata import NUM_BINS, bin_of, largest_remainder


def test_ties_go_to_the_higher_bin() -> None:
    assert largest_remainder([1, 1, 1], 10) == [3, 3, 4]
    assert largest_remainder([1, 1, 1], 11) == [3, 4, 4]
    assert largest_remainder([0, 0, 0, 0, 0], 10) == [0, 0, 0, 0, 0]


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=8), st.integers(0, 10**5))
def test_largest_remainder(counts: list[int], total: int) -> None:
    shares = largest_remainder(counts, total)
    if not sum(counts):
        assert shares == [0] * len(counts)
        return
    assert sum(shares) == total
    quotas = [Fraction(count * total, sum(counts)) for count in counts]
    rounded_up = [share - quota.__floor__() for share, quota in zip(shares, quotas, strict=True)]
    assert set(rounded_up) <= {0, 1}
    # Whoever was rounded up has a larger remainder than whoever was not, or the same and a higher index.
    ranks = [(quota - quota.__floor__(), index) for index, quota in enumerate(quotas)]
    up = [rank for rank, extra in zip(ranks, rounded_up, strict=True) if extra]
    down = [rank for rank, extra in zip(ranks, rounded_up, strict=True) if not extra]
    assert not up or not down or min(up) > max(down)


@given(st.integers(0, 1000))
def test_bins_split_at_fifths(thousandth: int) -> None:
    assert bin_of(thousandth / 1000) == min(thousandth // 200, NUM_BINS - 1)
