"""Seeds of independent random streams, all of which follow from --seed."""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(seed: int, *names: str | int) -> np.ndarray:
    """An int64[2] seed for the stream called `names`, for TensorFlow's stateless operations.

    Streams of different names are independent (BLAKE2b of seed and names), the same on every machine and in every
    process, and need no state: the stream of round 4,000 is known without running the rounds before it.

    >>> derive_seed(0, "cohort", 7)
    array([ -713186837569919632, -2613037543065649694])
    """
    text = repr((int(seed), *names)).encode()
    return np.frombuffer(hashlib.blake2b(text, digest_size=16).digest(), "<i8").copy()


def derive_generator(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator for the stream called `names`."""
    return np.random.Generator(np.random.PCG64(derive_seed(seed, *names).view(np.uint64).tolist()))
