"""Checks of a folder of TFRecords: exactly the users, photos, labels and bytes of the dataset directory."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

from flair.checks.comparison import Findings, compare_names, compare_photos
from flair.checks.findings import Check
from flair.curation.exclusion import Exclusion
from flair.curation.heldout import hold_out
from flair.dataset import images
from flair.dataset.catalog import HELDOUT, PARTITIONS
from flair.dataset.metadata import User, count_labels, label_index, records_of
from flair.errors import FlairError
from flair.records.preparation import check_exclusion, subset
from flair.records.tfrecord.example import Example
from flair.records.tfrecord.layout import USER_INDEX_FILE, LabelColumns
from flair.records.tfrecord.reader import Span, TFRecords


class _Context(NamedTuple):
    dataset_dir: Path
    folder: Path
    columns: LabelColumns


def check_tfrecords(
    dataset_dir: Path, folder: Path, all_users: Sequence[User], num_workers: int, exclusion: Exclusion | None
) -> list[Check]:
    """Compares the records to the users they were made from, photo by photo."""
    readable = Check("TFRecords: indexes are intact", "folders", 1)
    labels = Check("TFRecords: label columns are those of the metadata", "label files", 1)
    same_users = Check("TFRecords: users are those of the metadata", "users")
    files = Check("TFRecords: no byte lacks a user", "files")
    intact = Check("TFRecords: records pass their checksums", "users")
    same = Check("TFRecords: ids and labels are those of the metadata", "photos")
    same_bytes = Check("TFRecords: photos are those of small_images, byte for byte", "photos")
    columns = LabelColumns(*map(label_index, count_labels(records_of(all_users))))
    try:
        records = TFRecords(folder)
        check_exclusion(records.parameters, exclusion, str(folder))
        users = subset(all_users, records.parameters.get("limit_users"), exclusion)
        partitions: tuple[str, ...] = PARTITIONS
        if "heldout_fraction" in records.parameters:
            partitions = (*PARTITIONS, HELDOUT)
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
    expected = [(user.partition, user.user_id) for user in users]
    there = {(partition, user_id) for partition in spans for user_id in spans[partition]}
    compare_names(expected, there, "user {1} of {0}", same_users)
    pairs = [(user, spans[user.partition][user.user_id]) for user in users if user.user_id in spans[user.partition]]
    context, checks = _Context(dataset_dir, folder, columns), (intact, same, same_bytes)
    compare_photos("TFRecords", _compare, context, pairs, lambda pair: len(pair[0].records), checks, num_workers)
    return [readable, labels, same_users, files, intact, same, same_bytes]


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


def _compare(context: _Context, task: list[tuple[User, Span]]) -> Findings:
    records = TFRecords(context.folder)
    findings = Findings([], [], [])
    for user, span in task:
        try:
            examples = records.read_user(span)
        except FlairError as error:
            findings.damaged.append(str(error))
            continue
        _compare_user(context, user, examples, findings)
    return findings


def _compare_user(context: _Context, user: User, examples: Sequence[Example], findings: Findings) -> None:
    if len(examples) != len(user.records):
        findings.different.append(f"user {user.user_id} has {len(examples)} photos, expected {len(user.records)}")
        return
    for record, example in zip(user.records, examples, strict=True):
        ids_fit = example.image_id in (None, record.image_id) and example.user_id in (None, record.user_id)
        labels_fit = (example.labels, example.fine_grained_labels) == context.columns.of(record)
        has_photo = partial(images.is_stored_as, example.image, context.dataset_dir, record)
        findings.add(record, ids_fit and labels_fit, has_photo)
