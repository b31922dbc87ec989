"""A FLAIR dataset directory turned into TFRecords: one file per user, or shards of many users with an index.

Everything is made in `<tfrecords_dir>/.unfinished` and moved to its final name when all of it is there, so that no
reader ever sees half of a dataset. There, a file has its final bytes or does not exist; a run that finds files of an
earlier one reads them to their end and keeps those that are intact.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c

from flair.dataset import images
from flair.dataset.catalog import HELDOUT
from flair.dataset.metadata import count_labels, label_index, records_of
from flair.errors import FlairError
from flair.files import checked_json
from flair.files.atomic import beside, remove, remove_leftovers, sync, write_bytes
from flair.parallel.processes import batches, default_num_workers, map_in_order
from flair.records import preparation
from flair.records.preparation import PARAMETERS_FILE
from flair.records.tfrecord.example import Example, MalformedExample, decode, encode
from flair.records.tfrecord.frames import FRAME_BYTES, DamagedRecord, frame, read_payloads
from flair.records.tfrecord.layout import (
    ALL_FOLDERS,
    DEFAULT_IMAGES_PER_SHARD,
    LABEL_INDEX_FILE,
    LINKS,
    PARTITION_FOLDERS,
    SUFFIX,
    USER_INDEX_FILE,
    LabelColumns,
    RecordFile,
    label_index_text,
    plan_files,
    user_index_text,
)
from flair.terminal.progress import Progress

_IMAGES_PER_TASK = 256
_OVERHEAD_BYTES = 300  # of a record beside its JPEG, generously
_MAX_SYNCED_FILES = 1000
_UNFINISHED_FOLDER = ".unfinished"
_FINISHED_FILE = "finished.json"  # becomes PARAMETERS_FILE of the published folder
_NAMES = (*PARTITION_FOLDERS.values(), *LINKS, LABEL_INDEX_FILE)
_ALL_NAMES = (*_NAMES, HELDOUT)


class _Context(NamedTuple):
    dataset_dir: Path
    folder: Path
    columns: LabelColumns
    feature_names: str


class _Written(NamedTuple):
    sizes: list[int]  # in bytes, of each record of a file
    converted: list[str]
    was_there: bool = False


def write_tfrecords(
    dataset_dir: str | Path,
    tfrecords_dir: str | Path,
    *,
    layout: str = "per_user",
    images_per_shard: int = DEFAULT_IMAGES_PER_SHARD,
    feature_names: str = "flair",
    limit_users: int | None = None,
    exclude: str | Path | None = None,
    heldout_fraction: Fraction = Fraction(0),
    seed: int = 0,
    num_workers: int | None = None,
    overwrite: bool = False,
) -> preparation.Outcome:
    """Writes all photos of `dataset_dir` (or a consistent subset of `limit_users` users) as TFRecords.

    `feature_names` is one of `example.FEATURE_NAMES`; `tff` is for files of one user each, as TFF reads them.
    The photos that the file `exclude` names are left out; see `flair.curation.exclusion`. Of each train user's photos,
    `heldout_fraction` goes to a partition of its own, by `seed`; see `flair.curation.heldout`.

    The bytes written depend on the dataset and the flags, never on `num_workers` or on interruptions.

    Raises:
      FlairError: bad metadata, a bad photo (named with its user), other output in the way, too little disk space.
    """
    dataset_dir = Path(dataset_dir)
    _check_place(Path(tfrecords_dir))
    selection = preparation.select(dataset_dir, limit_users, exclude)
    parameters: dict[str, Any] = {"format": "flair-tfrecords", "format_version": 1, "layout": layout}
    if layout == "sharded":
        parameters["images_per_shard"] = images_per_shard
    if feature_names != "flair":
        if layout != "per_user":
            raise FlairError(f"--feature_names={feature_names}: TFF reads one file a user; leave --layout={layout} out")
        parameters["feature_names"] = feature_names
    split, aside = preparation.put_aside(selection, heldout_fraction, seed)
    parameters |= {**selection.parameters, **aside}
    num_heldout = sum(1 for _ in records_of(split.heldout))
    output = _Output(Path(tfrecords_dir), with_heldout=bool(split.heldout))
    if not overwrite and output.is_complete(parameters):
        return preparation.Outcome(selection, output.num_bytes(), already_complete=True, heldout_images=num_heldout)
    num_bytes = images.total_size(dataset_dir, records_of(selection.users))
    with preparation.unfinished_folder(output.unfinished, parameters, overwrite) as continued:
        if continued:
            output.take_back()
        else:
            preparation.require_free_space(output.unfinished, num_bytes + _OVERHEAD_BYTES * selection.num_images)
        # Of all users: a subset has the columns of the whole, so that models fit both.
        columns = LabelColumns(*map(label_index, count_labels(records_of(selection.all_users))))
        context = _Context(dataset_dir, output.unfinished, columns, feature_names)
        files = plan_files([*split.users, *split.heldout], layout, images_per_shard)
        written = _write_files(context, files, num_workers or default_num_workers())
        _write_indexes(context, files, written, parameters)
        _sync([context.folder / file.name for file in files])
        output.publish()
    return preparation.Outcome(
        selection,
        sum(sum(file.sizes) for file in written),
        skipped_images=sum(len(file.sizes) for file in written if file.was_there),
        converted=[image_id for file in written for image_id in file.converted],
        heldout_images=num_heldout,
    )


def _check_place(folder: Path) -> None:
    names = set(os.listdir(folder)) if folder.is_dir() else set()
    # An export of parquet files has the file of parameters, too.
    known = {LABEL_INDEX_FILE, *LINKS, _UNFINISHED_FOLDER, *ALL_FOLDERS}
    if names and not names & known:
        raise FlairError(
            f"--tfrecords_dir={folder}: is not empty and holds no TFRecords of FLAIR; give a new folder or an empty one"
        )


def _write_files(context: _Context, files: Sequence[RecordFile], num_workers: int) -> list[_Written]:
    for folder in _folders(files):
        (context.folder / folder).mkdir(exist_ok=True)
        remove_leftovers(context.folder / folder)
    tasks = list(batches(files, _IMAGES_PER_TASK, lambda file: file.num_images))
    written: list[_Written] = []
    with Progress(sum(file.num_images for file in files), "TFRecords", "photo") as progress:
        for results in map_in_order(_write_task, context, tasks, min(num_workers, len(tasks))):
            written += results
            progress.add(sum(len(result.sizes) for result in results))
    return written


def _write_task(context: _Context, task: list[RecordFile]) -> list[_Written]:
    return [_read_back(context, file) or _write_file(context, file) for file in task]


def _write_file(context: _Context, file: RecordFile) -> _Written:
    path = context.folder / file.name
    temporary = beside(path, f"{os.getpid()}.tmp")
    sizes, converted = [], []
    try:
        with preparation.naming(path), open(temporary, "wb") as output:
            for record in records_of(file.users):
                jpeg = images.read_jpeg(context.dataset_dir, record)
                if jpeg.converted:
                    converted.append(record.image_id)
                example = Example(jpeg.data, *context.columns.of(record), record.image_id, record.user_id)
                sizes.append(output.write(frame(encode(example, context.feature_names))))
        # Not synced, one by one, as flair.files.atomic does: for 51,414 files that takes longer than writing them.
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return _Written(sizes, converted)


def _read_back(context: _Context, file: RecordFile) -> _Written | None:
    """What an earlier run has written there, or None when it is missing or not exactly this."""
    sizes, converted = [], []
    try:
        payloads = read_payloads(context.folder / file.name)
        for record in records_of(file.users):
            payload = next(payloads)
            example = decode(payload)
            if example[1:] != (*context.columns.of(record), record.image_id, record.user_id):
                return None
            if len(example.image) != images.stored_size(context.dataset_dir, record):
                converted.append(record.image_id)
            sizes.append(len(payload) + FRAME_BYTES)
        if next(payloads, None) is not None:
            return None
    except (FileNotFoundError, DamagedRecord, MalformedExample, StopIteration):
        return None
    return _Written(sizes, converted, was_there=True)


def _write_indexes(
    context: _Context, files: Sequence[RecordFile], written: Sequence[_Written], parameters: dict[str, Any]
) -> None:
    contents = {LABEL_INDEX_FILE: label_index_text(context.columns)}
    if parameters["layout"] == "sharded":
        for folder in _folders(files):
            rows = [row for row, file in enumerate(files) if file.name.startswith(f"{folder}/")]
            contents[f"{folder}/{USER_INDEX_FILE}"] = user_index_text(
                [files[row] for row in rows], [written[row].sizes for row in rows]
            )
    checksums = {}
    for name, text in contents.items():
        write_bytes(context.folder / name, text.encode())
        checksums[name] = f"{google_crc32c.value(text.encode()):08x}"
    for link, target in LINKS.items():
        (context.folder / link).unlink(missing_ok=True)
        (context.folder / link).symlink_to(target)
    checked_json.write(context.folder / _FINISHED_FILE, {**parameters, "index_crc32c": checksums})


def _folders(files: Sequence[RecordFile]) -> list[str]:
    """The folders of the partitions, that of photos put aside only where there are some."""
    used = {file.name.partition("/")[0] for file in files}
    return [folder for folder in ALL_FOLDERS.values() if folder in used or folder in PARTITION_FOLDERS.values()]


def _sync(paths: Sequence[Path]) -> None:
    """Waits until the files are on disk, before they get names that promise it."""
    if len(paths) > _MAX_SYNCED_FILES:
        os.sync()
        return
    for path in paths:
        with open(path, "rb") as file:
            sync(file.fileno())


class _Output:
    """The folder `final`, and `final/.unfinished` where the records are made.

    Publishing moves a handful of names. PARAMETERS_FILE leaves first and comes last, so a folder that has it is whole;
    a publication that was interrupted is taken back and done again. `with_heldout` says whether photos are put aside.
    """

    def __init__(self, final: Path, with_heldout: bool) -> None:
        self.final, self.unfinished = final, final / _UNFINISHED_FOLDER
        self._names = _ALL_NAMES if with_heldout else _NAMES

    def is_complete(self, parameters: Mapping[str, Any]) -> bool:
        """Whether the output is there already, made with these parameters; FlairError if other output is there."""
        if self.final.exists() and not self.final.is_dir():
            raise FlairError(f"--tfrecords_dir={self.final}: is a file; expected a directory")
        if (self.final / PARAMETERS_FILE).exists():
            found = checked_json.read(self.final / PARAMETERS_FILE)
            found.pop("index_crc32c", None)
            preparation.check_same(parameters, found, f"--tfrecords_dir={self.final}: the output there")
            remove(self.unfinished)
            return True
        in_the_way = [name for name in _ALL_NAMES if os.path.lexists(self.final / name)]
        if in_the_way and not self._was_publishing():
            raise FlairError(
                f"--tfrecords_dir={self.final}: already has {in_the_way[0]}, not made by this version of this command; "
                "choose another directory, or add --overwrite to replace it"
            )
        return False

    def num_bytes(self) -> int:
        """Size of all published files of records."""
        folders = [self.final / name for name in ALL_FOLDERS.values() if name in self._names]
        return sum(entry.stat().st_size for folder in folders for entry in os.scandir(folder))

    def publish(self) -> None:
        """Replaces what is published by what is in the unfinished folder, and removes that."""
        for name in (PARAMETERS_FILE, *_ALL_NAMES):
            _remove_output(self.final / name)
        for name in self._names:
            os.replace(self.unfinished / name, self.final / name)
        os.replace(self.unfinished / _FINISHED_FILE, self.final / PARAMETERS_FILE)
        remove(self.unfinished)

    def take_back(self) -> None:
        """Undoes a publication that was interrupted."""
        if self._was_publishing():
            for name in self._names:
                if os.path.lexists(self.final / name) and not os.path.lexists(self.unfinished / name):
                    os.replace(self.final / name, self.unfinished / name)

    def _was_publishing(self) -> bool:
        return (self.unfinished / _FINISHED_FILE).exists()


def _remove_output(path: Path) -> None:
    """Removes what this command, or ml-flair's, may have written there, and nothing else."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        for pattern in (f"*{SUFFIX}", USER_INDEX_FILE):
            for file in path.glob(pattern):
                file.unlink()
        if any(path.iterdir()):
            raise FlairError(f"{path}: holds other files than records, so it is not replaced; move them away")
        path.rmdir()
