"""Checks of an HDF5 file: exactly the users, photos, labels and bytes (or pixels) of the dataset directory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flair.checks.comparison import Findings, compare_names, compare_photos
from flair.checks.findings import Check
from flair.curation.exclusion import Exclusion
from flair.dataset import images
from flair.dataset.catalog import PARTITIONS
from flair.dataset.metadata import Record, User, count_labels, label_index, records_of
from flair.errors import FlairError
from flair.files.json_text import BadJson, parse
from flair.records.hdf5.reader import HDF5File, Photo
from flair.records.preparation import check_exclusion, subset


class _Context(NamedTuple):
    dataset_dir: Path
    path: Path


class _Group(NamedTuple):
    partition: str
    name: str
    records: tuple[Record, ...]


def check_hdf5(
    dataset_dir: Path, path: Path, all_users: Sequence[User], num_workers: int, exclusion: Exclusion | None
) -> list[Check]:
    """Compares the file to the users it was made from, photo by photo."""
    readable = Check("HDF5: the file can be read", "files", 1)
    same_groups = Check("HDF5: users and images are those of the metadata", "groups")
    labels = Check("HDF5: label counts or columns are those of the metadata", "lists")
    intact = Check("HDF5: photos can be read and pass their checksums", "groups")
    same = Check("HDF5: ids and labels are those of the metadata", "photos")
    same_images = Check("HDF5: photos are those of small_images", "photos")
    try:
        with HDF5File(path) as file:
            check_exclusion(file.parameters, exclusion, str(path))
            users = subset(all_users, file.parameters.get("limit_users"), exclusion)
            groups = _match_groups(file, users, same_groups)
            _check_lists(file, users, all_users, labels)
    except FlairError as error:
        readable.fail(str(error))
        return [readable]
    context, checks = _Context(dataset_dir, path), (intact, same, same_images)
    try:
        compare_photos("HDF5", _compare, context, groups, lambda group: len(group.records), checks, num_workers)
    except FlairError as error:
        intact.fail(str(error))
    return [readable, same_groups, labels, intact, same, same_images]


def _match_groups(file: HDF5File, users: Sequence[User], check: Check) -> list[_Group]:
    if file.by_user:
        expected = [_Group(user.partition, user.user_id, user.records) for user in users]
    else:
        expected = [_Group(record.partition, record.image_id, (record,)) for record in records_of(users)]
    found = {(partition, name) for partition in PARTITIONS for name in file.groups(partition)}
    compare_names([group[:2] for group in expected], found, "{}/{}", check)
    return [group for group in expected if group[:2] in found]


def _check_lists(file: HDF5File, users: Sequence[User], all_users: Sequence[User], check: Check) -> None:
    totals, counts = count_labels(records_of(all_users)), count_labels(records_of(users))
    for prefix, total, count in zip(("", "fine_grained_"), totals, counts, strict=True):
        expected = {
            f"{prefix}label_counter": {name: count[name] for name in total},
            f"{prefix}label_mapping": label_index(total),
        }
        texts = {name: file.text(name) for name in expected}
        check.checked += 1
        if not any(texts.values()):
            check.fail(f"metadata/{prefix}label_counter is missing")
        for name, text in texts.items():
            if text is not None and not _is_json_of(text, expected[name]):
                check.fail(f"metadata/{name}")


def _is_json_of(text: str, value: object) -> bool:
    try:
        return bool(parse(text) == value)
    except BadJson:
        return False


def _compare(context: _Context, task: list[_Group]) -> Findings:
    findings = Findings([], [], [])
    with HDF5File(context.path) as file:
        for group in task:
            try:
                _compare_group(context, file, group, findings)
            except FlairError as error:
                findings.damaged.append(str(error))
    return findings


def _compare_group(context: _Context, file: HDF5File, group: _Group, findings: Findings) -> None:
    count = 0
    for count, photo in enumerate(file.photos(group.partition, group.name), start=1):
        if count > len(group.records):
            break
        record = group.records[count - 1]
        findings.add(record, photo.record == record, partial(_is_same_image, context.dataset_dir, record, photo))
    if count != len(group.records):
        findings.different.append(f"{group.partition}/{group.name} has not {len(group.records)} photos")


def _is_same_image(dataset_dir: Path, record: Record, photo: Photo) -> bool:
    if photo.image.shape == images.PIXELS_SHAPE:
        return bool(np.array_equal(photo.image, images.read_pixels(dataset_dir, record).data))
    return images.is_stored_as(photo.image.tobytes(), dataset_dir, record)
