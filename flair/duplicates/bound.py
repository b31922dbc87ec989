"""Pairs of photos whose block sums do not exclude that they are near: every near pair is among them.

|x - y|^2 = |x|^2 + |y|^2 - 2 x.y is computed for tiles of pairs at once as one float32 matrix product, in which the
squared norms are two more columns, and compared with the limit plus all that rounding can have added. What passes is
looked at once more in whole numbers, now also at the detail of the blocks. So the result does not depend on the tiles,
the BLAS library or its threads.

The margin. Sums are centred, |s| <= 32,640: whole numbers that float32 holds. A dot product of K terms in floating
point, in any order, with or without fused multiply-add, is off by at most g_K sum |a_i b_i|, g_K = K u / (1 - K u),
u = 2^-24 (Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., section 3.1). Here it is
x.y - X - Y with X, Y = |x|^2 / 2, |y|^2 / 2 rounded to float32, off by at most u X and u Y, and sum |a_i b_i| is at
most |x| |y| + X + Y <= 2 (X + Y). So the product is off by at most (2 g_K (1 + u) + u) (X + Y) < 2 g_{K+1} (X + Y).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flair.duplicates import blocks as block_means
from flair.duplicates.blocks import MAX_SUM, NUM_SUMS, PIXELS_PER_BLOCK

_CENTRE = MAX_SUM // 2
_UNIT = 2.0**-24
_TERMS = NUM_SUMS + 2
_EXACT_AT_ONCE = 2048  # pairs looked at once more, 50 MB


class Blocks(NamedTuple):
    """Block sums and details of some photos, uint16 [n, 768] each; see `flair.duplicates.blocks`."""

    sums: NDArray[np.uint16]
    details: NDArray[np.uint16]

    def take(self, photos: NDArray[np.int64]) -> Blocks:
        """Those of some of the photos."""
        return Blocks(self.sums[photos], self.details[photos])

    def mirrored(self) -> Blocks:
        """Those of the photos mirrored left to right."""
        return Blocks(block_means.mirrored(self.sums), block_means.mirrored(self.details))


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
    lefts = [blocks, blocks.mirrored()] if both_orientations else [blocks]
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
        one, other = left.take(rows), right.take(columns)
        bound = block_means.lower_bound(one.sums, other.sums) + block_means.detail_bound(one.details, other.details)
        near[part] = bound <= limit
    return flat[near]
