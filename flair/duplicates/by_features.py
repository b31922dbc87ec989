"""Crops and edits: each photo is laid over its nearest by features, however far apart their pixels are."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flair.duplicates import compare
from flair.duplicates.features import PHOTOS_AT_ONCE, FeatureTable
from flair.duplicates.search import CANDIDATE, NearPairs, Work
from flair.files.npy_file import read_rows, write_rows
from flair.files.parts import PartStore
from flair.terminal.progress import Progress

ALIGNED_PAIR = np.dtype([("first", "<i4"), ("second", "<i4"), ("correlation", "<f8")])
_VERSION = 1  # raised whenever the same photos would give other pairs or correlations than before


def aligned_pairs(search: NearPairs, features: FeatureTable, count: int) -> NDArray[Any]:
    """Each photo and its `count` nearest by features, with the correlation of their aligned detail.

    Returns:
      ALIGNED_PAIR [k], sorted by rows, each pair once.

    Raises:
      FlairError: a photo cannot be read any more, features are not finite, or a file of the cache is damaged.
    """
    key = hashlib.sha256(f"{_VERSION} {count} {features.digest}".encode()).hexdigest()[:24]
    path = search.folder / f"aligned-{key}.npy"
    if path.exists():
        pairs = read_rows(path, ALIGNED_PAIR)
        search.aligned = Work(0, len(pairs))
        return pairs
    candidates = _candidates(search, features, count, PartStore(search.folder / f"nearest-{key}", CANDIDATE))
    store = PartStore(search.folder / f"alignment-{key}", np.dtype("<f8"))
    pairs = np.empty(len(candidates), ALIGNED_PAIR)
    pairs["first"], pairs["second"] = candidates["first"], candidates["second"]
    pairs["correlation"], search.aligned = search.measured(compare.compare_alignment, candidates, store, "alignment")
    write_rows(path, pairs)
    search.tidy(f"nearest-{key}", f"alignment-{key}")
    return pairs


def _candidates(search: NearPairs, features: FeatureTable, count: int, store: PartStore) -> NDArray[Any]:
    num_photos = len(search.scope.records)
    starts = range(0, num_photos, PHOTOS_AT_ONCE)
    done = min(store.done * PHOTOS_AT_ONCE, num_photos)
    with Progress(num_photos, "nearest by features", "photo", done=done) as progress:
        try:
            for start in starts[store.done :]:
                photos = range(start, min(start + PHOTOS_AT_ONCE, num_photos))
                near = features.nearest(search.scope, photos, count)
                found = np.empty(near.size, CANDIDATE)
                both = np.repeat(np.asarray(photos, np.int32), count), near.ravel()
                found["first"], found["second"] = np.minimum(*both), np.maximum(*both)
                store.add(found[found["first"] >= 0])
                progress.add(len(photos))
        finally:
            store.save()
    return np.unique(store.rows())
