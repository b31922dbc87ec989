"""A FLAIR dataset directory turned into one HDF5 file, by any number of processes, continued after a kill.

First a skeleton is written that has everything but the photos (`skeleton`), then photos and checksums go to
their places in it. All of it happens in `.<name>.unfinished` beside the output file, which appears when it is complete.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flair.dataset import images
from flair.dataset.metadata import Record
from flair.errors import FlairError
from flair.files.atomic import beside, destination, replacing, sync
from flair.files.journal import Journal, Position
from flair.files.npy_file import read_rows, write_rows
from flair.parallel.processes import default_num_workers, map_in_order
from flair.records.hdf5 import global_heap
from flair.records.hdf5.reader import CHECKSUM_DTYPE, HDF5File, record_checksum
from flair.records.hdf5.skeleton import Format, groups_of, write_skeleton
from flair.records.preparation import (
    Outcome,
    Selection,
    check_same,
    discard,
    naming,
    require_free_space,
    select,
    unfinished_folder,
)
from flair.terminal.progress import Progress

_DATA_FILE = "data.hdf5"
_PLACES_FILE = "places.npy"
_PLACE = np.dtype([("image", "<i8"), ("checksum", "<i8")])
_JOURNAL_FILE = "journal"
_IMAGES_PER_TASK = 128
_OVERHEAD_BYTES = 2000  # of a photo's ids, labels, group and padding, generously


class _Context(NamedTuple):
    dataset_dir: Path
    data_file: Path
    image_format: str


class _Piece(NamedTuple):
    records: tuple[Record, ...]
    image_place: int  # of the first record
    checksum_place: int


class _Stored(NamedTuple):
    converted: list[str]
    num_images: int
    heap: bytes  # of jpeg photos: the collections to append to the file
    references: list[tuple[int, list[tuple[int, int]]]]  # place, and for each photo its size and address in `heap`


def write_hdf5(
    dataset_dir: str | Path,
    output_file: str | Path,
    *,
    by_user: bool = True,
    image_format: str = "raw",
    label_format: str = "names",
    limit_users: int | None = None,
    exclude: str | Path | None = None,
    num_workers: int | None = None,
    overwrite: bool = False,
) -> Outcome:
    """Writes all photos of `dataset_dir` (or a consistent subset of `limit_users` users) to one HDF5 file.

    The photos that the file `exclude` names are left out; see `flair.curation.exclusion`.

    The bytes written depend on the dataset and the flags, never on `num_workers` or on interruptions.

    Raises:
      FlairError: bad metadata, a bad photo (naming image and user), other output in the way, too little disk space.
    """
    source, final = Path(dataset_dir), Path(output_file)
    if not final.name:
        raise FlairError(f"--output_file={output_file}: is no name of a file; expected one such as flair.hdf5")
    if not final.is_dir():
        final = destination(final)
    layout = Format(image_format, label_format, by_user)
    selection = select(source, limit_users, exclude)
    parameters = {"format": "flair-hdf5", "format_version": 1, **layout._asdict(), **selection.parameters}
    unfinished = beside(final, "unfinished")
    num_images = selection.num_images
    if not overwrite and _is_complete(final, parameters):
        discard(unfinished)
        return Outcome(num_images, len(selection.users), final.stat().st_size, 0, (), True, selection.excluded)
    num_bytes = images.total_size(source, (record for user in selection.users for record in user.records))
    if image_format == "raw":
        num_bytes = num_images * images.PIXELS_BYTES
    with unfinished_folder(unfinished, parameters, overwrite):
        work = _reopen(unfinished, overwrite)
        if work is None:
            require_free_space(unfinished, num_bytes + _OVERHEAD_BYTES * num_images)
            _make_skeleton(unfinished, selection, layout, parameters)
            work = _Work(unfinished)
        context = _Context(source, work.data_file, image_format)
        try:
            skipped, converted = _store_photos(context, work, selection, layout, num_workers or default_num_workers())
        finally:
            work.close()
        os.replace(work.data_file, final)
        discard(unfinished)
    num_users, excluded = len(selection.users), selection.excluded
    return Outcome(num_images, num_users, final.stat().st_size, skipped, tuple(converted), excluded=excluded)


class _Work:
    """Unfinished work, opened: the data file, the places of the photos in it, and the journal of what is done."""

    def __init__(self, folder: Path) -> None:
        self.data_file = folder / _DATA_FILE
        self.places = _load_places(folder / _PLACES_FILE)
        self.descriptor = os.open(self.data_file, os.O_RDWR)
        try:
            self.journal = Journal(folder / _JOURNAL_FILE, self.descriptor)
            # Cut off, it would be continued with zeros in place of photos.
            if os.fstat(self.descriptor).st_size < self.journal.position.end:
                self.journal.close()
                raise FlairError(f"{self.data_file}: is cut off; add --overwrite to start over")
        except BaseException:
            os.close(self.descriptor)
            raise

    def close(self) -> None:
        self.journal.close()
        os.close(self.descriptor)


def _reopen(folder: Path, overwrite: bool) -> _Work | None:
    """The work that is in `folder`; None when there is none yet, or it is damaged and may be overwritten."""
    if not (folder / _DATA_FILE).exists():
        return None
    try:
        return _Work(folder)
    except FlairError:
        if not overwrite:
            raise
        (folder / _DATA_FILE).unlink()
        return None


def _load_places(path: Path) -> NDArray[np.int64]:
    try:
        places: NDArray[np.int64] = read_rows(path, _PLACE).view(np.int64).reshape(-1, 2)
    except (FlairError, FileNotFoundError):
        raise FlairError(f"{path}: is damaged; add --overwrite to start over") from None
    return places


def _make_skeleton(folder: Path, selection: Selection, layout: Format, parameters: dict[str, object]) -> None:
    with replacing(folder / _DATA_FILE) as temporary:
        places = write_skeleton(temporary, selection, layout, parameters)
        write_rows(folder / _PLACES_FILE, np.ascontiguousarray(places).view(_PLACE).reshape(-1))
        Journal.create(folder / _JOURNAL_FILE, Position(0, temporary.stat().st_size))


def _store_photos(
    context: _Context, work: _Work, selection: Selection, layout: Format, num_workers: int
) -> tuple[int, list[str]]:
    """How many photos an earlier run had stored, and which of all of them were converted."""
    tasks = list(_tasks(groups_of(selection.users, layout), work.places, _image_bytes(layout)))
    num_images = [sum(len(piece.records) for piece in task) for task in tasks]
    done, end = work.journal.position
    converted = list(work.journal.notes)
    os.ftruncate(work.descriptor, end)
    skipped = sum(num_images[:done])
    with Progress(sum(num_images), "HDF5", "photo", done=skipped) as progress:
        results = map_in_order(_store_task, context, tasks[done:], min(num_workers, len(tasks) - done))
        for index, stored in enumerate(results, start=done + 1):
            with naming(context.data_file):
                end = _append(work.descriptor, end, stored)
            work.journal.add(Position(index, end), stored.converted)
            converted += stored.converted
            progress.add(stored.num_images)
    if layout.image_format == "jpeg":
        global_heap.set_end_of_file(work.descriptor, end)
    sync(work.descriptor)
    return skipped, converted


def _image_bytes(layout: Format) -> int:
    return images.PIXELS_BYTES if layout.image_format == "raw" else global_heap.REFERENCE_BYTES


def _tasks(groups: Sequence[tuple[Record, ...]], places: NDArray[np.int64], image_bytes: int) -> Iterator[list[_Piece]]:
    task: list[_Piece] = []
    room = _IMAGES_PER_TASK
    for records, (image_place, checksum_place) in zip(groups, places.tolist(), strict=True):
        first = 0
        while first < len(records):
            part = records[first : first + room]
            task.append(
                _Piece(part, image_place + first * image_bytes, checksum_place + first * CHECKSUM_DTYPE.itemsize)
            )
            first += len(part)
            room -= len(part)
            if room == 0:
                yield task
                task, room = [], _IMAGES_PER_TASK
    if task:
        yield task


def _store_task(context: _Context, task: list[_Piece]) -> _Stored:
    descriptor = os.open(context.data_file, os.O_RDWR)
    try:
        with naming(context.data_file):
            return (_store_raw if context.image_format == "raw" else _store_jpeg)(context, descriptor, task)
    finally:
        os.close(descriptor)


def _store_raw(context: _Context, descriptor: int, task: list[_Piece]) -> _Stored:
    converted: list[str] = []
    for piece in task:
        checksums = []
        for index, record in enumerate(piece.records):
            pixels = images.read_pixels(context.dataset_dir, record)
            data = pixels.data.tobytes()
            _write_at(descriptor, data, piece.image_place + index * images.PIXELS_BYTES)
            checksums.append(record_checksum(record, data))
            if pixels.converted:
                converted.append(record.image_id)
        _write_at(descriptor, np.array(checksums, CHECKSUM_DTYPE).tobytes(), piece.checksum_place)
    return _Stored(converted, sum(len(piece.records) for piece in task), b"", [])


def _store_jpeg(context: _Context, descriptor: int, task: list[_Piece]) -> _Stored:
    converted: list[str] = []
    references: list[tuple[int, list[tuple[int, int]]]] = []
    heap = bytearray()
    for piece in task:
        checksums, entries = [], []
        for record in piece.records:
            jpeg = images.read_jpeg(context.dataset_dir, record)
            entries.append((len(jpeg.data), len(heap)))
            heap += global_heap.collection(jpeg.data)
            checksums.append(record_checksum(record, jpeg.data))
            if jpeg.converted:
                converted.append(record.image_id)
        _write_at(descriptor, np.array(checksums, CHECKSUM_DTYPE).tobytes(), piece.checksum_place)
        references.append((piece.image_place, entries))
    return _Stored(converted, sum(len(piece.records) for piece in task), bytes(heap), references)


def _append(descriptor: int, end: int, stored: _Stored) -> int:
    """Appends heap collections at `end` and points their datasets to them; returns the new end."""
    start = -(-end // 8) * 8
    if not stored.heap:
        return end
    _write_at(descriptor, stored.heap, start)
    for place, entries in stored.references:
        data = b"".join(global_heap.reference(size, start + address) for size, address in entries)
        _write_at(descriptor, data, place)
    return start + len(stored.heap)


def _write_at(descriptor: int, data: bytes, place: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, place)
        view, place = view[written:], place + written


def _is_complete(final: Path, parameters: dict[str, object]) -> bool:
    if not os.path.lexists(final):
        return False
    if not final.is_file():
        raise FlairError(f"--output_file={final}: exists and is no file; choose another name")
    try:
        with HDF5File(final) as file:
            found = file.parameters
    except FlairError:
        found = {}
    if not found:
        raise FlairError(
            f"--output_file={final}: already exists and was not made by this version of this command; "
            "choose another name, or add --overwrite to replace it"
        )
    check_same(parameters, found, f"--output_file={final}: the file there")
    return True
