"""Checks of a folder of TFRecords: exactly the users, photos, labels and bytes of the dataset directory."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from flair.checks.findings import Check
from flair.curation.exclusion import Exclusion
from flair.curation.heldout import hold_out
from flair.dataset import images
from flair.dataset.catalog import HELDOUT, PARTITIONS
from flair.dataset.metadata import User, label_index
from flair.errors import FlairError
from flair.parallel.processes import batches, map_in_order
from flair.records.preparation import check_exclusion, subset
from flair.records.tfrecord.example import Example
from flair.records.tfrecord.layout import USER_INDEX_FILE, LabelColumns
from flair.records.tfrecord.reader import Span, TFRecords
from flair.terminal.progress import Progress

_PHOTOS_PER_TASK = 512


class _Context(NamedTuple):
    dataset_dir: Path
    folder: Path
    columns: LabelColumns


class _Findings(NamedTuple):
    damaged: list[str]
    different: list[str]
    wrong_bytes: list[str]
    num_photos: int


def check_tfrecords(
    dataset_dir: Path, folder: Path, all_users: Sequence[User], num_workers: int, exclusion: Exclusion | None = None
) -> list[Check]:
    """Compares the records to the users they were made from, photo by photo."""
    readable = Check("TFRecords: indexes are intact", "folders", 1)
    labels = Check("TFRecords: label columns are those of the metadata", "label files", 1)
    same_users = Check("TFRecords: users are those of the metadata", "users")
    files = Check("TFRecords: no byte lacks a user", "files")
    intact = Check("TFRecords: records pass their checksums", "users")
    same = Check("TFRecords: ids and labels are those of the metadata", "photos")
    same_bytes = Check("TFRecords: photos are those of small_images, byte for byte", "photos")
    columns = _columns(all_users)
    try:
        records = TFRecords(folder)
        check_exclusion(records.parameters, exclusion, str(folder))
        users = subset(all_users, records.parameters.get("limit_users"), exclusion)
        partitions = [*PARTITIONS, *([HELDOUT] if "heldout_fraction" in records.parameters else [])]
        if HELDOUT in partitions:
            fraction = Fraction(records.parameters["heldout_fraction"])
            split = hold_out(users, fraction, records.parameters["heldout_seed"], exclusion)
            users = [*split.users, *split.heldout]
        spans = {partition: records.users(partition) for partition in partitions}
        if records.columns not in (None, columns):
            labels.fail("label_index.json")
        _check_files(records, spans, files)
    except FlairError as error:
        readable.fail(str(error))
        return [readable]
    found = _match_users(users, spans, same_users)
    tasks = list(batches(found, _PHOTOS_PER_TASK, lambda pair: len(pair[0].records)))
    with Progress(sum(len(user.records) for user, _span in found), "TFRecords", "photo") as progress:
        context = _Context(dataset_dir, folder, columns)
        for findings in map_in_order(_compare, context, tasks, min(num_workers, len(tasks))):
            for check, examples in zip((intact, same, same_bytes), findings[:3], strict=True):
                for example in examples:
                    check.fail(example)
            same.checked += findings.num_photos
            progress.add(findings.num_photos)
    intact.checked, same_bytes.checked = len(found), same.checked
    return [readable, labels, same_users, files, intact, same, same_bytes]


def _columns(users: Sequence[User]) -> LabelColumns:
    records = [record for user in users for record in user.records]
    return LabelColumns(
        label_index(name for record in records for name in record.labels),
        label_index(name for record in records for name in record.fine_grained_labels),
    )


def _check_files(records: TFRecords, spans: dict[str, dict[str, Span]], check: Check) -> None:
    for partition in spans:
        ends: dict[str, list[tuple[int, int | None]]] = defaultdict(list)
        for span in spans[partition].values():
            offset, num_bytes = span.location[:2] if span.location else (0, None)
            ends[span.path.name].append((offset, num_bytes))
        with os.scandir(records.partition_folder(partition)) as entries:
            for entry in entries:
                if entry.name == USER_INDEX_FILE:
                    continue
                check.checked += 1
                size = _file_size(entry)
                if size is None and entry.name in ends:
                    continue  # reading its users fails
                if not _covers(sorted(ends[entry.name]), size or 0):
                    check.fail(f"{records.partition_folder(partition).name}/{entry.name}")


def _file_size(entry: os.DirEntry[str]) -> int | None:
    """Bytes of a file; None for a folder, or a link that leads nowhere."""
    try:
        status = entry.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _covers(pieces: list[tuple[int, int | None]], size: int) -> bool:
    end = 0
    for offset, num_bytes in pieces:
        if offset != end:
            return False
        end = size if num_bytes is None else offset + num_bytes
    return bool(pieces) and end == size


def _match_users(users: Sequence[User], spans: dict[str, dict[str, Span]], check: Check) -> list[tuple[User, Span]]:
    missing_from_metadata = {(partition, user_id) for partition in spans for user_id in spans[partition]}
    found = []
    check.checked = len(users)
    for user in users:
        span = spans[user.partition].get(user.user_id)
        if span is None:
            check.fail(f"user {user.user_id} of {user.partition} is missing")
        else:
            missing_from_metadata.discard((user.partition, user.user_id))
            found.append((user, span))
    for partition, user_id in sorted(missing_from_metadata):
        check.fail(f"user {user_id} of {partition} does not belong there")
    return found


def _compare(context: _Context, task: list[tuple[User, Span]]) -> _Findings:
    records = TFRecords(context.folder)
    findings = _Findings([], [], [], sum(len(user.records) for user, _span in task))
    for user, span in task:
        try:
            examples = records.read_user(span)
        except FlairError as error:
            findings.damaged.append(str(error))
            continue
        _compare_user(context, user, examples, findings)
    return findings


def _compare_user(context: _Context, user: User, examples: Sequence[Example], findings: _Findings) -> None:
    if len(examples) != len(user.records):
        findings.different.append(f"user {user.user_id} has {len(examples)} photos, expected {len(user.records)}")
        return
    for record, example in zip(user.records, examples, strict=True):
        ids_fit = example.image_id in (None, record.image_id) and example.user_id in (None, record.user_id)
        if not ids_fit or (example.labels, example.fine_grained_labels) != context.columns.of(record):
            findings.different.append(f"image {record.image_id} of user {record.user_id}")
        try:
            if not images.is_stored_as(example.image, context.dataset_dir, record):
                findings.wrong_bytes.append(f"image {record.image_id} of user {record.user_id}")
        except images.PhotoError:
            continue  # counted by the checks of the photos
