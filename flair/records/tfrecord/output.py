"""The place TFRecords are published to: is it complete, what is in the way, and the move from unfinished to final."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flair.dataset.catalog import HELDOUT
from flair.errors import FlairError
from flair.files import checked_json
from flair.records.preparation import PARAMETERS_FILE, check_same, discard
from flair.records.tfrecord import layout

UNFINISHED_FOLDER = ".unfinished"
FINISHED_FILE = "finished.json"  # becomes PARAMETERS_FILE of the published folder
_NAMES = (*layout.PARTITION_FOLDERS.values(), *layout.LINKS, layout.LABEL_INDEX_FILE)
_ALL_NAMES = (*_NAMES, HELDOUT)


class TFRecordOutput:
    """The folder `final`, and `final/.unfinished` where the records are made.

    Publishing moves a handful of names. PARAMETERS_FILE leaves first and comes last, so a folder that has it is whole;
    a publication that was interrupted is taken back and done again. `with_heldout` says whether photos are put aside.
    """

    def __init__(self, final: Path, with_heldout: bool = False) -> None:
        self.final = final
        self._names = _ALL_NAMES if with_heldout else _NAMES
        self.unfinished = final / UNFINISHED_FOLDER

    def is_complete(self, parameters: Mapping[str, Any]) -> bool:
        """Whether the output is there already, made with these parameters; FlairError if other output is there."""
        if self.final.exists() and not self.final.is_dir():
            raise FlairError(f"--tfrecords_dir={self.final}: is a file; expected a directory")
        if (self.final / PARAMETERS_FILE).exists():
            found = checked_json.read(self.final / PARAMETERS_FILE)
            found.pop("index_crc32c", None)
            check_same(parameters, found, f"--tfrecords_dir={self.final}: the output there")
            discard(self.unfinished)
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
        folders = [self.final / name for name in layout.ALL_FOLDERS.values() if name in self._names]
        return sum(entry.stat().st_size for folder in folders for entry in os.scandir(folder))

    def publish(self) -> None:
        """Replaces what is published by what is in the unfinished folder, and removes that."""
        for name in (PARAMETERS_FILE, *_ALL_NAMES):
            _remove_output(self.final / name)
        for name in self._names:
            os.replace(self.unfinished / name, self.final / name)
        os.replace(self.unfinished / FINISHED_FILE, self.final / PARAMETERS_FILE)
        discard(self.unfinished)

    def take_back(self) -> None:
        """Undoes a publication that was interrupted."""
        if self._was_publishing():
            for name in self._names:
                if os.path.lexists(self.final / name) and not os.path.lexists(self.unfinished / name):
                    os.replace(self.final / name, self.unfinished / name)

    def _was_publishing(self) -> bool:
        return (self.unfinished / FINISHED_FILE).exists()


def _remove_output(path: Path) -> None:
    """Removes what this command, or ml-flair's, may have written there, and nothing else."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        for pattern in (f"*{layout.SUFFIX}", layout.USER_INDEX_FILE):
            for file in path.glob(pattern):
                file.unlink()
        if any(path.iterdir()):
            raise FlairError(f"{path}: holds other files than records, so it is not replaced; move them away")
        path.rmdir()
