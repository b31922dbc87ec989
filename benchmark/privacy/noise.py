"""The normal numbers that a private round adds to its aggregate, of standard deviation 1.

TFF's aggregators multiply them by the standard deviation of a query (noise multiplier * clip norm) and add them.

Guarantee: they are the Box-Muller transform of uniform numbers of `KeyStream`, rounded to float32, and the same for a
given (key, round), whatever ran before.
Edge cases: a radius has 53 random bits and an angle 24, so that no number is beyond 8.6 deviations, where a normal
number is with probability 1e-17. Float32 has gaps, which no proof about real numbers covers (Mironov 2012,
https://doi.org/10.1145/2382196.2382264). On another kind of processor the same key may give other last bits, because
logarithm and cosine do.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmark.privacy.noise_key import KeyStream, NoiseKey
from benchmark.privacy.request import Mechanism

_PAIRS = 1 << 15  # of one block: its arrays stay in a core's cache
_BYTES_PER_PAIR = 12


class FreshNoise:
    """Noise that is independent in every round."""

    def __init__(self, key: NoiseKey) -> None:
        self._key = key

    def normals(self, round_number: int, count: int) -> np.ndarray:
        """float32 [count], independent; asking again gives the same."""
        return standard_normals(self._key.stream("noise", round_number), count)


class BandedNoise:
    """Banded noise: each round takes a part of the noise of the rounds before it back (`benchmark.privacy.banded`).

    The last b - 1 rounds' noise stays in memory: 4 bytes a number and band. It is never saved, because a checkpoint
    with it would give the noise away: a run that continues at round t draws the t rounds before it once more.

    Args:
      column: c_0, ..., c_(b-1) of the matrix, of norm 1.
    """

    def __init__(self, key: NoiseKey, column: Sequence[float]) -> None:
        self._fresh = FreshNoise(key)
        self._taken_back = np.array(column[1:], np.float32)
        self._scale = np.float32(1 / column[0])
        self._next = 0  # the round that is drawn next
        self._past = np.zeros((len(column) - 1, 0), np.float32)  # of round t in row t modulo b - 1
        self._last = np.zeros(0, np.float32)

    def normals(self, round_number: int, count: int) -> np.ndarray:
        """float32 [count]: the noise w of round `round_number`, counted from 0, with C w = z."""
        if self._next > round_number + 1 or len(self._last) != count:
            # An earlier round, or other weights than before: from the first round on.
            self._next, self._past = 0, np.zeros((len(self._taken_back), count), np.float32)
        for number in range(self._next, round_number + 1):
            self._last = self._fresh.normals(number, count)
            _in_parts(count, functools.partial(self._take_back, number))
        self._next = round_number + 1
        return self._last.copy()

    def _take_back(self, number: int, part: slice) -> None:
        noise, depth = self._last[part], len(self._past)
        for lag in range(1, min(depth, number) + 1):
            noise -= self._taken_back[lag - 1] * self._past[(number - lag) % depth, part]
        noise *= self._scale
        if depth:
            self._past[number % depth, part] = noise


class TreeNoise:
    """Tree aggregation's noise (DP-FTRL): what each round adds, so that a sum over rounds has the noise of a few nodes.

    The rounds are the leaves of a binary tree, every complete node has one independent normal vector of deviation 1,
    and the sum of the first t rounds carries the nodes that make up [0, t). A node is estimated from all nodes below
    it, too, which nearly halves its variance: where r is its own vector, and a and b are the values of its children,
    its value is r + (a + b) / 2, and it counts 1 / (2 - 2^-level) (Honaker 2015, "Efficient Use of Differentially
    Private Binary Trees"). It is tested against the same recursion in tensorflow_privacy's EfficientTreeAggregator.

    No vector is ever saved, because a checkpoint with them would give the noise away: a run that continues at round t
    draws the vectors of the 2 t nodes before it once more.
    """

    def __init__(self, key: NoiseKey) -> None:
        self._key = key
        self._next = 0  # the leaf that is entered next
        self._values: dict[int, np.ndarray] = {}  # level -> value of the complete node that counts in the current sum
        self._sums = [np.zeros(0, np.float32)] * 2  # the noise on the sums before and after the last leaf

    def normals(self, round_number: int, count: int) -> np.ndarray:
        """float32 [count]: what round `round_number`, counted from 0, adds to the noise on the sum of all rounds."""
        if self._next > round_number + 1 or len(self._sums[1]) != count:
            self._next, self._values, self._sums = 0, {}, [np.zeros(count, np.float32)] * 2
        while self._next <= round_number:
            # Of the sums only the last two matter, before and after this round.
            self._enter(self._next, count, wanted=self._next >= round_number - 1)
        return self._sums[1] - self._sums[0]

    def _enter(self, leaf: int, count: int, wanted: bool) -> None:
        value, level = self._node(0, leaf, count), 0
        while level in self._values:  # the leaf completes a right child: its parent takes the place of both
            value = (self._values.pop(level) + value) * np.float32(0.5)
            level += 1
            value += self._node(level, leaf, count)
        self._values[level] = value
        self._next = leaf + 1
        if wanted:
            weighted = (np.float32(1 / (2 - 0.5**node)) * estimate for node, estimate in self._values.items())
            self._sums = [self._sums[1], sum(weighted, np.zeros(count, np.float32))]

    def _node(self, level: int, last_leaf: int, count: int) -> np.ndarray:
        return standard_normals(self._key.stream("tree noise", level, last_leaf), count)


def normals_of(mechanism: Mechanism, key: NoiseKey, column: Sequence[float]) -> Callable[[int, int], np.ndarray]:
    """(round, count) -> the normal numbers of that round; `column` is that of banded noise."""
    if mechanism is Mechanism.BANDED:
        return BandedNoise(key, column).normals
    return TreeNoise(key).normals if mechanism is Mechanism.TREE else FreshNoise(key).normals


def client_normals(key: NoiseKey, round_number: int, client_id: str, count: int) -> np.ndarray:
    """float32 [count]: what a client adds to its own update, independent between rounds and clients.

    Those of a round and a client follow from the key and these two alone, so that a continued run, and any worker,
    draws what an unbroken one does. The key is of this purpose alone, `NoiseKey.derive("local noise")`: the run's own
    key does not follow from it, so that workers on other machines may have it.
    """
    return standard_normals(key.stream(round_number, client_id), count)


def standard_normals(stream: KeyStream, count: int) -> np.ndarray:
    """float32 [count]: independent normal numbers of mean 0 and deviation 1."""
    normals = np.empty(count, np.float32)
    starts = list(enumerate(range(0, count, 2 * _PAIRS)))
    threads = min(len(starts), os.cpu_count() or 1)
    if threads <= 1:
        _fill(stream, normals, iter(starts))
    else:
        with ThreadPoolExecutor(threads) as pool:
            parts = (iter(starts[first::threads]) for first in range(threads))
            list(pool.map(lambda blocks: _fill(stream, normals, blocks), parts))
    return normals


def _in_parts(count: int, work: Callable[[slice], None]) -> None:
    """Calls `work` for parts of `count` numbers that fit a core's cache, on all cores."""
    parts = [slice(start, start + 2 * _PAIRS) for start in range(0, count, 2 * _PAIRS)]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(work, parts))


def _fill(stream: KeyStream, normals: np.ndarray, blocks: Iterator[tuple[int, int]]) -> None:
    zeros = bytes(_BYTES_PER_PAIR * _PAIRS)
    buffer = bytearray(len(zeros) + 15)
    pairs = np.empty(2 * _PAIRS, np.float32)
    for block, start in blocks:
        stream.fill(block, buffer, zeros)
        radius_bits = np.frombuffer(buffer, "<u8", _PAIRS)
        angle_bits = np.frombuffer(buffer, "<u4", _PAIRS, 8 * _PAIRS)
        uniform = ((radius_bits >> np.uint64(11)) + np.uint64(1)) * 2.0**-53  # in (0, 1]
        radius = np.sqrt(-2 * np.log(uniform)).astype(np.float32)
        angle = (angle_bits >> np.uint32(8)).astype(np.float32) * np.float32(2 * np.pi / 2**24)
        np.multiply(radius, np.cos(angle), out=pairs[:_PAIRS])
        np.multiply(radius, np.sin(angle), out=pairs[_PAIRS:])
        wanted = min(2 * _PAIRS, len(normals) - start)
        normals[start : start + wanted] = pairs[:wanted]
