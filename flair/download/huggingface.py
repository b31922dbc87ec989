"""The Hugging Face copy of FLAIR: parquet shards of one pinned revision, turned into the official dataset folder.

The photos' bytes go to disk untouched. Hugging Face has no `labels_and_metadata.json`: it is put together from the
other columns, which are read out of the shards with Range requests before any photo is fetched.
Columns: https://huggingface.co/datasets/apple/flair.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flair.dataset import catalog
from flair.dataset.metadata import MAX_TAXONOMY_BYTES, Record, check_id, parse_record, record_to_json
from flair.download import transfer
from flair.download.client import Client, NotThere, RangeIgnored
from flair.download.source import Archive, LabelFile
from flair.download.staging import Staging, Unpacked, UnpackError
from flair.errors import FlairError
from flair.files import atomic, checked_json
from flair.parallel import threads

_RECORD_COLUMNS = ["user_id", "image_id", "labels", "partition", "fine_grained_labels"]
_RECORDS_FOLDER = "records-"
_PHOTOS_PER_BATCH = 1  # of which several, packed, could be any size
_RECORDS_PER_BATCH = 4096
_GAP_BYTES = 8192  # between two columns that are read in one piece
_MOST_BYTES_OF_A_READ = 64 << 20  # of a footer, or of the few small columns of a row group
_MAX_EXPANSION = 4  # of more than that; JPEGs do not get smaller


class HuggingFaceSource:
    """The pinned revision of the dataset on `endpoint` (HF_ENDPOINT names a mirror of the whole hub)."""

    def __init__(
        self, endpoint: str = catalog.HUGGINGFACE_ENDPOINT, revision: str = catalog.HUGGINGFACE_REVISION
    ) -> None:
        self._is_hub = endpoint.rstrip("/") == catalog.HUGGINGFACE_ENDPOINT
        self.place = f"{endpoint.rstrip('/')}/datasets/{catalog.HUGGINGFACE_DATASET}/resolve/{revision}"

    def label_files(self) -> list[LabelFile]:
        """The taxonomy, the photos' licences (a mirror may lack them), and the metadata, made out of the shards."""
        taxonomy, attribution = (f"{self.place}/{name}" for name in (catalog.TAXONOMY_FILE, catalog.ATTRIBUTION_FILE))
        return [
            LabelFile(catalog.TAXONOMY_FILE, taxonomy, most=MAX_TAXONOMY_BYTES),
            LabelFile(catalog.ATTRIBUTION_FILE, attribution, optional=not self._is_hub),
            LabelFile(catalog.METADATA_FILE, self.place, make=self._write_metadata),
        ]

    def archives(self, client: Client, work: Path, raw: bool) -> list[Archive]:
        """The 14 shards, train first; the hub publishes sizes and checksums when asked."""
        shards = catalog.HUGGINGFACE_SHARDS.items()
        paths = [catalog.huggingface_shard(partition, index) for partition, count in shards for index in range(count)]
        return [
            Archive(path.rpartition("/")[2], f"{self.place}/{path}", catalog.SMALL_IMAGES_DIR, "parquet")
            for path in paths
        ]

    def _write_metadata(self, client: Client, work: Path, target: Path, num_workers: int) -> None:
        """Writes `labels_and_metadata.json` in the official schema, records in the order of the shards.

        The records of each shard wait in a folder below `work`, so that a killed run asks for no shard again. A server
        that ignores Range sends the whole shard, which stays in `work` as a finished part for its photos.
        """
        client.log(f"{target.name}: reading the labels out of the shards")
        shards = self.archives(client, work, raw=False)
        folder = _records_folder(work, self.place)
        folder.mkdir(exist_ok=True)

        def extract(shard: Archive) -> None:
            if _records_text(folder / shard.name) is None:
                try:
                    with _open_shard(client, shard, work) as file:
                        items = map(record_to_json, read_records(file, shard.name))
                        text = "".join(_item_text(item, index, shard.name) for index, item in enumerate(items))
                except FlairError:
                    # All of it is here, so it was refused; a server that is mended sends another one.
                    if transfer.is_whole(_part(shard, work), shard.url):
                        transfer.discard(_part(shard, work))
                    raise
                checked_json.write(folder / shard.name, {"text": text})

        for shard, error in threads.run(extract, shards, num_workers, client.stop):
            raise FlairError(f"{catalog.METADATA_FILE}: cannot read the labels of {shard.name}: {error}") from None
        with atomic.replacing(target) as temporary, open(temporary, "w", encoding="utf-8") as output:
            output.write("[\n")
            for shard in shards:
                text = _records_text(folder / shard.name)
                if text is None:
                    raise FlairError(f"{folder / shard.name}: is damaged; run the same command again")
                output.write(text.removesuffix(",\n") + "\n" if shard is shards[-1] else text)
            output.write("]\n")
        shutil.rmtree(folder)


def check_pyarrow(flag: str) -> None:
    """Says how to install pyarrow, which `flag` needs, when it is missing."""
    if importlib.util.find_spec("pyarrow") is None:
        raise FlairError(
            f"{flag} needs pyarrow, which is not installed; install it with "
            "`python3 -m pip install --no-deps -r requirements/huggingface.txt`"
        )


def _records_folder(work: Path, place: str) -> Path:
    """Where the records of each shard wait for the others: a folder for this endpoint and revision alone."""
    return work / f"{_RECORDS_FOLDER}{hashlib.sha256(place.encode()).hexdigest()[:16]}"


def remove_other_records(work: Path, place: str) -> bool:
    """Removes records that an unfinished run read at any other place than `place`; returns whether there were any."""
    others = [folder for folder in work.glob(f"{_RECORDS_FOLDER}*") if folder != _records_folder(work, place)]
    for folder in others:
        shutil.rmtree(folder)
    return bool(others)


def _records_text(path: Path) -> str | None:
    """The records of a shard as an earlier run has left them; None where they are not there, or damaged."""
    try:
        return str(checked_json.read(path)["text"])
    except (FileNotFoundError, KeyError, checked_json.DamagedIndex):
        return None


def read_records(file: io.RawIOBase | io.BufferedReader, name: str) -> Iterator[Record]:
    """The records of one shard, read without its photos; FlairError where a column is missing or of another type."""
    for number, row in enumerate(_rows(file, name, _RECORD_COLUMNS, _RECORDS_PER_BATCH)):
        where = f"{name}, row {number}"
        for column in ("labels", "fine_grained_labels"):
            if not isinstance(row[column], list) or not all(isinstance(label, str) for label in row[column]):
                raise FlairError(f"{where}: column {column!r} must be a list of names, found {row[column]!r:.60}")
        for column in ("user_id", "partition"):
            if not isinstance(row[column], str):
                raise FlairError(f"{where}: column {column!r} must be a string, found {row[column]!r:.60}")
        yield Record(
            row["user_id"],
            _image_id(row["image_id"], where),
            tuple(row["labels"]),
            tuple(row["fine_grained_labels"]),
            row["partition"],
        )


def unpack(
    archive: Path, photos_dir: Path, name: str, listing: Path, max_photo_bytes: int, num_photos: int | None = None
) -> Unpacked:
    """Writes the photos of one shard to `photos_dir`, all or none, then `listing`; errors as of `staging`."""
    with Staging(photos_dir, name, max_photo_bytes, num_photos) as staging, open(archive, "rb") as file:
        for number, row in enumerate(_rows(file, name, ["image_id", "image"], _PHOTOS_PER_BATCH)):
            image = row["image"]
            data = image.get("bytes") if isinstance(image, dict) else None
            if not isinstance(data, bytes):
                raise UnpackError(f"row {number} has no photo in column 'image'; refused")
            staging.add(_image_id(row["image_id"], f"{name}, row {number}"), data)
        return staging.commit(listing)


def _rows(
    file: io.RawIOBase | io.BufferedReader, name: str, columns: list[str], batch_size: int
) -> Iterator[dict[str, Any]]:
    """The rows of some columns, of which `batch_size` are in memory; UnpackError where the file is damaged."""
    import pyarrow
    import pyarrow.parquet

    try:
        # For photos, a small buffer in place of whole column chunks: one row group may be half a gigabyte. A file
        # behind HTTP is read ahead by us: pyarrow would do it in threads of its own, which outlive Ctrl-C and abort.
        remote = isinstance(file, _RangeFile)
        options = {"pre_buffer": False, "buffer_size": 0 if remote else 1 << 20, "page_checksum_verification": True}
        shard = pyarrow.parquet.ParquetFile(file, **options)
        missing = set(columns) - set(shard.schema_arrow.names)
        if missing:
            raise FlairError(f"{name}: has no column {', '.join(sorted(missing))}; expected FLAIR's parquet files")
        # A few bytes can say of a thousand rows that they all have the same megabytes: such a text is kept once, and
        # rows are made one by one. Not so photos: all of a row group, which all differ, would be kept at once.
        texts = [leaf.path for leaf in shard.schema if leaf.physical_type == "BYTE_ARRAY"]
        dictionaries = [path for path in texts if path.partition(".")[0] in set(columns) - {"image"}]
        shard = pyarrow.parquet.ParquetFile(file, metadata=shard.metadata, read_dictionary=dictionaries, **options)
        for group in range(shard.num_row_groups):
            _refuse_expansion(shard.metadata.row_group(group), columns, name)
            if isinstance(file, _RangeFile):
                file.read_ahead(_extents(shard.metadata.row_group(group), columns))
            for batch in shard.iter_batches(batch_size, row_groups=[group], columns=columns, use_threads=False):
                for number in range(batch.num_rows):
                    (row,) = batch.slice(number, 1).to_pylist()
                    yield row
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, TypeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's; pyarrow says some of its own with OSError too
        reason = f"{name}: is no parquet file, or damaged: {' '.join(str(error).split())[:200]}"
        raise UnpackError(reason, corrupt=True) from None


def _refuse_expansion(row_group: Any, columns: list[str], name: str) -> None:
    """Raises a FlairError where the columns unpack to much more than they are: pyarrow unpacks a page at once."""
    for chunk in _chunks(row_group, columns):
        most = max(_MOST_BYTES_OF_A_READ, _MAX_EXPANSION * chunk.total_compressed_size)
        if chunk.total_uncompressed_size > most:
            raise FlairError(
                f"{name}: {chunk.total_compressed_size:,} bytes of column {chunk.path_in_schema!r:.60} would unpack to "
                f"{chunk.total_uncompressed_size:,}, which no photos or labels do; refused"
            )


def _chunks(row_group: Any, columns: list[str]) -> list[Any]:
    chunks = [row_group.column(number) for number in range(row_group.num_columns)]
    return [chunk for chunk in chunks if chunk.path_in_schema.partition(".")[0] in columns]


def _extents(row_group: Any, columns: list[str]) -> list[tuple[int, int]]:
    """Where some columns of a row group lie, first byte and end; neighbours as one."""
    extents: list[tuple[int, int]] = []
    for chunk in sorted(_chunks(row_group, columns), key=_first_byte):
        start, end = _first_byte(chunk), _first_byte(chunk) + chunk.total_compressed_size
        if extents and start - extents[-1][1] <= _GAP_BYTES:
            start = extents.pop()[0]
        extents.append((start, end))
    return extents


def _first_byte(chunk: Any) -> int:
    return int(chunk.dictionary_page_offset or chunk.data_page_offset)


def _image_id(value: Any, where: str) -> str:
    if type(value) is not int:
        raise FlairError(f"{where}: column 'image_id' must be a whole number, found {value!r:.60}")
    return check_id(str(value), "image_id", where)


def _open_shard(client: Client, shard: Archive, work: Path) -> io.RawIOBase | io.BufferedReader:
    """The shard on this disk if all of it is here, else behind Range requests, else fetched."""
    part = _part(shard, work)
    if not transfer.is_whole(part, shard.url):
        try:
            return _RangeFile(client, shard.url)
        except RangeIgnored as error:
            client.log(f"{shard.name}: {error}; fetching all of it")
            transfer.fetch(client, shard.url, part, expect="parquet", size=shard.size, sha256=shard.sha256)
    return open(part, "rb")


def _item_text(item: dict[str, Any], index: int, shard: str) -> str:
    parse_record(item, index, Path(shard))  # refuses a bad one while its shard is known
    return textwrap.indent(json.dumps(item, indent=4, ensure_ascii=False), "    ") + ",\n"


def _part(shard: Archive, work: Path) -> Path:
    return work / f"{shard.name}.part"


class _RangeFile(io.RawIOBase):
    """A file on a server, read where pyarrow wants to."""

    def __init__(self, client: Client, url: str) -> None:
        self._client, self._url, self._position = client, url, 0
        self._ahead: dict[int, bytes] = {}  # first byte -> bytes that have been read ahead
        self._resolve()
        client.read_range(self._address, self._size - 1, 1)  # raises RangeIgnored here, not inside pyarrow

    def _resolve(self) -> None:
        remote = self._client.ask(self._url)
        if not remote.size:
            raise RangeIgnored(f"the server does not tell the size of {self._url}")
        # The hub redirects to a signed address, good for a while: asking it directly halves the requests.
        self._address, self._size = remote.url, remote.size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self._size - self._position))
        if length > _MOST_BYTES_OF_A_READ:  # which the file itself says, wherever it comes from
            raise FlairError(f"{self._url}: has a part of {length:,} bytes beside its photos; refused")
        if length:
            buffer[:length] = self._kept(self._position, length) or self._fetch(self._position, length)
            self._position += length
        return length

    def read_ahead(self, extents: list[tuple[int, int]]) -> None:
        """Brings pieces of the file, (first byte, end) each, in one request per piece; those before are forgotten."""
        whole = [(start, end - start) for start, end in extents if 0 <= start < end <= self._size]
        self._ahead = {start: self._fetch(start, length) for start, length in whole if length <= _MOST_BYTES_OF_A_READ}

    def _kept(self, start: int, length: int) -> bytes | None:
        for first, data in self._ahead.items():
            if first <= start and start + length <= first + len(data):
                return data[start - first : start - first + length]
        return None

    def _fetch(self, start: int, length: int) -> bytes:
        try:
            return self._client.read_range(self._address, start, length)
        except NotThere:
            self._resolve()  # the signed address has expired
            return self._client.read_range(self._address, start, length)
