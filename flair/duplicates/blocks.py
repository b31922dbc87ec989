"""Sums over 16x16-pixel blocks: 768 numbers per photo that tell which pairs cannot be near, and miss no near pair.

Of each block the sum is kept, not the mean: a whole number that fits 16 bits, so that everything here is exact. For the
256 pixels of a block, by Cauchy-Schwarz, sum (x - y)^2 >= (sum (x - y))^2 / 256; added up over all blocks and colours,
l2(x, y) >= |sums(x) - sums(y)|^2 / 256 = 256 |means(x) - means(y)|^2.

The detail of a block, which is the block less its mean, is orthogonal to the mean, and two vectors are at least as far
from each other as their lengths: sum (x - y)^2 >= (sum (x - y))^2 / 256 + (|detail(x)| - |detail(y)|)^2. The length
times 32, rounded down to a whole number of 16 bits, is kept too; lengths differ by more than (difference of the kept -
1) / 32. Either bound excludes pairs and never decides that two photos are alike.

For many pairs at once, |x - y|^2 = |x|^2 + |y|^2 - 2 x.y of the sums is computed as one float32 matrix product, in
which the squared norms are two more columns, and compared with the limit plus all that rounding can have added. What
passes is looked at once more in whole numbers, now also at the detail of the blocks. So the result does not depend on
the tiles, the BLAS library or its threads.

The margin. Sums are centred, |s| <= 32,640: whole numbers that float32 holds. A dot product of K terms in floating
point, in any order, with or without fused multiply-add, is off by at most g_K sum |a_i b_i|, g_K = K u / (1 - K u),
u = 2^-24 (Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., section 3.1). Here it is
x.y - X - Y with X, Y = |x|^2 / 2, |y|^2 / 2 rounded to float32, off by at most u X and u Y, and sum |a_i b_i| is at
most |x| |y| + X + Y <= 2 (X + Y). So the product is off by at most (2 g_K (1 + u) + u) (X + Y) < 2 g_{K+1} (X + Y).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flair.dataset.catalog import IMAGE_SIZE

BLOCK = 16
BLOCKS = IMAGE_SIZE // BLOCK
NUM_SUMS = BLOCKS * BLOCKS * 3
PIXELS_PER_BLOCK = BLOCK * BLOCK
MAX_SUM = 255 * PIXELS_PER_BLOCK
DETAIL_SCALE = 32
_CENTRE = MAX_SUM // 2
_UNIT = 2.0**-24
_TERMS = NUM_SUMS + 2
_EXACT_AT_ONCE = 2048  # pairs looked at once more, 50 MB


def block_sums(pixels: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Sums uint16 [768] over the 16x16-pixel blocks of a photo uint8 [256, 256, 3], by row, column and colour.

    >>> block_sums(np.full((256, 256, 3), 255, np.uint8))[:2]
    array([65280, 65280], dtype=uint16)
    """
    rows = pixels.reshape(BLOCKS, BLOCK, IMAGE_SIZE * 3).sum(axis=1, dtype=np.uint16)
    return rows.reshape(BLOCKS, BLOCKS, BLOCK, 3).sum(axis=2, dtype=np.uint16).reshape(NUM_SUMS)


def block_details(pixels: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Lengths uint16 [768] of what each block of a photo has besides its mean, times 32, rounded down.

    >>> checked = np.indices((256, 256)).sum(axis=0) % 2 * 255
    >>> block_details(np.stack([checked] * 3, axis=2).astype(np.uint8))[:2]
    array([65280, 65280], dtype=uint16)
    """
    # 256 squares add up to less than 2^24: float32 adds them without an error.
    rows = pixels.reshape(BLOCKS, BLOCK, IMAGE_SIZE * 3).astype(np.float32)
    squares = np.einsum("bri,bri->bi", rows, rows).reshape(BLOCKS, BLOCKS, BLOCK, 3).sum(axis=2).reshape(NUM_SUMS)
    # (32 length)^2, a whole number far below 2^52: its float64 root is on the right side of every whole number.
    scaled = 4 * (PIXELS_PER_BLOCK * squares.astype(np.float64) - block_sums(pixels).astype(np.float64) ** 2)
    return np.sqrt(scaled).astype(np.uint16)


def mirrored(sums: NDArray[Any]) -> NDArray[Any]:
    """The sums or details [..., 768] of the photos mirrored left to right."""
    return sums.reshape(*sums.shape[:-1], BLOCKS, BLOCKS, 3)[..., ::-1, :].reshape(sums.shape)


def lower_bound(sums: NDArray[np.uint16], others: NDArray[np.uint16]) -> NDArray[np.int64]:
    """The least l2, a whole number, that photos of these sums [..., 768] can have; int64 [...].

    >>> black, white = np.zeros(768, np.uint16), np.full(768, 65280, np.uint16)
    >>> int(lower_bound(black, white)) == 256 * 256 * 3 * 255**2
    True
    """
    return -(-_squared(sums.astype(np.float64) - others) // PIXELS_PER_BLOCK)


def detail_bound(details: NDArray[np.uint16], others: NDArray[np.uint16]) -> NDArray[np.int64]:
    """What photos of these details [..., 768] add to `lower_bound` at least; int64 [...].

    >>> int(detail_bound(np.full(768, 1), np.full(768, 33)))
    720
    """
    difference = np.abs(details.astype(np.float64) - others) - 1
    return _squared(np.maximum(difference, 0, out=difference)) // DETAIL_SCALE**2


def _squared(difference: NDArray[np.float64]) -> NDArray[np.int64]:
    # Whole numbers whose sum stays below 2^53: float64 adds them without an error.
    return np.asarray(np.einsum("...i,...i->...", difference, difference)).astype(np.int64)


class Blocks(NamedTuple):
    """Block sums and details of some photos, uint16 [n, 768] each."""

    sums: NDArray[np.uint16]
    details: NDArray[np.uint16]


class Tile(NamedTuple):
    """Sums of some photos ready for products: float32 [n, 770]; `half_norm` is the largest |x|^2 / 2 among them."""

    left: NDArray[np.float32]
    right: NDArray[np.float32]
    half_norm: float


def make_tile(sums: NDArray[np.uint16]) -> Tile:
    """Prepares block sums uint16 [n, 768]."""
    centred = sums.astype(np.float32) - np.float32(_CENTRE)
    half = np.einsum("ij,ij->i", centred, centred, dtype=np.float64) / 2
    ones = np.ones((len(sums), 1), np.float32)
    norms = half.astype(np.float32)[:, None]
    left = np.concatenate([centred, -norms, -ones], axis=1)
    right = np.concatenate([centred, ones, norms], axis=1)
    return Tile(left, right, float(half.max(initial=0.0)))


def candidates(
    blocks: Blocks, others: Blocks, limit: int, both_orientations: bool = True
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of all pairs whose bound, the lesser of both orientations, is at most `limit`.

    Args:
      blocks: of m photos; `others` of n photos.
      limit: of l2.
      both_orientations: also let a photo be near to the mirrored one.

    Returns:
      Row and column numbers int64 [k] each, sorted by row, then column.
    """
    right = make_tile(others.sums)
    lefts = [blocks, Blocks(*map(mirrored, blocks))] if both_orientations else [blocks]
    found = [_near(left, others, _pass(make_tile(left.sums), right, limit), limit) for left in lefts]
    flat = found[0] if len(found) == 1 else np.union1d(*found)
    rows, columns = np.divmod(flat, max(len(others.sums), 1))
    return rows, columns


def margin(half_norms: float) -> float:
    """The most by which a product of `make_tile`s can be off, for X + Y of at most `half_norms`."""
    terms = _TERMS + 1
    return 2 * terms * _UNIT / (1 - terms * _UNIT) * half_norms


def _pass(left: Tile, right: Tile, limit: int) -> NDArray[np.int64]:
    product = left.left @ right.right.T
    # x.y - X - Y = -|x - y|^2 / 2, in sums; rounded down to float32, so that the comparison lets nothing near drop out.
    least = -limit * PIXELS_PER_BLOCK / 2 - margin(left.half_norm + right.half_norm)
    threshold = np.nextafter(np.float32(least), np.float32(-np.inf))
    return np.flatnonzero(product >= threshold)


def _near(left: Blocks, right: Blocks, flat: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Those of the pairs, numbered row by row, that both bounds let pass."""
    near = np.zeros(len(flat), bool)
    for start in range(0, len(flat), _EXACT_AT_ONCE):
        part = slice(start, start + _EXACT_AT_ONCE)
        rows, columns = np.divmod(flat[part], len(right.sums))
        bound = lower_bound(left.sums[rows], right.sums[columns])
        near[part] = bound + detail_bound(left.details[rows], right.details[columns]) <= limit
    return flat[near]
