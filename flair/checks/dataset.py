"""Checks of a dataset directory: every record, the labels against the taxonomy, the published numbers, the photos."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flair.checks.comparison import compare_photos
from flair.checks.findings import Check
from flair.dataset import catalog, images
from flair.dataset.metadata import (
    Record,
    count_labels,
    load_taxonomy,
    metadata_path,
    parse_record,
    photo_path,
    read_items,
)
from flair.errors import FlairError

_LABELS_NAMED = 3  # of an image with labels that are not in the taxonomy

_OF_PHOTOS: dict[type[images.PhotoError], str] = {
    images.MissingPhoto: "photos exist",
    images.BrokenPhoto: "photos are JPEG and decode in full",
    images.WrongSize: "photos are 256x256",
    images.WrongColors: "photos are RGB",
}


class Metadata(NamedTuple):
    """What can be used of the metadata: the first record of each image id, and every image id that is mentioned."""

    records: list[Record]
    image_ids: frozenset[str]


def check_records(dataset_dir: Path) -> tuple[list[Check], Metadata | None]:
    """Reads all records; None when the file cannot be read at all."""
    readable = Check("metadata is a JSON list of records", "files", 1)
    well_formed = Check("records are well-formed", "records")
    unique = Check("image ids are unique", "image ids")
    one_partition = Check("users are in one partition", "users")
    non_empty = Check("labels are non-empty", "records")
    path = dataset_dir / catalog.METADATA_FILE
    records: dict[str, Record] = {}
    mentioned: set[str] = set()
    partitions: dict[str, str] = {}
    torn: set[str] = set()
    try:
        path = metadata_path(dataset_dir)
        for index, item in enumerate(read_items(path)):
            well_formed.checked += 1
            if isinstance(item, dict) and isinstance(item.get("image_id"), str):
                mentioned.add(item["image_id"])
            try:
                record = _parse_leniently(item, index, path)
            except FlairError as error:
                well_formed.fail(str(error).removeprefix(f"{path}, "))
                continue
            if not (record.labels and record.fine_grained_labels):
                non_empty.fail(f"image {record.image_id}")
            if record.image_id in records:
                unique.fail(f"image {record.image_id} (record {index})")
                continue
            records[record.image_id] = record
            if partitions.setdefault(record.user_id, record.partition) != record.partition:
                if record.user_id not in torn:
                    one_partition.fail(f"user {record.user_id}")
                torn.add(record.user_id)
    except FlairError as error:
        readable.fail(str(error))
        return [readable], None
    if not records:
        readable.fail(f"{path}: has no usable record")
    unique.checked = non_empty.checked = well_formed.checked - well_formed.failures
    one_partition.checked = len(partitions)
    return [readable, well_formed, unique, one_partition, non_empty], Metadata(
        list(records.values()), frozenset(mentioned)
    )


def check_labels(dataset_dir: Path, records: Sequence[Record]) -> list[Check]:
    """Labels against `label_relationship.txt`."""
    readable = Check("taxonomy can be read", "files", 1)
    known = Check("labels are in the taxonomy", "records", len(records))
    mapped = Check("labels are the map of the fine-grained labels", "records", len(records))
    try:
        taxonomy = load_taxonomy(dataset_dir)
    except FlairError as error:
        readable.fail(str(error))
        return [readable]
    coarse_labels = frozenset().union(*taxonomy.values())
    for record in records:
        unknown = [name for name in record.labels if name not in coarse_labels]
        unknown += [name for name in record.fine_grained_labels if name not in taxonomy]
        if unknown:
            more = ", ..." if len(unknown) > _LABELS_NAMED else ""
            known.fail(f"image {record.image_id} ({', '.join(map(repr, unknown[:_LABELS_NAMED]))}{more})")
        elif not _is_mapped(record, taxonomy):
            mapped.fail(f"image {record.image_id}")
    return [readable, known, mapped]


def check_published_numbers(dataset_dir: Path, records: Sequence[Record]) -> list[Check]:
    """The numbers of the published dataset: users, photos, fine-grained labels, and photos per coarse label."""
    check = Check("numbers are the published ones", "numbers")
    for what, found, expected in _numbers(dataset_dir, records):
        check.checked += 1
        if found != expected:
            check.fail(f"{what} {found:,}, expected {expected:,}")
    return [check]


def check_photos(dataset_dir: Path, metadata: Metadata, num_workers: int) -> list[Check]:
    """Decodes every photo; a photo fails at most one of the checks."""
    checks = [Check(name, "photos") for name in _OF_PHOTOS.values()]
    compare_photos("Photos", _inspect, dataset_dir, metadata.records, lambda _: 1, checks, num_workers)
    return [*checks, _check_orphans(dataset_dir, metadata)]


def _numbers(dataset_dir: Path, records: Sequence[Record]) -> Iterator[tuple[str, int, int]]:
    users = Counter({record.user_id: record.partition for record in records}.values())
    photos = Counter(record.partition for record in records)
    for partition in catalog.PARTITIONS:
        yield f"{partition} users", users[partition], catalog.NUM_USERS[partition]
        yield f"{partition} photos", photos[partition], catalog.NUM_IMAGES[partition]
    try:
        yield "fine-grained labels", len(load_taxonomy(dataset_dir)), catalog.NUM_FINE_LABELS
    except FlairError:
        yield "fine-grained labels", 0, catalog.NUM_FINE_LABELS
    coarse, _fine = count_labels(records)
    for name, expected in catalog.COARSE_LABEL_COUNTS.items():
        yield f"photos with {name!r}", coarse[name], expected


def _parse_leniently(item: Any, index: int, path: Path) -> Record:
    """As `parse_record`, but a record may have no labels."""
    empty = [key for key in ("labels", "fine_grained_labels") if isinstance(item, dict) and item.get(key) == []]
    record = parse_record({**item, **{key: ["?"] for key in empty}} if empty else item, index, path)
    return record._replace(
        labels=() if "labels" in empty else record.labels,
        fine_grained_labels=() if "fine_grained_labels" in empty else record.fine_grained_labels,
    )


def _is_mapped(record: Record, taxonomy: Mapping[str, frozenset[str]]) -> bool:
    # A fine label of several coarse ones may stand for any of them.
    possible = [taxonomy[name] for name in record.fine_grained_labels]
    labels = frozenset(record.labels)
    return labels <= frozenset().union(*possible) and all(labels & coarse for coarse in possible)


def _inspect(dataset_dir: Path, records: Sequence[Record]) -> list[list[str]]:
    """The photos that fail each of `_OF_PHOTOS`."""
    failed: dict[type[images.PhotoError], list[str]] = {kind: [] for kind in _OF_PHOTOS}
    for record in records:
        where = f"image {record.image_id} of user {record.user_id}"
        try:
            if images.read_jpeg(dataset_dir, record).converted:
                failed[images.WrongColors].append(where)  # it is grayscale
        except images.PhotoError as error:
            failed[type(error)].append(where)
    return list(failed.values())


def _check_orphans(dataset_dir: Path, metadata: Metadata) -> Check:
    check = Check("no photo lacks a record", "files")
    expected = {photo_path(dataset_dir, image_id).name for image_id in metadata.image_ids}
    folder = dataset_dir / catalog.SMALL_IMAGES_DIR
    try:
        for name in os.listdir(folder) if folder.is_dir() else ():
            check.checked += 1
            if name not in expected:
                check.fail(f"{catalog.SMALL_IMAGES_DIR}/{name}")
    except OSError as error:
        check.fail(f"{catalog.SMALL_IMAGES_DIR} cannot be listed ({error.strerror})")
    return check
