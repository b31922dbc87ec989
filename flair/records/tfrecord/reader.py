"""Reading a folder of FLAIR TFRecords without TensorFlow: ours in both layouts, ml-flair's and TFF's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c

from flair.dataset.catalog import HELDOUT
from flair.dataset.metadata import label_index
from flair.errors import FlairError
from flair.files import checked_json, json_text, regular_file
from flair.records.preparation import PARAMETERS_FILE
from flair.records.tfrecord import layout
from flair.records.tfrecord.example import Example, MalformedExample, decode
from flair.records.tfrecord.frames import DamagedRecord, read_payloads


class Span(NamedTuple):
    """A user's file, and where in it; None: the whole file is this user's."""

    path: Path
    location: layout.Location | None


class TFRecords:
    """A folder that prepare_tfrecords.py, ml-flair's script of that name or TFF's FLAIR loader wrote.

    Attributes:
      folder: where it is.
      parameters: how prepare_tfrecords.py made it; empty for folders of other writers.
      columns: label name -> column; None where the writer left no label file (TFF).

    Raises (all methods):
      FlairError: something is missing, was changed since it was written, or fails a checksum; one line naming it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FlairError(f"{folder}: no such directory; make it with prepare_tfrecords.py")
        self.parameters: Mapping[str, Any] = {}
        if os.path.lexists(self.folder / PARAMETERS_FILE):
            with _naming_unreadable(self.folder / PARAMETERS_FILE):
                self.parameters = checked_json.read(self.folder / PARAMETERS_FILE)
        self.columns = self._read_columns()

    def has_partition(self, partition: str) -> bool:
        """Whether there is a folder of that partition."""
        return any((self.folder / name).is_dir() for name in (layout.ALL_FOLDERS[partition], partition))

    def partition_folder(self, partition: str) -> Path:
        """The folder of a partition; that of `val` may be called `dev`."""
        for name in (layout.ALL_FOLDERS[partition], partition):
            if (self.folder / name).is_dir():
                return self.folder / name
        flag = " with --heldout_fraction=0.1" if partition == HELDOUT else ""
        raise FlairError(f"{self.folder}: has no folder {layout.ALL_FOLDERS[partition]}; prepare it again{flag}")

    def users(self, partition: str) -> dict[str, Span]:
        """The users of a partition and where their records are."""
        folder = self.partition_folder(partition)
        if not os.path.lexists(folder / layout.USER_INDEX_FILE):
            with _naming_unreadable(folder):
                listed = os.listdir(folder)
            names = sorted(name for name in listed if name.endswith(layout.SUFFIX) and not name.startswith("."))
            return {name.removesuffix(layout.SUFFIX): Span(folder / name, None) for name in names}
        text = self._read_index(folder / layout.USER_INDEX_FILE)
        try:
            index = layout.parse_user_index(text)
        except ValueError as error:
            raise DamagedRecord(
                f"{folder / layout.USER_INDEX_FILE}: is no index of users: {error}; prepare it again"
            ) from None
        return {user_id: Span(folder / name, location) for user_id, (name, location) in index.items()}

    def read_user(self, span: Span) -> list[Example]:
        """All photos of a user, in order, with one seek."""
        offset, num_bytes, count = span.location or (0, None, None)
        try:
            with _naming_unreadable(span.path):
                examples = [decode(payload) for payload in read_payloads(span.path, offset, num_bytes)]
        except MalformedExample as error:
            raise DamagedRecord(f"{span.path}: {error}") from None
        if not examples:
            raise DamagedRecord(f"{span.path}: holds no photo of a user; prepare it again")
        if count is not None and len(examples) != count:
            raise DamagedRecord(f"{span.path}: {len(examples)} photos at byte {offset:,}, the index says {count}")
        return examples

    def _read_columns(self) -> layout.LabelColumns | None:
        links = [name for name, target in layout.LINKS.items() if target == layout.LABEL_INDEX_FILE]
        for name in (layout.LABEL_INDEX_FILE, *links):
            path = self.folder / name
            if not os.path.lexists(path):
                continue
            try:
                content = json_text.parse(self._read_index(path))
                columns = layout.LabelColumns(content["labels"], content["fine_grained_labels"])
                valid = all(label_index(mapping) == mapping for mapping in columns)
            except (ValueError, KeyError, TypeError, AttributeError):
                valid = False
            if not valid:
                raise DamagedRecord(f"{path}: is not an index of sorted labels; prepare it again")
            return columns
        return None

    def _read_index(self, path: Path) -> str:
        with _naming_unreadable(path):
            data = regular_file.read_bytes(path)
        name = str(path.relative_to(self.folder))
        expected = self.parameters.get("index_crc32c", {}).get(name)
        if expected not in (None, f"{google_crc32c.value(data):08x}"):
            raise DamagedRecord(f"{path}: damaged: its checksum is not the one in {PARAMETERS_FILE}; prepare it again")
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise DamagedRecord(f"{path}: is not UTF-8 text; prepare it again") from None


@contextlib.contextmanager
def _naming_unreadable(path: Path) -> Iterator[None]:
    """Makes a DamagedRecord of any OSError: a file that is missing, is a folder, or that the disk does not give."""
    try:
        yield
    except FileNotFoundError:
        raise DamagedRecord(f"{path}: missing; prepare it again") from None
    except OSError as error:
        raise DamagedRecord(f"{path}: cannot be read ({error.strerror}); prepare it again") from None
