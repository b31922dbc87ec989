"""All pairs of photos nearer than a limit, and those nearest by features; what is done is saved as the search goes.

Near pairs are found by their block sums and compared in full. Crops and edits are not near: there each photo is laid
over its nearest by features, however far apart their pixels are.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flair.dataset.images import read_pixels
from flair.duplicates import blocks, compare
from flair.duplicates.compare import ComparedPair, Context
from flair.duplicates.distance import detail_correlation
from flair.duplicates.features import PHOTOS_AT_ONCE, FeatureTable
from flair.duplicates.rule import Settings
from flair.duplicates.scope import Scope, pair_codes
from flair.duplicates.signatures import Signatures, SignatureTable, equal
from flair.errors import FlairError
from flair.files import atomic
from flair.files.growing import PartStore
from flair.files.npy_file import read_rows, write_rows
from flair.parallel.processes import map_in_order
from flair.terminal.progress import Progress

CANDIDATE = np.dtype([("first", "<i4"), ("second", "<i4")])
NEAR_PAIR = np.dtype(
    [("first", "<i4"), ("second", "<i4"), ("l2", "<i8"), ("mirrored", "?"), ("correlation", "<f8"), ("dssim", "<f8")]
)
ALIGNED_PAIR = np.dtype([("first", "<i4"), ("second", "<i4"), ("correlation", "<f8")])
MAX_PAIRS = 30_000_000  # held in memory, about 2 GB
MAX_BRUTE_FORCE_PHOTOS = 4000  # held in memory, 800 MB
_VERSION = 1  # raised whenever the same photos would give other pairs or correlations than before
_STRUCTURE = np.dtype([("first", "<i4"), ("second", "<i4"), ("dssim", "<f8")])
_PAIRS_PER_TASK = 128
_PAIRS_AT_ONCE = 4096  # of which signatures are read, 14 MB
_NEARBY = 1024  # photos whose pairs are compared one after the other, while they are decoded
_Measure = Callable[[Context, list[ComparedPair]], NDArray[Any]]
_BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


class Work(NamedTuple):
    """How much a search did, and how much earlier runs had done of it."""

    computed: int = 0
    reused: int = 0


class NearPairs:
    """The search of one set of photos for pairs within `review_l2`, in a folder of its own below `cache_dir`.

    The folder is named after the content of the photos, their users and partitions, the scope and the limit: whatever
    else changes, what is there holds.
    """

    def __init__(self, settings: Settings, scope: Scope, signatures: Signatures) -> None:
        self._settings, self._scope, self._signatures = settings, scope, signatures
        self._limit = settings.thresholds.review_l2
        self._context = Context(settings.dataset_dir, settings.mirrored)
        self._folder = settings.cache_dir / f"search-{self._key()[:24]}"
        self.searched = self.compared = self.structured = self.aligned = Work()

    def find(self) -> NDArray[Any]:
        """All pairs that count and are within the limit, NEAR_PAIR [k] sorted by rows, `dssim` not yet known (NaN).

        Raises:
          FlairError: there are more than MAX_PAIRS of them, a photo cannot be read any more, or a file of the cache is
            damaged; or --brute_force is given with more than MAX_BRUTE_FORCE_PHOTOS photos.
        """
        if self._settings.brute_force:
            return self._brute_force()
        path = self._folder / "pairs.npy"
        if path.exists():
            pairs = read_rows(path, NEAR_PAIR)
            self.searched = Work(0, self._scope.num_pairs())
            self.compared = Work(0, len(pairs))
        else:
            pairs = self._compare(self._candidates())
            write_rows(path, pairs)
        self._tidy("candidates.npy", "tiles-*", "distances")
        return pairs

    def add_structure(self, pairs: NDArray[Any], needed: NDArray[np.bool_]) -> None:
        """Fills in the dssim of the pairs that are `needed`, bool [k]; uses and saves what is known."""
        if self._settings.brute_force:
            self.structured = Work(int(needed.sum()))
            found = [compare.compare_structure(self._context, task) for task in self._tasks(pairs[needed])]
            pairs["dssim"][needed] = np.concatenate([np.empty(0), *found])
            return
        path = self._folder / "structure.npy"
        known = read_rows(path, _STRUCTURE) if path.exists() else np.empty(0, _STRUCTURE)
        pairs["dssim"][np.searchsorted(pair_codes(pairs), pair_codes(known))] = known["dssim"]
        pairs["dssim"][needed & (pairs["l2"] == 0)] = 0.0
        missing = needed & np.isnan(pairs["dssim"])
        self.structured = Work(int(missing.sum()), int((needed & ~missing).sum()))
        if missing.any():
            todo = pairs[missing]
            # Which pairs are to be done depends on what is known, so the unfinished work is named after them.
            store = PartStore(self._folder / f"structure-{_digest(todo.tobytes())}", np.dtype("<f8"))
            pairs["dssim"][missing], _ = self._measured(compare.compare_structure, todo, store, "dssim")
            done = pairs[~np.isnan(pairs["dssim"])]
            write_rows(path, done[list(_STRUCTURE.names or ())].astype(_STRUCTURE))
        self._tidy("structure-*")
        # Other runs may have asked for more; the result is the same without them.
        pairs["dssim"][~needed] = np.nan

    def find_aligned(self, features: FeatureTable) -> NDArray[Any]:
        """Each photo and its `feature_neighbors` nearest by features, with the correlation of their aligned detail.

        Returns:
          ALIGNED_PAIR [k], sorted by rows, each pair once.

        Raises:
          FlairError: a photo cannot be read any more, features are not finite, or a file of the cache is damaged.
        """
        count = self._settings.feature_neighbors
        key = hashlib.sha256(f"{_VERSION} {count} {features.digest}".encode()).hexdigest()[:24]
        path = self._folder / f"aligned-{key}.npy"
        if path.exists():
            pairs = read_rows(path, ALIGNED_PAIR)
            self.aligned = Work(0, len(pairs))
            return pairs
        candidates = self._nearest(features, count, PartStore(self._folder / f"nearest-{key}", CANDIDATE))
        store = PartStore(self._folder / f"alignment-{key}", np.dtype("<f8"))
        pairs = np.empty(len(candidates), ALIGNED_PAIR)
        pairs["first"], pairs["second"] = candidates["first"], candidates["second"]
        pairs["correlation"], self.aligned = self._measured(compare.compare_alignment, candidates, store, "alignment")
        write_rows(path, pairs)
        self._tidy(f"nearest-{key}", f"alignment-{key}")
        return pairs

    def _measured(
        self, measure: _Measure, pairs: NDArray[Any], store: PartStore, what: str
    ) -> tuple[NDArray[Any], Work]:
        """What `measure` gives for the pairs, in their order; `store` keeps what is done, and has what was done."""
        done = min(store.done * _PAIRS_PER_TASK, len(pairs))
        with Progress(len(pairs), what, "pair", done=done) as progress:
            tasks = itertools.islice(self._tasks(pairs), store.done, None)
            try:
                for found in map_in_order(measure, self._context, tasks, self._settings.num_workers):
                    store.add(found)
                    progress.add(len(found))
            finally:
                store.save()
        compare.forget_photos()
        return store.rows(), Work(len(pairs) - done, done)

    def _candidates(self) -> NDArray[Any]:
        """Pairs whose bound is within the limit, in the order in which they are compared."""
        path = self._folder / "candidates.npy"
        if path.exists():
            self.searched = Work(0, self._scope.num_pairs())
            return read_rows(path, CANDIDATE)
        num_photos, size = len(self._scope.records), self._settings.chunk_size
        chunks = [range(start, min(start + size, num_photos)) for start in range(0, num_photos, size)]
        tiles = [tile for tile in itertools.combinations_with_replacement(chunks, 2) if self._scope.may_have(*tile)]
        store = PartStore(self._folder / f"tiles-{size}", CANDIDATE)
        context = _TileContext(
            self._scope._replace(records=()), self._signatures.table, self._limit, self._context.both_orientations
        )
        num_pairs = [len(rows) * len(columns) for rows, columns in tiles]
        done = sum(num_pairs[: store.done])
        with _one_thread_per_worker(), Progress(sum(num_pairs), "search", "pair", scale=True, done=done) as progress:
            results = map_in_order(
                _search_tile, context, tiles[store.done :], min(self._settings.num_workers, len(tiles))
            )
            try:
                for rows in results:
                    count = num_pairs[store.done]
                    store.add(rows)
                    progress.add(count, f"{store.num_rows:,} candidates")
                    if store.num_rows > MAX_PAIRS:
                        raise FlairError(
                            f"more than {MAX_PAIRS:,} pairs may be within --review_l2={self._limit:,}; lower it, "
                            "or look at fewer photos at once (--partitions, --pairs)"
                        )
            finally:
                store.save()
        found = store.rows()
        found = found[
            np.lexsort((found["second"], found["first"], found["second"] // _NEARBY, found["first"] // _NEARBY))
        ]
        write_rows(path, found)
        # Pairs of the tiles that an earlier run had searched are the share of the tiles' pairs.
        reused = round(self._scope.num_pairs() * done / max(sum(num_pairs), 1))
        self.searched = Work(self._scope.num_pairs() - reused, reused)
        return found

    def _compare(self, candidates: NDArray[Any]) -> NDArray[Any]:
        same = equal(self._signatures.pixel_sha256, candidates)
        todo = candidates[~same]
        store = PartStore(self._folder / "distances", compare.DISTANCE)
        distances = np.zeros(len(candidates), compare.DISTANCE)
        distances[~same], self.compared = self._measured(compare.compare, todo, store, "l2")
        near = distances["l2"] <= self._limit
        return near_pairs(candidates[near], distances[near], self._signatures.table)

    def _nearest(self, features: FeatureTable, count: int, store: PartStore) -> NDArray[Any]:
        num_photos = len(self._scope.records)
        starts = range(0, num_photos, PHOTOS_AT_ONCE)
        done = min(store.done * PHOTOS_AT_ONCE, num_photos)
        with Progress(num_photos, "nearest by features", "photo", done=done) as progress:
            try:
                for start in starts[store.done :]:
                    photos = range(start, min(start + PHOTOS_AT_ONCE, num_photos))
                    near = features.nearest(self._scope, photos, count)
                    found = np.empty(near.size, CANDIDATE)
                    both = np.repeat(np.asarray(photos, np.int32), count), near.ravel()
                    found["first"], found["second"] = np.minimum(*both), np.maximum(*both)
                    store.add(found[found["first"] >= 0])
                    progress.add(len(photos))
            finally:
                store.save()
        return np.unique(store.rows())

    def _brute_force(self) -> NDArray[Any]:
        """What `find` finds, by comparing every pair in full, with no bound, cache or worker."""
        records = self._scope.records
        if len(records) > MAX_BRUTE_FORCE_PHOTOS:
            raise FlairError(
                f"--brute_force with {len(records):,} photos: expected at most {MAX_BRUTE_FORCE_PHOTOS:,}; "
                "it is there to check the search on small sets"
            )
        photos = [read_pixels(self._context.dataset_dir, record).data for record in records]
        rows, distances = [], []

        def distance(photo: NDArray[np.float64], other: NDArray[np.uint8]) -> int:
            # A sum of whole numbers below 2^53, which float64 adds without an error.
            difference = np.subtract(photo, other).reshape(-1)
            return int(np.einsum("i,i->", difference, difference))

        with Progress(self._scope.num_pairs(), "every pair in full", "pair") as progress:
            for first, photo in enumerate(photos):
                one = photo.astype(np.float64)  # once for all of its pairs
                for second in range(first + 1, len(photos)):
                    if not self._scope.has(np.array([first]), np.array([second]))[0]:
                        continue
                    direct = turned = distance(one, photos[second])
                    if self._context.both_orientations:
                        turned = distance(one[:, ::-1], photos[second])
                    if min(direct, turned) <= self._limit:
                        rows.append((first, second))
                        distances.append((min(direct, turned), turned < direct))
                    progress.add()
        self.compared = Work(self._scope.num_pairs())
        pairs = np.array(rows, CANDIDATE)
        return near_pairs(pairs, np.array(distances, compare.DISTANCE), self._signatures.table)

    def _tidy(self, *patterns: str) -> None:
        """Removes unfinished work that is finished now, and what a killed run left."""
        atomic.remove_leftovers(self._folder)
        for pattern in patterns:
            for path in self._folder.glob(pattern):
                atomic.remove(path)

    def _tasks(self, pairs: NDArray[Any]) -> Iterator[list[ComparedPair]]:
        records = [record._replace(labels=(), fine_grained_labels=()) for record in self._scope.records]
        mirrored = pairs["mirrored"] if "mirrored" in (pairs.dtype.names or ()) else np.zeros(len(pairs), bool)
        for start in range(0, len(pairs), _PAIRS_PER_TASK):
            part = slice(start, start + _PAIRS_PER_TASK)
            columns = (pairs["first"][part].tolist(), pairs["second"][part].tolist(), mirrored[part].tolist())
            yield [
                ComparedPair(records[one], records[other], turned) for one, other, turned in zip(*columns, strict=True)
            ]

    def _key(self) -> str:
        names = [[record.image_id, record.user_id, record.partition] for record in self._scope.records]
        what = [_VERSION, self._scope.name, self._limit, self._context.both_orientations, names]
        return _digest(json.dumps(what).encode(), self._signatures.pixel_sha256.tobytes())


def near_pairs(pairs: NDArray[Any], distances: NDArray[Any], table: SignatureTable) -> NDArray[Any]:
    """NEAR_PAIR [k], sorted by rows, of pairs (`first`, `second`) and their DISTANCEs."""
    found = np.zeros(len(pairs), NEAR_PAIR)
    found["first"], found["second"] = pairs["first"], pairs["second"]
    found["l2"], found["mirrored"] = distances["l2"], distances["mirrored"]
    found["dssim"] = np.nan
    found.sort(order=["first", "second"])
    for start in range(0, len(found), _PAIRS_AT_ONCE):
        part = found[start : start + _PAIRS_AT_ONCE]
        one, other = table.read(part["first"]), table.read(part["second"])
        others = np.where(part["mirrored"][:, None], blocks.mirrored(other["sums"]), other["sums"])
        energies = np.stack([one["energy"], other["energy"]])
        part["correlation"] = detail_correlation(part["l2"], energies, one["sums"], others)
    # Equal photos that have no detail are equal all the same.
    found["correlation"][found["l2"] == 0] = 1.0
    return found


class _TileContext(NamedTuple):
    scope: Scope
    table: SignatureTable
    limit: int
    both_orientations: bool


def _search_tile(context: _TileContext, tile: tuple[range, range]) -> NDArray[Any]:
    rows, columns = tile
    one, other = (blocks.Blocks(found["sums"], found["details"]) for found in map(context.table.read, tile))
    first, second = blocks.candidates(one, other, context.limit, context.both_orientations)
    first, second = first + rows.start, second + columns.start
    keep = (first < second) & context.scope.has(first, second)
    found = np.empty(int(keep.sum()), CANDIDATE)
    found["first"], found["second"] = first[keep], second[keep]
    return found


@contextlib.contextmanager
def _one_thread_per_worker() -> Iterator[None]:
    """Processes started in here multiply matrices with one thread each: there is a process for every core."""
    before = {name: os.environ.get(name) for name in _BLAS_THREADS}
    os.environ.update(dict.fromkeys(_BLAS_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:32]
