"""A FLAIR dataset directory turned into one HDF5 file: processes read the photos, this one lays the file out with h5py.

JPEGs come to this process, since the HDF5 library finds their places as it writes them. Decoded photos have places as
soon as their dataset exists: the processes write them there, and 85 GB need not pass through this one.

All of it happens in `.<name>.unfinished` beside the output file, which appears when it is complete. A run that was
stopped starts over: all of FLAIR takes minutes, and the HDF5 library cannot continue a file that was cut off.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py

from flair.dataset import images
from flair.dataset.metadata import Record, records_of
from flair.errors import FlairError
from flair.files.atomic import beside, destination, remove
from flair.parallel.processes import batches, default_num_workers, map_in_order
from flair.records import preparation
from flair.records.hdf5.groups import Format, GroupWriter, Place, StoredJpeg, groups_of
from flair.records.hdf5.reader import CHECKSUM_DTYPE, HDF5File, record_checksum
from flair.records.hdf5.soft_file import SoftFile, write_at
from flair.terminal.progress import Progress

_DATA_FILE = "data.hdf5"
_IMAGES_PER_TASK = 32  # six megabytes of pixels
_OVERHEAD_BYTES = 2000  # of a photo's ids, labels, group and padding, generously


class _Context(NamedTuple):
    dataset_dir: Path
    file: Path


class _Task(NamedTuple):
    record: Record
    place: Place | None  # of a decoded photo; a JPEG is handed back


class _Read(NamedTuple):
    num_photos: int
    jpegs: list[StoredJpeg]
    converted: list[str]


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
) -> preparation.Outcome:
    """Writes all photos of `dataset_dir` (or a consistent subset of `limit_users` users) to one HDF5 file.

    The photos that the file `exclude` names are left out; see `flair.curation.exclusion`.

    The bytes written depend on the dataset and the flags, never on `num_workers`.

    Raises:
      FlairError: bad metadata, a bad photo (named with its user), other output in the way, too little disk space.
    """
    dataset_dir, final = Path(dataset_dir), Path(output_file)
    if not final.name:
        raise FlairError(f"--output_file={output_file}: is no name of a file; expected one such as flair.hdf5")
    if not final.is_dir():
        final = destination(final)
    layout = Format(image_format, label_format, by_user)
    selection = preparation.select(dataset_dir, limit_users, exclude)
    parameters = {"format": "flair-hdf5", "format_version": 1, **layout._asdict(), **selection.parameters}
    unfinished = beside(final, "unfinished")
    if not overwrite and _is_complete(final, parameters):
        remove(unfinished)
        return preparation.Outcome(selection, final.stat().st_size, already_complete=True)
    num_bytes = images.total_size(dataset_dir, records_of(selection.users))  # refuses where a photo is missing
    if image_format == "raw":
        num_bytes = selection.num_images * images.PIXELS_BYTES
    with preparation.new_folder(unfinished, final):
        preparation.require_free_space(unfinished, num_bytes + _OVERHEAD_BYTES * selection.num_images)
        context = _Context(dataset_dir, unfinished / _DATA_FILE)
        converted = _write(context, selection, layout, parameters, num_workers or default_num_workers())
        os.replace(context.file, final)
        remove(unfinished)
    return preparation.Outcome(selection, final.stat().st_size, converted=converted)


def _write(
    context: _Context, selection: preparation.Selection, layout: Format, parameters: Mapping[str, Any], num_workers: int
) -> list[str]:
    """Writes the file; returns the ids of the photos that were converted."""
    converted: list[str] = []
    num_tasks = math.ceil(selection.num_images / _IMAGES_PER_TASK)

    def read(photos: Iterator[_Task]) -> Iterator[StoredJpeg]:
        with Progress(selection.num_images, "HDF5", "photo") as progress:
            tasks = batches(photos, _IMAGES_PER_TASK, lambda _: 1)
            for done in map_in_order(_read_photos, context, tasks, min(num_workers, num_tasks)):
                converted.extend(done.converted)
                yield from done.jpegs
                output.check()
                progress.add(done.num_photos)

    in_groups = groups_of(selection.users, layout)
    with SoftFile(context.file) as output:
        with h5py.File(output, "w", libver=("earliest", "v110")) as file:
            groups = GroupWriter(file, selection, layout)
            if layout.image_format == "raw":
                places = (task for records in in_groups for task in map(_Task, records, groups.reserve(records)))
                deque(read(places), maxlen=0)
            else:
                jpegs = read(_Task(record, None) for records in in_groups for record in records)
                for records in in_groups:
                    groups.write(records, jpegs)
            groups.write_metadata(parameters)
        output.check()
        output.sync()
    return converted


def _read_photos(context: _Context, tasks: Sequence[_Task]) -> _Read:
    jpegs, converted = [], []
    for record, place in tasks:
        if place is None:
            jpeg, was_converted = images.read_jpeg(context.dataset_dir, record)
            jpegs.append(StoredJpeg(jpeg, record_checksum(record, jpeg)))
        else:
            pixels, was_converted = images.read_pixels(context.dataset_dir, record)
            image = pixels.tobytes()
            checksum = CHECKSUM_DTYPE.type(record_checksum(record, image)).tobytes()
            write_at(context.file, (place.pixels, image), (place.checksum, checksum))
        if was_converted:
            converted.append(record.image_id)
    return _Read(len(tasks), jpegs, converted)


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
    preparation.check_same(parameters, found, f"--output_file={final}: the file there")
    return True
