"""A FLAIR dataset directory turned into TFRecords: one file a user, or shards of many users with an index.

The layout is described in docs/formats.md. Everything is made in `<tfrecords_dir>/.unfinished` and moved to its final
name when all of it is there, so that no reader ever sees half of a dataset. A file has its final bytes or does not
exist; a run that finds files of an earlier one reads them to their end and keeps those that are intact.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c

from flair import checked_json, images
from flair.atomic import remove_leftovers, write_bytes
from flair.catalog import PARTITIONS
from flair.errors import FlairError
from flair.example import Example, MalformedExample, decode, encode
from flair.metadata import Record, User, label_index
from flair.preparation import (
    PARAMETERS_FILE,
    Outcome,
    Selection,
    check_same,
    require_free_space,
    select,
    unfinished_folder,
)
from flair.progress import Progress
from flair.tfrecord import DamagedRecord, frame, read_payloads
from flair.workers import default_num_workers, map_in_order

LAYOUTS = ("per_user", "sharded")
DEFAULT_IMAGES_PER_SHARD = 2000  # 28 MB, 217 files for the full dataset
LABEL_INDEX_FILE = "label_index.json"
USER_INDEX_FILE = "user_index.json"
PARTITION_FOLDERS = {"train": "train", "val": "dev", "test": "test"}
# The names that ml-flair's own code reads.
LINKS = {"label_to_index.json": LABEL_INDEX_FILE, "val": "dev"}
UNFINISHED_FOLDER = ".unfinished"
SUFFIX = ".tfrecords"
_IMAGES_PER_TASK = 256
_OVERHEAD_BYTES = 300  # of a record beside its JPEG, generously


class _Context(NamedTuple):
    dataset_dir: Path
    folder: Path
    labels: dict[str, int]
    fine_grained_labels: dict[str, int]


class _File(NamedTuple):
    name: str  # below the folder, as train/9@N00.tfrecords
    users: tuple[User, ...]


class _Written(NamedTuple):
    locations: list[tuple[int, int]]  # offset and length of each user
    num_images: int
    skipped_images: int
    converted: list[str]


def write_tfrecords(
    dataset_dir: str | Path,
    tfrecords_dir: str | Path,
    *,
    layout: str = "per_user",
    images_per_shard: int = DEFAULT_IMAGES_PER_SHARD,
    limit_users: int | None = None,
    num_workers: int | None = None,
    overwrite: bool = False,
) -> Outcome:
    """Writes all photos of `dataset_dir` (or a consistent subset of `limit_users` users) as TFRecords.

    The bytes written depend on the dataset and the flags, never on `num_workers` or on interruptions.

    Raises:
      FlairError: bad metadata, a bad photo (naming image and user), other output in the way, too little disk space.
    """
    source, final = Path(dataset_dir), Path(tfrecords_dir)
    selection = select(source, limit_users)
    parameters: dict[str, Any] = {"format": "flair-tfrecords", "format_version": 1, "layout": layout}
    if layout == "sharded":
        parameters["images_per_shard"] = images_per_shard
    parameters |= selection.parameters
    unfinished = final / UNFINISHED_FOLDER
    if not overwrite and not unfinished.exists() and _is_complete(final, parameters):
        return Outcome(parameters["num_images"], parameters["num_users"], _total_bytes(final), 0, (), True)
    num_bytes = images.total_size(source, (record for user in selection.users for record in user.records))
    final.mkdir(parents=True, exist_ok=True)
    with unfinished_folder(unfinished, parameters, overwrite) as continued:
        if continued:
            _take_back(final, unfinished)
        else:
            require_free_space(final, num_bytes + _OVERHEAD_BYTES * parameters["num_images"])
        files = _plan(selection.users, layout, images_per_shard)
        context = _Context(source, unfinished, *_label_indexes(selection))
        written = _write_files(context, files, parameters["num_images"], num_workers or default_num_workers())
        _write_indexes(context, files, written, layout, parameters)
        total = _total_bytes(unfinished)
        os.sync()  # once for all files: syncing each of 51,414 would take longer than writing them
        _publish(unfinished, final)
    return Outcome(
        parameters["num_images"],
        parameters["num_users"],
        total,
        sum(file.skipped_images for file in written),
        tuple(image_id for file in written for image_id in file.converted),
    )


def to_example(dataset_dir: str | Path, record: Record, labels: dict[str, int], fine: dict[str, int]) -> tuple[Example, bool]:
    """The photo and labels of `record` as they are stored, and whether the photo was converted from grayscale."""
    jpeg = images.read_jpeg(dataset_dir, record)
    return Example(jpeg.data, *columns(record, labels, fine), record.image_id, record.user_id), jpeg.converted


def columns(record: Record, labels: dict[str, int], fine: dict[str, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The columns of a record's labels, coarse and fine, in the record's order."""
    return tuple(labels[name] for name in record.labels), tuple(fine[name] for name in record.fine_grained_labels)


def _label_indexes(selection: Selection) -> tuple[dict[str, int], dict[str, int]]:
    # Of all users: a subset has the columns of the whole, so that models fit both.
    records = [record for user in selection.all_users for record in user.records]
    return (
        label_index(name for record in records for name in record.labels),
        label_index(name for record in records for name in record.fine_grained_labels),
    )


def _plan(users: Sequence[User], layout: str, images_per_shard: int) -> list[_File]:
    files: list[_File] = []
    for partition in PARTITIONS:
        folder = PARTITION_FOLDERS[partition]
        members = [user for user in users if user.partition == partition]
        if layout == "per_user":
            files += [_File(f"{folder}/{user.user_id}{SUFFIX}", (user,)) for user in members]
        else:
            shards = list(_batches(members, images_per_shard))
            files += [
                _File(f"{folder}/shard-{number:05d}-of-{len(shards):05d}{SUFFIX}", shard)
                for number, shard in enumerate(shards)
            ]
    return files


def _batches(users: Sequence[User], num_images: int) -> Iterator[tuple[User, ...]]:
    batch: list[User] = []
    count = 0
    for user in users:
        batch.append(user)
        count += len(user.records)
        if count >= num_images:
            yield tuple(batch)
            batch, count = [], 0
    if batch:
        yield tuple(batch)


def _write_files(context: _Context, files: Sequence[_File], num_images: int, num_workers: int) -> list[_Written]:
    for folder in PARTITION_FOLDERS.values():
        (context.folder / folder).mkdir(exist_ok=True)
        remove_leftovers(context.folder / folder)
    tasks = list(_tasks(files))
    written: list[_Written] = []
    with Progress(num_images, "TFRecords", "photo") as progress:
        for results in map_in_order(_write_task, context, tasks, min(num_workers, len(tasks))):
            written += results
            progress.add(sum(result.num_images for result in results))
    return written


def _tasks(files: Sequence[_File]) -> Iterator[list[_File]]:
    task: list[_File] = []
    count = 0
    for file in files:
        task.append(file)
        count += sum(len(user.records) for user in file.users)
        if count >= _IMAGES_PER_TASK:
            yield task
            task, count = [], 0
    if task:
        yield task


def _write_task(context: _Context, task: list[_File]) -> list[_Written]:
    return [_read_back(context, file) or _write_file(context, file) for file in task]


def _write_file(context: _Context, file: _File) -> _Written:
    path = context.folder / file.name
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    converted: list[str] = []
    locations: list[tuple[int, int]] = []
    offset = 0
    try:
        with open(temporary, "wb") as output:
            for user in file.users:
                start = offset
                for record in user.records:
                    example, was_converted = to_example(
                        context.dataset_dir, record, context.labels, context.fine_grained_labels
                    )
                    if was_converted:
                        converted.append(record.image_id)
                    offset += output.write(frame(encode(example)))
                locations.append((start, offset - start))
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return _Written(locations, sum(len(user.records) for user in file.users), 0, converted)


def _read_back(context: _Context, file: _File) -> _Written | None:
    path = context.folder / file.name
    locations: list[tuple[int, int]] = []
    offset = 0
    try:
        payloads = read_payloads(path)
        for user in file.users:
            start = offset
            for record in user.records:
                payload = next(payloads)
                found = decode(payload)
                expected = (*columns(record, context.labels, context.fine_grained_labels), *record[1::-1])
                if found[1:] != expected:
                    return None
                offset += len(frame(payload))
            locations.append((start, offset - start))
        if next(payloads, None) is not None:
            return None
    except (FileNotFoundError, DamagedRecord, MalformedExample, StopIteration):
        return None
    num_images = sum(len(user.records) for user in file.users)
    return _Written(locations, num_images, num_images, [])


def _write_indexes(
    context: _Context, files: Sequence[_File], written: Sequence[_Written], layout: str, parameters: dict[str, Any]
) -> None:
    contents = {
        LABEL_INDEX_FILE: json.dumps(
            {"labels": context.labels, "fine_grained_labels": context.fine_grained_labels}, indent=4
        )
    }
    if layout == "sharded":
        for folder in PARTITION_FOLDERS.values():
            entries = [
                f"{json.dumps(user.user_id)}: {json.dumps([file.name.split('/')[1], *location, len(user.records)])}"
                for file, result in zip(files, written, strict=True)
                if file.name.startswith(f"{folder}/")
                for user, location in zip(file.users, result.locations, strict=True)
            ]
            contents[f"{folder}/{USER_INDEX_FILE}"] = "{\n" + ",\n".join(entries) + "\n}"
    checksums = {}
    for name, text in contents.items():
        data = f"{text}\n".encode()
        write_bytes(context.folder / name, data)
        checksums[name] = f"{google_crc32c.value(data):08x}"
    for link, target in LINKS.items():
        (context.folder / link).unlink(missing_ok=True)
        (context.folder / link).symlink_to(target)
    checked_json.write(context.folder / "finished.json", {**parameters, "index_crc32c": checksums})


def _is_complete(final: Path, parameters: dict[str, Any]) -> bool:
    try:
        found = checked_json.read(final / PARAMETERS_FILE)
    except FileNotFoundError:
        in_the_way = [name for name in _final_names() if os.path.lexists(final / name)]
        if in_the_way:
            raise FlairError(
                f"--tfrecords_dir={final}: already has {in_the_way[0]}, not made by this version of this command; "
                "choose another directory, or add --overwrite to replace it"
            ) from None
        return False
    except NotADirectoryError:
        raise FlairError(f"--tfrecords_dir={final}: is a file; expected a directory") from None
    found.pop("index_crc32c", None)
    check_same(parameters, found, f"--tfrecords_dir={final}: the output there")
    return True


def _final_names() -> list[str]:
    return [*PARTITION_FOLDERS.values(), *LINKS, LABEL_INDEX_FILE, PARAMETERS_FILE]


def _publish(unfinished: Path, final: Path) -> None:
    # The parameters go first and come last: readers and later runs take a folder that has them for complete.
    for name in reversed(_final_names()):
        if (unfinished / name).exists() or name == PARAMETERS_FILE:
            _remove_output(final / name)
    for name in _final_names()[:-1]:
        os.replace(unfinished / name, final / name)
    os.replace(unfinished / "finished.json", final / PARAMETERS_FILE)
    (unfinished / PARAMETERS_FILE).unlink()
    unfinished.rmdir()


def _take_back(final: Path, unfinished: Path) -> None:
    # An earlier run was stopped while it published: what it had moved is finished work.
    for name in _final_names()[:-1]:
        if (
            os.path.lexists(final / name)
            and not os.path.lexists(unfinished / name)
            and (unfinished / "finished.json").exists()
        ):
            os.replace(final / name, unfinished / name)


def _remove_output(path: Path) -> None:
    """Removes what this command or ml-flair's may have written there, and nothing else."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        for pattern in (f"*{SUFFIX}", USER_INDEX_FILE):
            for file in path.glob(pattern):
                file.unlink()
        try:
            path.rmdir()
        except OSError:
            raise FlairError(f"{path}: holds other files than records, so it is not replaced; move them away") from None


def _total_bytes(folder: Path) -> int:
    total = 0
    for name in PARTITION_FOLDERS.values():
        total += sum(entry.stat().st_size for entry in os.scandir(folder / name))
    return total


