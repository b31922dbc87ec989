"""The order in which each of many clients goes through its photos, for all of them at once.

`clients.training_order` computes the same for one client by TensorFlow's operations, half a millisecond each; here the
same numbers come from NumPy: TensorFlow's stateless generator is Philox 4x32-10 (Salmon et al. 2011,
https://doi.org/10.1145/2063384.2063405) under a key and a counter that Philox itself makes of the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmark.data.clients import BatchPlan

_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], np.uint64)
_KEY_STEPS = np.array([0x9E3779B9, 0xBB67AE85], np.uint64)
_SEED_KEY = np.array([[0x3EC8F720], [0x02461E29]], np.uint64)  # tensorflow/core/kernels/stateless_random_ops.cc
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


class Orders(NamedTuple):
    """Photos of several clients, one client after the other.

    Attributes:
      photos: int64 [photos shown], places among the client's own photos.
      draws: int64 [photos shown], from which the augmentation of each follows.
      counts: int64 [clients], photos shown by each.
    """

    photos: np.ndarray
    draws: np.ndarray
    counts: np.ndarray


def training_orders(sizes: Sequence[int], seeds: np.ndarray, plan: BatchPlan) -> Orders:
    """What `clients.training_order` gives for clients of these sizes with these seeds, int64 [clients, 2]."""
    photos = np.asarray(sizes, np.int64)
    numbers = _uniforms(seeds, photos * plan.epochs)
    passes = np.repeat(photos, plan.epochs)  # of every pass of every client, how many photos
    of_pass = np.repeat(np.arange(len(passes)), passes)
    order = np.lexsort((numbers, of_pass))  # within each pass by number; of equal ones the first comes first
    is_shown = _places(passes) < plan.max_elements
    shown = (order - (np.cumsum(passes) - passes)[of_pass])[is_shown]
    counts = np.minimum(photos, plan.max_elements) * plan.epochs
    return Orders(shown, np.repeat(seeds[:, 0], counts) + _places(counts) + 1, counts)


def _places(counts: np.ndarray) -> np.ndarray:
    """0, 1, ..., counts[k] - 1 of every k, one after the other."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _uniforms(seeds: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`tf.random.stateless_uniform([counts[k]], seeds[k])` of every k, float32, one after the other."""
    halves = seeds.view(np.uint64)
    seed_words = np.stack([halves[:, 0] & _LOW, halves[:, 0] >> _HALF, halves[:, 1] & _LOW, halves[:, 1] >> _HALF])
    made = _philox(seed_words, np.broadcast_to(_SEED_KEY, (2, len(seeds))))
    blocks = -(-counts // 4)
    of_seed = np.repeat(np.arange(len(seeds)), blocks)
    block = _places(blocks).astype(np.uint64)
    counter = np.stack([block, np.zeros(len(block), np.uint64), made[2][of_seed], made[3][of_seed]])
    bits = _philox(counter, made[:2, of_seed]).T.ravel().astype(np.uint32)
    is_wanted = _places(4 * blocks) < np.repeat(counts, 4 * blocks)
    # As TensorFlow makes a float of 32 bits: 23 of them behind the point of a number from 1 to 2.
    mantissas = (bits[is_wanted] & np.uint32(0x7FFFFF)) | np.uint32(0x3F800000)
    return mantissas.view(np.float32) - np.float32(1)


def _philox(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Philox 4x32-10: counters uint64 [4, k] and keys [2, k], each a 32-bit word, to four words per column."""
    for _ in range(10):
        low, high = counter[0] * _MULTIPLIERS[0], counter[2] * _MULTIPLIERS[1]
        counter = np.stack(
            [
                (high >> _HALF) ^ counter[1] ^ key[0],
                high & _LOW,
                (low >> _HALF) ^ counter[3] ^ key[1],
                low & _LOW,
            ]
        )
        key = (key + _KEY_STEPS[:, np.newaxis]) & _LOW
    return counter
