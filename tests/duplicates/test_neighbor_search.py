"""The bound never exceeds the distance, and the search drops no pair that the bound lets pass."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flair.duplicates.blocks import (
    MAX_SUM,
    NUM_SUMS,
    Blocks,
    block_details,
    block_sums,
    candidates,
    detail_bound,
    lower_bound,
    make_tile,
    margin,
    mirrored,
)
from flair.duplicates.distance import detail_correlation, energy, mirror, squared_distance

SEEDS = st.integers(0, 2**32 - 1)


def photo(rng: np.random.Generator) -> np.ndarray:
    """A photo of one of several kinds: noise, even, blocky, smooth, extreme."""
    kind = rng.integers(5)
    if kind == 0:
        return rng.integers(0, 256, (256, 256, 3), np.uint8)
    if kind == 1:
        return np.broadcast_to(rng.integers(0, 256, 3).astype(np.uint8), (256, 256, 3)).copy()
    if kind == 2:
        blocks = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
        return np.repeat(np.repeat(blocks, 16, axis=0), 16, axis=1)
    if kind == 3:
        ramp = np.linspace(rng.uniform(0, 255), rng.uniform(0, 255), 256)[:, None, None]
        return np.clip(ramp + rng.normal(0, 3, (256, 256, 3)), 0, 255).astype(np.uint8)
    return (255 * rng.integers(0, 2, (256, 256, 3))).astype(np.uint8)


def exact(one: np.ndarray, other: np.ndarray) -> int:
    return int(((one.astype(np.int64) - other.astype(np.int64)) ** 2).sum())


def bound(one: np.ndarray, other: np.ndarray) -> int:
    means = lower_bound(block_sums(one), block_sums(other))
    return int(means) + int(detail_bound(block_details(one), block_details(other)))


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.booleans())
def test_the_bound_never_exceeds_the_distance(seed: int, is_copy: bool) -> None:
    rng = np.random.default_rng(seed)
    one = photo(rng)
    other = photo(rng)
    if is_copy:
        other = np.clip(one.astype(float) + rng.normal(0, rng.uniform(0, 20), one.shape), 0, 255).astype(np.uint8)
    true = exact(one, other)
    assert squared_distance(one, other) == true
    assert bound(one, other) <= true
    for parts in (block_sums, block_details):
        assert (parts(mirror(other)) == mirrored(parts(other))).all()
    assert bound(one, mirror(other)) <= exact(one, other[:, ::-1])


def test_the_bound_is_256_times_the_squared_difference_of_means() -> None:
    rng = np.random.default_rng(0)
    one, other = photo(rng), photo(rng)
    means = [pixels.reshape(16, 16, 16, 16, 3).mean(axis=(1, 3)) for pixels in (one, other)]
    bound = 256 * ((means[0] - means[1]) ** 2).sum()
    assert lower_bound(block_sums(one), block_sums(other)) == pytest.approx(bound, abs=1)
    blocks = [np.repeat(np.repeat(np.rint(mean), 16, axis=0), 16, axis=1).astype(np.uint8) for mean in means]
    assert lower_bound(block_sums(blocks[0]), block_sums(blocks[1])) == squared_distance(blocks[0], blocks[1])


def sums_near_a_limit(rng: np.random.Generator, count: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums of extreme photos, and of others around each, as many just within `limit` as just beyond."""
    one = rng.choice([0, 40, 30_000, MAX_SUM], (count, NUM_SUMS)).astype(np.int64)
    step = rng.normal(0, 1, one.shape)
    step *= np.sqrt(256 * limit * (1 + rng.normal(0, 1e-5, (count, 1)))) / np.linalg.norm(step, axis=1, keepdims=True)
    other = np.where((one + step < 0) | (one + step > MAX_SUM), one - step, one + step)
    return one.astype(np.uint16), np.clip(np.rint(other), 0, MAX_SUM).astype(np.uint16)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from([10_000, 2_000_000, 120_000_000]), st.booleans())
def test_the_search_finds_exactly_the_pairs_within_the_limit(seed: int, limit: int, both: bool) -> None:
    rng = np.random.default_rng(seed)
    one, other = sums_near_a_limit(rng, 20, limit)
    if both:
        other[::2] = mirrored(other[::2])
    difference = one[:, None].astype(np.int64) - other[None].astype(np.int64)
    near = (difference**2).sum(axis=2) <= 256 * limit
    if both:
        turned = one[:, None].astype(np.int64) - mirrored(other)[None].astype(np.int64)
        near |= (turned**2).sum(axis=2) <= 256 * limit
    even = np.zeros_like(one)
    rows, columns = candidates(Blocks(one, even), Blocks(other, even), limit, both)
    assert np.argwhere(near).tolist() == np.stack([rows, columns], axis=1).tolist()


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_products_are_off_by_less_than_the_margin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = sums_near_a_limit(rng, 16, int(rng.integers(0, 10**9)))
    left, right = make_tile(one), make_tile(other)
    distance = ((one[:, None].astype(np.int64) - other[None].astype(np.int64)) ** 2).sum(axis=2)
    error = np.abs((left.left @ right.right.T).astype(np.float64) + distance / 2).max()
    assert error <= margin(left.half_norm + right.half_norm)


@pytest.mark.parametrize(("num_rows", "num_columns"), [(0, 3), (3, 0), (1, 1)])
def test_few_or_no_photos(num_rows: int, num_columns: int) -> None:
    sums = np.zeros((3, NUM_SUMS), np.uint16)
    rows, columns = candidates(
        Blocks(sums[:num_rows], sums[:num_rows]), Blocks(sums[:num_columns], sums[:num_columns]), 0
    )
    assert len(rows) == len(columns) == num_rows * num_columns


def test_details_are_the_lengths_of_what_blocks_have_besides_their_means() -> None:
    pixels = photo(np.random.default_rng(1))
    blocks = pixels.reshape(16, 16, 16, 16, 3).astype(float)
    lengths = np.linalg.norm(
        (blocks - blocks.mean(axis=(1, 3), keepdims=True)).transpose(0, 2, 4, 1, 3).reshape(768, -1), axis=1
    )
    assert (block_details(pixels) == np.floor(32 * lengths + 1e-9)).all()


def test_details_exclude_what_means_let_pass() -> None:
    rng = np.random.default_rng(3)
    grey = np.full((256, 256, 3), 128, np.uint8)
    rough = (128 + 50 * rng.choice([-1, 1], grey.shape)).astype(np.uint8)
    blocks = [Blocks(block_sums(pixels)[None], block_details(pixels)[None]) for pixels in (grey, rough)]
    smooth = [part._replace(details=np.zeros_like(part.details)) for part in blocks]
    limit = exact(grey, rough) // 2
    assert [rows.tolist() for rows in candidates(*smooth, limit)] == [[0], [0]]
    assert [rows.tolist() for rows in candidates(*blocks, limit)] == [[], []]


def test_detail_is_correlated_in_copies_and_not_in_skies() -> None:
    rng = np.random.default_rng(2)
    ramp = np.broadcast_to(np.linspace(100, 180, 256)[:, None, None], (256, 256, 3))

    def sky() -> np.ndarray:
        return np.clip(np.rint(ramp + rng.normal(0, 2, ramp.shape)), 0, 255).astype(np.uint8)

    one, stranger = sky(), sky()
    copy = np.clip(np.rint(one * 1.0 + rng.normal(0, 1, one.shape)), 0, 255).astype(np.uint8)
    others = [copy, stranger, one]
    found = detail_correlation(
        np.array([exact(one, other) for other in others]),
        np.array([[energy(one)] * 3, [energy(other) for other in others]]),
        np.stack([block_sums(one)] * 3),
        np.stack([block_sums(other) for other in others]),
    )

    def detail(pixels: np.ndarray) -> np.ndarray:
        blocks = pixels.reshape(16, 16, 16, 16, 3).astype(float)
        return (blocks - blocks.mean(axis=(1, 3), keepdims=True)).ravel()

    expected = [np.corrcoef(detail(one), detail(other))[0, 1] for other in others]
    assert found == pytest.approx(expected, abs=1e-9)
    assert found[0] > 0.85 and found[2] == pytest.approx(1)


def test_a_photo_without_detail_correlates_with_none() -> None:
    even = np.full((256, 256, 3), 9, np.uint8)
    sums = block_sums(even)[None]
    energies = np.array([[energy(even)]] * 2)
    assert detail_correlation(np.array([0]), energies, sums, sums).tolist() == [0.0]
