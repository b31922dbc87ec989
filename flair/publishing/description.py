"""Croissant files of what is there already: a dataset directory, record files, or a test set.

A description lies beside what it describes, because its paths are relative. Where that is many thousand files, their
checksums are in `SHA256SUMS` beside it, as `sha256sum --check` reads them; the description has the checksum of that.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from flair.curation.manifest import read_testset
from flair.dataset import catalog, images
from flair.dataset.metadata import load_taxonomy, load_users, photo_path, records_of
from flair.errors import FlairError
from flair.files import atomic
from flair.parallel.processes import batches, map_in_order
from flair.publishing import croissant
from flair.publishing.croissant import Count, Distributed, distributed, file_object
from flair.records.hdf5.reader import HDF5File
from flair.records.preparation import PARAMETERS_FILE
from flair.records.tfrecord import layout
from flair.records.tfrecord.example import FEATURE_NAMES
from flair.records.tfrecord.frames import read_payloads
from flair.records.tfrecord.reader import TFRecords
from flair.terminal.progress import Progress

Found = TypeVar("Found")

CHECKSUMS_FILE = "SHA256SUMS"
_FILES_PER_TASK = 256
_RECORD_FIELDS = ("image_id", "user_id", "labels", "fine_grained_labels", "partition")
_LABEL_FILES = {
    catalog.METADATA_FILE: croissant.JSON,
    catalog.TAXONOMY_FILE: croissant.TEXT,
    catalog.ATTRIBUTION_FILE: croissant.TEXT,
}


class Described(NamedTuple):
    """A description that was written, and what of: files, their bytes, photos and users (None of a test set)."""

    path: Path
    files: int
    size: int
    photos: int
    users: int | None


def describe_dataset(dataset_dir: str | Path, num_workers: int) -> Described:
    """Writes `dataset_dir/croissant.json`; reads every photo. FlairError where metadata or a photo is missing."""
    folder = Path(dataset_dir)
    users = load_users(folder)
    load_taxonomy(folder)
    images.total_size(folder, records_of(users))  # are all of them there?
    counts = croissant.count(users)
    labels = [name for name in _LABEL_FILES if os.path.lexists(folder / name)]
    names = [os.path.relpath(photo_path(folder, record.image_id), folder) for record in records_of(users)]
    looked = _look(folder, [*labels, *names], num_workers, _look_at_files)
    distribution = [file_object(looked[name], _LABEL_FILES[name]) for name in labels]
    distribution += [
        _write_checksums(folder, looked),
        croissant.file_set(catalog.SMALL_IMAGES_DIR, f"{catalog.SMALL_IMAGES_DIR}/*.jpg", croissant.JPEG),
    ]
    metadata = "fileObject", catalog.METADATA_FILE
    records = {name: croissant.source(*metadata, jsonPath=f"[*].{name}") for name in _RECORD_FIELDS}
    photo_files = "fileSet", catalog.SMALL_IMAGES_DIR
    properties = {"image_id": "filename", "image": "content"}
    files = {name: croissant.source(*photo_files, fileProperty=what) for name, what in properties.items()}
    files["image_id"]["source"]["transform"] = {"regex": r"^(.+)\.jpg$"}
    # mlcroissant joins two record sets, but not a file of JSON and a folder of photos.
    joined: dict[str, dict[str, Any]] = {name: {"source": {"field": {"@id": f"records/{name}"}}} for name in records}
    joined["image_id"] |= croissant.reference("files/image_id")
    joined["image"] = {"source": {"field": {"@id": "files/image"}}}
    record_sets = [
        croissant.splits(counts),
        croissant.photos("records", len(names), records, f"What {catalog.METADATA_FILE} says of a photo."),
        croissant.photos("files", len(names), files, "A photo."),
        croissant.photos("photos", len(names), joined, "A photo and what is said of it."),
    ]
    return _write(folder / croissant.FILE, counts, distribution, record_sets, looked)


def describe_tfrecords(tfrecords_dir: str | Path, num_workers: int) -> Described:
    """Writes `tfrecords_dir/croissant.json`; reads every record. FlairError where one fails its checksum."""
    folder = Path(tfrecords_dir)
    records = TFRecords(folder)
    partitions = [name for name in (*catalog.PARTITIONS, catalog.HELDOUT) if records.has_partition(name)]
    spans = {partition: records.users(partition) for partition in partitions}
    files = {
        partition: sorted({os.path.relpath(span.path, folder) for span in spans[partition].values()})
        for partition in partitions
    }
    if not any(files.values()):
        raise FlairError(f"{folder}: holds no records of photos; give a folder that prepare_tfrecords.py made")
    found = _look(folder, [name for names in files.values() for name in names], num_workers, _look_at_records)
    counts = {
        partition: Count(len(spans[partition]), sum(found[name][1] for name in files[partition]))
        for partition in partitions
    }
    indexes = [layout.LABEL_INDEX_FILE, PARAMETERS_FILE]
    indexes += [f"{records.partition_folder(partition).name}/{layout.USER_INDEX_FILE}" for partition in partitions]
    indexes = [name for name in indexes if os.path.isfile(folder / name)]
    looked = {name: file for name, (file, _) in found.items()} | _look(folder, indexes, 1, _look_at_files)
    distribution = [*(file_object(looked[name], croissant.JSON) for name in indexes), _write_checksums(folder, looked)]
    record_sets = [croissant.splits(counts)]
    keys = FEATURE_NAMES[records.parameters.get("feature_names", "flair")]
    features = dict(zip(("image", "labels", "fine_grained_labels"), keys, strict=True))
    features |= {"image_id": "image_id", "user_id": "user_id"}
    for partition in partitions:
        name = records.partition_folder(partition).name
        distribution.append(croissant.file_set(name, f"{name}/*{layout.SUFFIX}", croissant.TFRECORD))
        fields = {field: croissant.source("fileSet", name, column=feature) for field, feature in features.items()}
        fields["partition"] = {"value": partition}
        for labels in ("labels", "fine_grained_labels"):
            fields[labels]["data_type"] = "sc:Integer"
        description = (
            f"The partition {partition}: a tf.train.Example a photo, whose features these are. Labels are columns of "
            f"{layout.LABEL_INDEX_FILE}."
        )
        record_sets.append(croissant.photos(f"photos-{partition}", counts[partition].photos, fields, description))
    return _write(folder / croissant.FILE, counts, distribution, record_sets, looked)


def describe_hdf5(hdf5_file: str | Path) -> Described:
    """Writes `<name>.croissant.json` beside the file; reads every photo. FlairError where one fails its checksum."""
    path = Path(hdf5_file)
    users: dict[str, set[str]] = {}
    photos: Counter[str] = Counter()
    with HDF5File(path) as file, Progress(None, "photos counted", "photo") as progress:
        columns = _hdf5_columns(file)
        for partition in catalog.PARTITIONS:
            for group in file.groups(partition):
                for photo in file.photos(partition, group):
                    users.setdefault(partition, set()).add(photo.record.user_id)
                    photos[partition] += 1
                    progress.add()
    counts = {partition: Count(len(users[partition]), photos[partition]) for partition in users}
    looked = _look(path.parent, [path.name], 1, _look_at_files)
    distribution = [file_object(looked[path.name], croissant.HDF5)]
    fields = {field: croissant.source("fileObject", path.name, column=column) for field, column in columns.items()}
    description = "A record a photo; columns are the paths of HDF5 data sets and groups, as docs/formats.md has them."
    record_sets = [croissant.splits(counts), croissant.photos("photos", photos.total(), fields, description)]
    return _write(path.with_suffix(f".{croissant.FILE}"), counts, distribution, record_sets, looked)


def describe_testset(testset_file: str | Path) -> Described:
    """Writes `<name>.croissant.json` beside the manifest; FlairError where it is none."""
    path = Path(testset_file)
    testset = read_testset(path)
    looked = _look(path.parent, [path.name], 1, _look_at_files)
    fields = {"image_id": croissant.source("fileObject", path.name, jsonPath="image_ids[*]")}
    number = len(testset.image_ids)
    description = (
        f"The photos of the test set {testset.name}, drawn from {testset.partition} by the rule {testset.rule}."
    )
    document = croissant.document(
        testset.name,
        f"{description} It names {number:,} photos of FLAIR and holds none.",
        [file_object(looked[path.name], croissant.JSON)],
        [croissant.photos("photos", number, fields, description)],
    )
    target = path.with_suffix(f".{croissant.FILE}")
    atomic.write_json(target, document)
    return Described(target, 1, looked[path.name].size, number, None)


def _look(
    folder: Path, names: Sequence[str], num_workers: int, look: Callable[[Path, list[str]], list[Found]]
) -> dict[str, Found]:
    """File name -> what `look` found of it."""
    tasks = list(batches(names, _FILES_PER_TASK, lambda name: 1))
    found: list[Found] = []
    with Progress(len(names), "checksums", "file") as progress:
        for results in map_in_order(look, folder, tasks, min(num_workers, len(tasks))):
            found += results
            progress.add(len(results))
    return dict(zip(names, found, strict=True))


def _look_at_files(folder: Path, names: list[str]) -> list[Distributed]:
    return [distributed(folder, name) for name in names]


def _look_at_records(folder: Path, names: list[str]) -> list[tuple[Distributed, int]]:
    counted = [sum(1 for _ in read_payloads(folder / name)) for name in names]
    return list(zip(_look_at_files(folder, names), counted, strict=True))


def _hdf5_columns(file: HDF5File) -> dict[str, str]:
    """Field -> where it is in the file."""
    place, plural = ("/{partition}/{user_id}", "s") if file.by_user else ("/{partition}/{image_id}", "")
    label = "{}_col" if file.text("label_mapping") is not None else "{}"
    columns = {"image": f"{place}/image{plural}"}
    columns |= {name: f"{place}/{label.format(name)}" for name in ("labels", "fine_grained_labels")}
    columns |= {"image_id": f"{place}/image_ids"} if file.by_user else {"image_id": place}
    columns |= {"user_id": place if file.by_user else f"{place}/user_id", "partition": "/{partition}"}
    return columns


def _write_checksums(folder: Path, looked: Mapping[str, Distributed]) -> dict[str, Any]:
    text = "".join(f"{file.sha256}  {name}\n" for name, file in looked.items())
    atomic.write_text(folder / CHECKSUMS_FILE, text)
    return file_object(distributed(folder, CHECKSUMS_FILE), croissant.TEXT)


def _write(
    path: Path,
    counts: Mapping[str, Count],
    distribution: Sequence[dict[str, Any]],
    record_sets: Sequence[dict[str, Any]],
    looked: Mapping[str, Distributed],
) -> Described:
    atomic.write_json(path, croissant.document("flair", croissant.describe(counts), distribution, record_sets))
    total = croissant.total(counts)
    return Described(path, len(looked), sum(file.size for file in looked.values()), total.photos, total.users)
