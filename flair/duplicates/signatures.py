"""What the audit keeps of each photo: digests, energy and block sums, cached by the content of the photo's file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flair.dataset import images
from flair.dataset.metadata import Record
from flair.duplicates.blocks import NUM_SUMS, block_details, block_sums
from flair.duplicates.distance import energy
from flair.files.atomic import remove_leftovers
from flair.files.growing import PartStore
from flair.files.npy_file import map_rows, read_rows, write_chunks
from flair.parallel.processes import batches, map_in_order
from flair.terminal.progress import Progress

TABLE_FILE = "signatures.npy"
_PARTS_FOLDER = "new"  # signatures that the table lacks
SIGNATURE = np.dtype(
    [
        ("image_id", "S128"),
        ("file_sha256", "u1", (32,)),
        ("pixel_sha256", "u1", (32,)),
        ("energy", "<i8"),
        ("sums", "<u2", (NUM_SUMS,)),
        ("details", "<u2", (NUM_SUMS,)),
    ]
)
_PHOTOS_PER_TASK = 64
_COPY_ROWS = 4096
_PAIRS_AT_ONCE = 1 << 20


class SignatureTable(NamedTuple):
    """The table in the cache, which stays on disk; photo k has its row `rows[k]`."""

    path: Path
    rows: NDArray[np.int64]

    def read(self, photos: NDArray[Any] | range) -> NDArray[Any]:
        """SIGNATURE [k] of these photos."""
        return np.asarray(map_rows(self.path, SIGNATURE)[self.rows[np.asarray(photos, np.int64)]])


class Signatures(NamedTuple):
    """Of n photos, in the order they were asked for; `file_sha256` and `pixel_sha256` are uint8 [n, 32]."""

    table: SignatureTable
    file_sha256: NDArray[np.uint8]
    pixel_sha256: NDArray[np.uint8]
    num_computed: int


def read_signatures(dataset_dir: Path, records: Sequence[Record], cache_dir: Path, num_workers: int) -> Signatures:
    """Reads every photo's file; decodes those whose content `cache_dir` does not know yet, and adds them to it.

    Raises:
      PhotoError: a photo is missing or broken; what was computed before it is kept.
    """
    remove_leftovers(cache_dir)
    remove_leftovers(cache_dir, "new-*.npy")  # of earlier versions, in which parts had these names
    _merge_parts(cache_dir)
    row_of = _row_of(_open_table(cache_dir))
    num_cached = len(row_of)
    context = (dataset_dir, frozenset(row_of))
    slim = (record._replace(labels=(), fine_grained_labels=()) for record in records)
    tasks = list(batches(slim, _PHOTOS_PER_TASK, lambda _record: 1))
    file_digests: list[bytes] = []
    new = PartStore(cache_dir / _PARTS_FOLDER, SIGNATURE)
    try:
        with Progress(len(records), "photos", "photo") as progress:
            for digests, computed in map_in_order(_sign, context, tasks, min(num_workers, len(tasks))):
                file_digests += digests
                if len(computed):
                    new.add(computed)
                progress.add(len(digests))
    finally:
        new.save()
    _merge_parts(cache_dir)
    table = map_rows(cache_dir / TABLE_FILE, SIGNATURE)
    row_of = _row_of(table)
    rows = np.array([row_of[digest] for digest in file_digests], np.int64)
    files = np.frombuffer(b"".join(file_digests), np.uint8).reshape(-1, 32)
    pixels = np.array(table["pixel_sha256"][rows])
    return Signatures(SignatureTable(cache_dir / TABLE_FILE, rows), files, pixels, len(row_of) - num_cached)


def equal(digests: NDArray[np.uint8], pairs: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether the photos of pairs (`first`, `second`) have equal digests, uint8 [n, 32]."""
    same = np.empty(len(pairs), bool)
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        part = pairs[start : start + _PAIRS_AT_ONCE]
        same[start : start + len(part)] = (digests[part["first"]] == digests[part["second"]]).all(axis=1)
    return same


def pixel_signature(data: bytes, pixels: NDArray[np.uint8], image_id: str) -> NDArray[Any]:
    """The signature of one photo, SIGNATURE [1]."""
    row = np.zeros(1, SIGNATURE)
    row["image_id"] = image_id.encode()
    row["file_sha256"] = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
    row["pixel_sha256"] = np.frombuffer(hashlib.sha256(pixels.tobytes()).digest(), np.uint8)
    row["energy"] = energy(pixels)
    row["sums"] = block_sums(pixels)
    row["details"] = block_details(pixels)
    return row


def _sign(context: tuple[Path, frozenset[bytes]], records: list[Record]) -> tuple[list[bytes], NDArray[Any]]:
    """The digests of all these files, and the signatures, SIGNATURE [k], of those that are not known."""
    dataset_dir, known = context
    digests, computed = [], [np.empty(0, SIGNATURE)]
    for record in records:
        data, where = images.read_file(dataset_dir, record)
        digests.append(hashlib.sha256(data).digest())
        if digests[-1] not in known:
            computed.append(pixel_signature(data, images.decode(data, where).data, record.image_id))
    return digests, np.concatenate(computed)


def _open_table(cache_dir: Path) -> NDArray[Any]:
    path = cache_dir / TABLE_FILE
    return read_rows(path, SIGNATURE, mmap_mode="r") if path.exists() else np.empty(0, SIGNATURE)


def _row_of(table: NDArray[Any]) -> Mapping[bytes, int]:
    digests = np.ascontiguousarray(table["file_sha256"]).tobytes()
    return {digests[32 * row : 32 * row + 32]: row for row in range(len(table))}


def _merge_parts(cache_dir: Path) -> None:
    """Makes the table one file again, each content once."""
    store = PartStore(cache_dir / _PARTS_FOLDER, SIGNATURE)
    if store.num_rows:
        sources = [_open_table(cache_dir), *store.parts()]
        seen: set[bytes] = set()
        chosen = []
        for source in sources:
            row_of = _row_of(source)
            chosen.append(np.array([row for digest, row in row_of.items() if digest not in seen], np.int64))
            seen.update(row_of)
        chunks = (
            source[rows[start : start + _COPY_ROWS]]
            for source, rows in zip(sources, chosen, strict=True)
            for start in range(0, len(rows), _COPY_ROWS)
        )
        write_chunks(cache_dir / TABLE_FILE, SIGNATURE, len(seen), chunks)
    store.discard()
