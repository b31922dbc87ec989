"""The audit from the photos to the files it writes; the command line is `flair.near_duplicates`."""

from __future__ import annotations

import contextlib
import itertools
import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flair.curation.exclusion import NEAR_DUPLICATES_FILE, NEIGHBORS_FILE
from flair.dataset.metadata import load_records
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
from flair.duplicates.rule import Settings, is_near_duplicate, may_be_duplicate
from flair.duplicates.scope import Scope, make_scope, pair_codes, pairs_within
from flair.duplicates.search import MAX_PAIRS, NEAR_PAIR, NearPairs, Work
from flair.duplicates.signatures import Signatures, equal, read_signatures
from flair.errors import FlairError
from flair.files import atomic, lock

PAIRS_FILE = "duplicate_pairs.json"
SUMMARY_FILE = "summary.json"
SUMMARY_TEXT_FILE = "summary.txt"
_DESCRIBED = ("pairs", "partitions", "metrics", "top_k", "feature_neighbors", "mirrored")  # settings in the summary
OUTPUT_FILES = (NEIGHBORS_FILE, NEAR_DUPLICATES_FILE, PAIRS_FILE, SUMMARY_FILE, SUMMARY_TEXT_FILE)


def audit(settings: Settings) -> str:
    """Runs the audit and writes its files; returns its summary as text, and the work that it took.

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
        text = _audit(settings)
    return text


def exact_pairs(digests: NDArray[np.uint8], scope: Scope) -> NDArray[Any]:
    """All pairs that count whose digests, uint8 [n, 32], are equal: NEAR_PAIR [k], sorted, with all distances 0.

    Raises:
      FlairError: there are too many to list.
    """
    names = np.ascontiguousarray(digests).view("S32")[:, 0]
    _, group, sizes = np.unique(names, return_inverse=True, return_counts=True)
    num_pairs = pairs_within(sizes)
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


def _audit(settings: Settings) -> str:
    start = time.monotonic()
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
        search = NearPairs(settings, scope, signatures)
        pairs = search.find()
        if "dssim" in settings.metrics:
            needed = nearest(pairs, scope, settings.top_k).any(axis=0) | may_be_duplicate(pairs, settings.thresholds)
            search.add_structure(pairs, needed)
        if features is not None and settings.feature_neighbors:
            aligned = search.find_aligned(features)
        work = [search.searched, search.compared, search.structured, search.aligned]
    else:
        pairs = exact_pairs(signatures.pixel_sha256, scope)
    distances = np.full(len(pairs), np.nan)
    if features is not None:
        distances = features.squared_distances(pairs["first"], pairs["second"])
    found = Found(scope, pairs, distances, _kinds(pairs, distances, signatures, settings))
    if aligned is not None:
        # Pairs that are called duplicates anyhow need no review.
        aligned = aligned[aligned["correlation"] >= settings.thresholds.review_alignment]
        found = found._replace(aligned=aligned[~np.isin(pair_codes(aligned), pair_codes(found.duplicates))])
    text = _write(found, settings)
    photos = Work(signatures.num_computed, len(records) - signatures.num_computed)
    return "\n".join([text, *_work_lines(time.monotonic() - start, photos, *work)])


def _work_lines(
    seconds: float, photos: Work, searched: Work, compared: Work, structured: Work, aligned: Work
) -> list[str]:
    """How much was computed, how much an earlier run had done, and how fast it went."""
    named = {
        "photos decoded": photos,
        "pairs searched by their block means": searched,
        "pairs compared in full": compared,
        "pairs compared by structure": structured,
        **({"pairs aligned": aligned} if any(aligned) else {}),
    }
    lines = [f"{name}: {work.computed:,} computed, {work.reused:,} reused" for name, work in named.items()]
    if searched.computed:
        lines.append(f"Rate: {searched.computed / max(seconds, 1e-9):,.0f} pairs/s, decoding included")
    return lines


def _kinds(
    pairs: NDArray[Any], features: NDArray[np.float64], signatures: Signatures, settings: Settings
) -> NDArray[np.int8]:
    near = is_near_duplicate(pairs, features, settings.thresholds, settings.metrics)
    kind = np.where(near, 2, -1).astype(np.int8)
    if "sha256" in settings.metrics:
        kind[equal(signatures.pixel_sha256, pairs)] = 1
        kind[equal(signatures.file_sha256, pairs)] = 0
    return kind


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
