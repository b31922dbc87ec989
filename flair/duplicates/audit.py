"""The audit from the photos to the files it writes; the command line is `flair.near_duplicates`."""

from __future__ import annotations

import contextlib
import itertools
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flair.curation.exclusion import NEAR_DUPLICATES_FILE, NEIGHBORS_FILE
from flair.dataset.metadata import load_records
from flair.duplicates.by_features import aligned_pairs
from flair.duplicates.features import read_features
from flair.duplicates.report import (
    Found,
    components,
    duplicate_pairs,
    near_duplicates,
    nearest,
    neighbors,
    summarize,
    summary_text,
)
from flair.duplicates.rule import Thresholds, is_near_duplicate, may_be_duplicate
from flair.duplicates.scope import Scope, make_scope, pair_codes
from flair.duplicates.search import MAX_PAIRS, NEAR_PAIR, NearPairs, Work
from flair.duplicates.signatures import Signatures, equal, read_signatures
from flair.errors import FlairError
from flair.files import atomic, lock

PAIRS_FILE = "duplicate_pairs.json"
SUMMARY_FILE = "summary.json"
SUMMARY_TEXT_FILE = "summary.txt"
_DESCRIBED = ("pairs", "partitions", "metrics", "top_k", "feature_neighbors", "mirrored")  # settings in the summary
OUTPUT_FILES = (NEIGHBORS_FILE, NEAR_DUPLICATES_FILE, PAIRS_FILE, SUMMARY_FILE, SUMMARY_TEXT_FILE)


class Settings(NamedTuple):
    """What is audited and how; the flags of the command by their names."""

    dataset_dir: Path
    output_dir: Path
    cache_dir: Path
    pairs: str
    partitions: tuple[str, ...]
    metrics: tuple[str, ...]
    top_k: int
    thresholds: Thresholds
    features: Path | None
    feature_neighbors: int
    mirrored: bool
    brute_force: bool
    chunk_size: int
    num_workers: int


class Outcome(NamedTuple):
    """The summary as text, and the work it took: photos, pairs searched, compared in full and so on."""

    text: str
    photos: Work
    searched: Work
    compared: Work
    structured: Work
    aligned: Work

    def work_lines(self, seconds: float) -> list[str]:
        """How much was computed, how much an earlier run had done, and how fast it went."""
        named = {
            "photos decoded": self.photos,
            "pairs searched by their block means": self.searched,
            "pairs compared in full": self.compared,
            "pairs compared by structure": self.structured,
        }
        if any(self.aligned):
            named["pairs aligned"] = self.aligned
        lines = [f"{name}: {work.computed:,} computed, {work.reused:,} reused" for name, work in named.items()]
        if self.searched.computed:
            lines.append(f"Rate: {self.searched.computed / max(seconds, 1e-9):,.0f} pairs/s, decoding included")
        return lines


def audit(settings: Settings) -> Outcome:
    """Runs the audit and writes its files.

    Raises:
      FlairError: bad metadata, a bad photo or file of features, more pairs than can be held, or a second run at work.
    """
    folders = sorted({settings.cache_dir.resolve(), settings.output_dir.resolve()})
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # where nothing can be written, now is the time to say so
    with contextlib.ExitStack() as held:
        for folder in folders:
            busy = f"{folder}: another process is preparing this output; wait for it or stop it"
            held.enter_context(lock.exclusive(folder, busy))
        outcome = _audit(settings)
    return outcome


def exact_pairs(digests: NDArray[np.uint8], scope: Scope) -> NDArray[Any]:
    """All pairs that count whose digests, uint8 [n, 32], are equal: NEAR_PAIR [k], sorted, with all distances 0.

    Raises:
      FlairError: there are too many to list.
    """
    names = np.ascontiguousarray(digests).view("S32")[:, 0]
    _, group, sizes = np.unique(names, return_inverse=True, return_counts=True)
    num_pairs = int((sizes.astype(np.int64) * (sizes - 1) // 2).sum())
    if num_pairs > MAX_PAIRS:
        raise FlairError(f"{num_pairs:,} pairs of photos are equal; at most {MAX_PAIRS:,} can be listed")
    order = np.argsort(group, kind="stable")
    members = np.split(order, np.cumsum(sizes)[:-1])
    rows = [pair for photos in members if len(photos) > 1 for pair in itertools.combinations(photos.tolist(), 2)]
    both = np.array(rows, np.int32).reshape(-1, 2)
    both = both[scope.has(both[:, 0], both[:, 1])]
    found = np.zeros(len(both), NEAR_PAIR)
    found["first"], found["second"], found["correlation"] = both[:, 0], both[:, 1], 1.0
    found.sort(order=["first", "second"])
    return found


def _audit(settings: Settings) -> Outcome:
    for name in OUTPUT_FILES:
        atomic.remove_leftovers(settings.output_dir, f".{name}.*.tmp")
    records = [record for record in load_records(settings.dataset_dir) if record.partition in settings.partitions]
    if not records:
        raise FlairError(f"--partitions={','.join(settings.partitions)}: the dataset has no photo there")
    scope = make_scope(settings.pairs, records)
    image_ids = [record.image_id for record in scope.records]
    features = read_features(settings.features, image_ids) if settings.features else None
    signatures = read_signatures(settings.dataset_dir, scope.records, settings.cache_dir, settings.num_workers)
    work, aligned = [Work(), Work(), Work(), Work()], None
    if {"l2", "dssim", "features"} & set(settings.metrics):
        search = NearPairs(
            settings.dataset_dir,
            scope,
            signatures,
            settings.thresholds.review_l2,
            settings.mirrored,
            settings.cache_dir,
            settings.num_workers,
            settings.chunk_size,
        )
        pairs = search.brute_force() if settings.brute_force else search.find()
        if "dssim" in settings.metrics:
            needed = nearest(pairs, scope, settings.top_k).any(axis=0) | may_be_duplicate(pairs, settings.thresholds)
            search.add_structure(pairs, needed, cached=not settings.brute_force)
        if features is not None and settings.feature_neighbors:
            aligned = aligned_pairs(search, features, settings.feature_neighbors)
        work = [search.searched, search.compared, search.structured, search.aligned]
    else:
        pairs = exact_pairs(signatures.pixel_sha256, scope)
    distances = np.full(len(pairs), np.nan)
    if features is not None:
        distances = features.squared_distances(pairs["first"], pairs["second"])
    found = Found(scope, pairs, distances, _kinds(pairs, distances, signatures, settings))
    if aligned is not None:
        found = found._replace(aligned=_to_review(aligned, found.duplicates, settings.thresholds.review_alignment))
    text = _write(found, settings)
    return Outcome(text, Work(signatures.num_computed, len(records) - signatures.num_computed), *work)


def _kinds(
    pairs: NDArray[Any], features: NDArray[np.float64], signatures: Signatures, settings: Settings
) -> NDArray[np.int8]:
    near = is_near_duplicate(pairs, features, settings.thresholds, settings.metrics)
    kind = np.where(near, 2, -1).astype(np.int8)
    if "sha256" in settings.metrics:
        kind[equal(signatures.pixel_sha256, pairs)] = 1
        kind[equal(signatures.file_sha256, pairs)] = 0
    return kind


def _to_review(aligned: NDArray[Any], duplicates: NDArray[Any], least: float) -> NDArray[Any]:
    """Those of aligned pairs whose detail agrees and that are not called duplicates anyhow."""
    aligned = aligned[aligned["correlation"] >= least]
    return np.asarray(aligned[~np.isin(pair_codes(aligned), pair_codes(duplicates))])


def _write(found: Found, settings: Settings) -> str:
    """Writes all files; returns the summary as text."""
    listed = nearest(found.pairs, found.scope, settings.top_k)
    groups = components(found)
    described = {name: getattr(settings, name) for name in _DESCRIBED}
    described["thresholds"] = settings.thresholds._asdict()
    summary = {"settings": described, **summarize(found, groups, settings.thresholds.review_dssim)}
    text = summary_text(summary)
    folder = settings.output_dir
    lists = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in neighbors(found, listed, settings.metrics))
    _write_lines(folder / NEIGHBORS_FILE, "{", lists, "}")
    atomic.write_json(folder / NEAR_DUPLICATES_FILE, near_duplicates(groups), indent=1)
    _write_lines(folder / PAIRS_FILE, "[", map(json.dumps, duplicate_pairs(found)), "]")
    atomic.write_json(folder / SUMMARY_FILE, summary)
    atomic.write_text(folder / SUMMARY_TEXT_FILE, text)
    return text


def _write_lines(path: Path, opening: str, lines: Iterable[str], closing: str) -> None:
    """Writes JSON with one item per line, without holding it in memory."""
    with atomic.replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(opening)
        separator = "\n"
        for line in lines:
            file.write(separator + line)
            separator = ",\n"
        file.write(f"\n{closing}\n")
