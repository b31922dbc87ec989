"""FLAIR as parquet files in Hugging Face's layout, with all that lies beside them there.

Everything is made in a hidden folder beside the output and gets its name in one rename. There, a finished file has its
checksum written down; a run that continues an earlier one compares, and writes no finished file again. Columns and
number of files: https://huggingface.co/datasets/apple/flair.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from flair.curation.manifest import Testset, manifest_path, read_testset
from flair.dataset import catalog, images
from flair.dataset.metadata import Record, User, load_taxonomy, records_of
from flair.errors import FlairError
from flair.files import atomic, checked_json
from flair.files.regular_file import file_sha256, read_bytes
from flair.parallel.processes import default_num_workers, map_in_order
from flair.publishing import croissant
from flair.publishing.card import COLUMNS, DEFAULT_CONFIG, dataset_card
from flair.publishing.croissant import Count, Distributed, distributed, file_object
from flair.records import preparation
from flair.terminal.progress import Progress

_PHOTOS_PER_ROW_GROUP = 250  # some 3.5 MB, of which a few for each process are in memory
_OVERHEAD_BYTES = 300  # of a row beside its photo, generously
_FINISHED_FOLDER = ".finished"
# As the `datasets` library spells the types of columns, so that it knows of the photos without the card.
_FEATURES: dict[str, Any] = {
    "string": {"dtype": "string", "_type": "Value"},
    "int64": {"dtype": "int64", "_type": "Value"},
    "strings": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "Sequence"},
    "image": {"_type": "Image"},
}


class Shard(NamedTuple):
    """One parquet file: its path below the output, and its photos in order."""

    name: str
    records: tuple[Record, ...]

    def row_groups(self) -> Iterator[tuple[Record, ...]]:
        """Its photos as they are read and written together."""
        for start in range(0, len(self.records), _PHOTOS_PER_ROW_GROUP):
            yield self.records[start : start + _PHOTOS_PER_ROW_GROUP]


def export_parquet(
    dataset_dir: str | Path,
    output_dir: str | Path,
    *,
    testsets: Sequence[str] = (),
    testsets_dir: str | Path = "testsets",
    limit_users: int | None = None,
    exclude: str | Path | None = None,
    heldout_fraction: Fraction = Fraction(0),
    seed: int = 0,
    num_workers: int | None = None,
    overwrite: bool = False,
) -> preparation.Outcome:
    """Writes the photos of `dataset_dir`, user after user, as `data/<partition>-NNNNN-of-NNNNN.parquet`.

    A photo's bytes are those of its file. `limit_users`, `exclude`, `heldout_fraction` and `seed` are as in
    `flair.records.tfrecord.writer.write_tfrecords`, and choose the same photos. Each of `testsets`, by name or file,
    becomes `testsets/<name>.parquet`, a configuration of that name. The bytes depend on the dataset, the flags and the
    version of pyarrow, never on `num_workers` or on interruptions.

    Raises:
      FlairError: bad metadata, a bad photo (named with its user), an id that is no number, a test set of other photos,
        other output in the way, too little disk space.
    """
    dataset_dir, output_dir = Path(dataset_dir), _own_folder(Path(output_dir))
    selection = preparation.select(dataset_dir, limit_users, exclude)
    split, aside = preparation.put_aside(selection, heldout_fraction, seed)
    users = [*split.users, *split.heldout]
    sets = _read_testsets(testsets, testsets_dir)
    parameters = {"format": "flair-parquet", "format_version": 1, **selection.parameters, **aside}
    parameters["testsets"] = {testset.name: file_sha256(path) for path, testset in sets.items()}
    num_heldout = sum(1 for _ in records_of(split.heldout))
    if not overwrite and _is_complete(output_dir, parameters):
        size = sum(path.stat().st_size for path in output_dir.glob("*/*.parquet"))
        return preparation.Outcome(selection, size, already_complete=True, heldout_images=num_heldout)
    shards = [*plan_shards(users), *(_testset_shard(testset, users, path) for path, testset in sets.items())]
    _check_image_ids(users)
    load_taxonomy(dataset_dir)
    num_bytes = images.total_size(dataset_dir, itertools.chain.from_iterable(shard.records for shard in shards))
    unfinished = atomic.beside(output_dir, "unfinished")
    with preparation.unfinished_folder(unfinished, parameters, overwrite) as continued:
        if not continued:
            num_photos = sum(len(shard.records) for shard in shards)
            preparation.require_free_space(unfinished, num_bytes + _OVERHEAD_BYTES * num_photos)
        files, kept = _write_shards(dataset_dir, unfinished, shards, num_workers or default_num_workers())
        _write_beside(dataset_dir, unfinished, sets, croissant.count(users), files)
        _publish(unfinished, output_dir)
    return preparation.Outcome(
        selection,
        sum(file.size for file in files),
        skipped_images=kept,
        heldout_images=num_heldout,
    )


def plan_shards(users: Sequence[User]) -> list[Shard]:
    """As many files for each partition as on Hugging Face, of equally many photos, user after user.

    A user's photos may go on in the next file. With fewer photos than that there is a file for each: the `datasets`
    library fails at a file without rows.
    """
    shards = []
    for partition in (*catalog.PARTITIONS, catalog.HELDOUT):
        records = tuple(records_of(user for user in users if user.partition == partition))
        count = min(catalog.HUGGINGFACE_SHARDS.get(partition, 1), len(records))
        for index in range(count):
            start, stop = (number * len(records) // count for number in (index, index + 1))
            shards.append(Shard(f"data/{partition}-{index:05d}-of-{count:05d}.parquet", records[start:stop]))
    return shards


def _read_testsets(names: Sequence[str], folder: str | Path) -> dict[Path, Testset]:
    sets = {path: read_testset(path) for path in (manifest_path(name, folder) for name in names)}
    taken = {DEFAULT_CONFIG}
    for path, testset in sets.items():
        if not testset.is_valid:
            raise FlairError(f"{path}: is marked is_valid: false, so it is not exported; draw it with other parameters")
        if testset.name in taken:
            raise FlairError(
                f"{path}: its name {testset.name!r} is taken; give each test set once, with a name of its own"
            )
        taken.add(testset.name)
    return sets


def _testset_shard(testset: Testset, users: Sequence[User], path: Path) -> Shard:
    wanted = frozenset(testset.image_ids)
    records = tuple(
        record
        for record in records_of(user for user in users if user.partition == testset.partition)
        if record.image_id in wanted
    )
    if len(records) != len(wanted):
        example = min(wanted.difference(record.image_id for record in records))
        heldout = "take --heldout_fraction as its records did" if testset.partition == catalog.HELDOUT else ""
        raise FlairError(
            f"{path}: {len(wanted) - len(records):,} of its {len(wanted):,} photos, such as {example}, are not among "
            f"the exported photos of {testset.partition}; {heldout or 'give the --dataset_dir it was drawn from'}, and "
            "leave no photo of it out by --limit_users or --exclude"
        )
    return Shard(f"testsets/{testset.name}.parquet", records)


def _check_image_ids(users: Sequence[User]) -> None:
    for record in records_of(users):
        image_id = record.image_id
        if not (image_id.isdigit() and str(int(image_id)) == image_id and int(image_id) < 1 << 63):
            raise FlairError(
                f"image {image_id} of user {record.user_id}: its id is no whole number, as the column image_id has "
                "to hold; prepare_dataset.py takes such a data set"
            )


def _own_folder(output_dir: Path) -> Path:
    """The folder itself where a link is given; FlairError where it has no name that could be given to another."""
    if output_dir.name in ("", ".."):
        raise FlairError(
            f"--output_dir={output_dir}: expected the name of a new folder, which appears when it is complete"
        )
    return output_dir.resolve() if output_dir.is_symlink() else output_dir


def _is_complete(output_dir: Path, parameters: Mapping[str, Any]) -> bool:
    """Whether the output is there already, made with these parameters; FlairError if anything else is there."""
    if not output_dir.is_dir():
        if os.path.lexists(output_dir):
            raise FlairError(f"--output_dir={output_dir}: is a file; expected a folder, or a new name")
        return False
    if not any(output_dir.iterdir()):
        return False
    _require_export(output_dir)
    found = checked_json.read(output_dir / preparation.PARAMETERS_FILE)
    preparation.check_same(parameters, found, f"--output_dir={output_dir}: the output there")
    for left in (output_dir / _FINISHED_FOLDER, *(atomic.beside(output_dir, mark) for mark in ("unfinished", "old"))):
        atomic.remove(left)
    return True


def _require_export(output_dir: Path) -> None:
    # A folder of TFRecords has both of these files, too, once it is described.
    files = (output_dir / preparation.PARAMETERS_FILE, output_dir / croissant.FILE)
    if not all(file.is_file() for file in files) or not any(output_dir.glob("data/*.parquet")):
        raise FlairError(
            f"--output_dir={output_dir}: is not empty and no export of FLAIR; give a new folder or an empty one"
        )


def _write_shards(
    dataset_dir: Path, folder: Path, shards: Sequence[Shard], num_workers: int
) -> tuple[list[Distributed], int]:
    """Writes the files that are not there, or not as they were finished; returns all, and the photos of the others."""
    for place in {path.parent for shard in shards for path in (folder / shard.name, _note(folder, shard))}:
        place.mkdir(exist_ok=True)
        atomic.remove_leftovers(place)
    with Progress(sum(len(shard.records) for shard in shards), "parquet", "photo") as progress:
        there = {shard.name: _finished(folder, shard) for shard in shards}
        kept = sum(len(shard.records) for shard in shards if there[shard.name])
        progress.add(kept)
        groups = [group for shard in shards if not there[shard.name] for group in shard.row_groups()]
        photos = map_in_order(_read_photos, dataset_dir, groups, min(num_workers, len(groups)))
        files = [there[shard.name] or _write_shard(folder, shard, photos, progress) for shard in shards]
    return files, kept


def _read_photos(dataset_dir: Path, records: Sequence[Record]) -> list[bytes]:
    photos = []
    for record in records:
        data, where = images.read_file(dataset_dir, record)
        images.checked_jpeg(data, where)  # refused as anywhere else; what is stored is the file
        photos.append(data)
    return photos


def _write_shard(folder: Path, shard: Shard, photos: Iterator[list[bytes]], progress: Progress) -> Distributed:
    import pyarrow
    import pyarrow.parquet

    types = {
        "string": pyarrow.string(),
        "int64": pyarrow.int64(),
        "strings": pyarrow.list_(pyarrow.string()),
        "image": pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]),
    }
    features = {"info": {"features": {name: _FEATURES[kind] for name, kind in COLUMNS.items()}}}
    columns = [(name, types[kind]) for name, kind in COLUMNS.items()]
    schema = pyarrow.schema(columns, {"huggingface": json.dumps(features)})
    ends = {"strings": ".list.element", "image": ".path"}
    leaves = [f"{name}{ends.get(kind, '')}" for name, kind in COLUMNS.items()]
    options = {
        "compression": {**dict.fromkeys(leaves, "snappy"), "image.bytes": "none"},  # a JPEG does not get smaller
        "use_dictionary": [name for name in leaves if name not in ("image_id", "image.path")],
        "write_statistics": ["user_id", "image_id", "partition"],
        "write_page_checksum": True,
    }
    path = folder / shard.name
    with (
        atomic.replacing(path) as temporary,
        preparation.naming(path),
        open(temporary, "wb") as file,
        pyarrow.parquet.ParquetWriter(file, schema, **options) as writer,
    ):
        for records in shard.row_groups():
            rows = [_row(record, data) for record, data in zip(records, next(photos), strict=True)]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))
            progress.add(len(records))
    written = distributed(folder, shard.name)
    checked_json.write(_note(folder, shard), written._asdict())
    return written


def _row(record: Record, data: bytes) -> dict[str, Any]:
    row = {**record._asdict(), "image_id": int(record.image_id)}
    return {**row, "image": {"bytes": data, "path": f"{record.image_id}.jpg"}}


def _finished(folder: Path, shard: Shard) -> Distributed | None:
    """The file as it was finished; None where it is missing, or has changed since."""
    try:
        noted = checked_json.read(_note(folder, shard))
        file = distributed(folder, shard.name)
    except (FileNotFoundError, checked_json.DamagedIndex):
        return None
    return file if noted["sha256"] == file.sha256 else None


def _note(folder: Path, shard: Shard) -> Path:
    return folder / _FINISHED_FOLDER / f"{shard.name.rpartition('/')[2]}.json"


def _write_beside(
    dataset_dir: Path,
    folder: Path,
    testsets: Mapping[Path, Testset],
    counts: Mapping[str, Count],
    files: Sequence[Distributed],
) -> None:
    """Writes what lies beside the parquet files: taxonomy, licences, test sets, card, description."""
    beside = []
    sources = {name: dataset_dir / name for name in (catalog.TAXONOMY_FILE, catalog.ATTRIBUTION_FILE)}
    sources |= {f"testsets/{testset.name}.json": path for path, testset in testsets.items()}
    for name, source in sources.items():
        if os.path.lexists(source):
            atomic.write_bytes(folder / name, read_bytes(source))
            encoding = croissant.JSON if name.endswith(".json") else croissant.TEXT
            beside.append(file_object(distributed(folder, name), encoding))
    sizes = {testset.name: len(testset.image_ids) for testset in testsets.values()}
    atomic.write_text(folder / "README.md", dataset_card(counts, sizes, files))
    record_sets = [croissant.splits(counts), _record_set("photos", "data", croissant.total(counts).photos)]
    distribution = [croissant.file_set("data", "data/*.parquet", croissant.PARQUET)]
    for name, number in sizes.items():
        distribution.append(croissant.file_set(f"testsets/{name}", f"testsets/{name}.parquet", croissant.PARQUET))
        record_sets.append(_record_set(f"testset-{name}", f"testsets/{name}", number))
    distribution += [file_object(file, croissant.PARQUET) for file in files] + beside
    description = croissant.describe(counts, f"Test sets: {', '.join(sizes)}." if sizes else "")
    atomic.write_json(folder / croissant.FILE, croissant.document("flair", description, distribution, record_sets))


def _record_set(name: str, files: str, num_photos: int) -> dict[str, Any]:
    fields = {column: croissant.source("fileSet", files, column=column) for column in COLUMNS}
    fields["image"]["source"]["transform"] = {"jsonPath": "bytes"}
    fields["partition"] |= croissant.reference("splits/name")
    return croissant.photos(name, num_photos, fields)


def _publish(unfinished: Path, output_dir: Path) -> None:
    """Gives the finished folder its name; what was there goes once nothing is missing."""
    old = atomic.beside(output_dir, "old")
    if output_dir.is_dir() and any(output_dir.iterdir()):
        _require_export(output_dir)
        atomic.remove(old)
        os.rename(output_dir, old)
    os.rename(unfinished, output_dir)  # takes the place of an empty folder
    atomic.remove(output_dir / _FINISHED_FOLDER)
    atomic.remove(old)
