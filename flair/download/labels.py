"""The files beside the photos: the metadata, the taxonomy and the licences, put in place once all are checked."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from flair.dataset import catalog
from flair.dataset.metadata import load_records, load_taxonomy
from flair.download import huggingface, transfer
from flair.download.client import Client, NotThere
from flair.download.plan import DownloadConfig
from flair.download.source import LabelFile
from flair.download.state import DownloadState, Entry
from flair.errors import FlairError
from flair.files.regular_file import file_sha256


class Labels:
    """Brings these files into a folder of their own first, so that a bad one never takes the place of a good one.

    Attributes:
      image_ids: of all photos of the metadata, after `check`.
      notes: lines for the user, on files that were not there.
    """

    def __init__(self, config: DownloadConfig, state: DownloadState, client: Client) -> None:
        self.image_ids: list[str] = []
        self.notes: list[str] = []
        self._config, self._state, self._client = config, state, client
        self._work = state.folder / "labels"
        self._urls: dict[str, str] = {}  # of the files that are new
        shutil.rmtree(self._work, ignore_errors=True)  # what a killed run had not put in place

    def bring(self, files: Sequence[LabelFile], counter: Callable[[Path], Callable[[int], None]]) -> None:
        """Fetches or makes the files, or raises a FlairError; `counter` gives what counts the bytes of a part."""
        self._work.mkdir(exist_ok=True)
        for file in files:
            try:
                self._bring(file, counter)
            except NotThere as error:
                if not file.optional:
                    raise FlairError(f"{file.name}: {error}; check the address") from None
                self.notes.append(
                    f"{file.name} (the licences of the photos) is not on this server; Hugging Face has it: "
                    f"{huggingface.HuggingFaceSource().place}/{file.name}"
                )
            else:
                self._urls[file.name] = file.url

    def check(self) -> None:
        """Checks the files, puts them in place, and notes all image ids; an error stops the whole download."""
        try:
            self.image_ids = [record.image_id for record in load_records(self._newest(catalog.METADATA_FILE))]
            load_taxonomy(self._newest(catalog.TAXONOMY_FILE))
            for name, url in self._urls.items():
                new = self._work / name
                entry = Entry(url, file_sha256(new), new.stat().st_size)
                os.replace(new, self._config.dataset_dir / name)
                self._state.record(name, entry)
        except FlairError:
            self._client.stop.set()  # without labels the photos are worth nothing
            raise
        shutil.rmtree(self._work)

    def _bring(self, file: LabelFile, counter: Callable[[Path], Callable[[int], None]]) -> None:
        part, target = self._state.part(file.name), self._work / file.name
        if file.make is not None:
            file.make(self._client, self._state.folder, target, self._config.num_workers)
            return
        try:
            transfer.fetch(self._client, file.url, part, most=file.most, on_bytes=counter(part))
            transfer.take(part, target, file.most)
        except NotThere:
            raise
        except FlairError as error:
            raise FlairError(f"{file.name}: {error}") from None

    def _newest(self, name: str) -> Path:
        return self._work if (self._work / name).exists() else self._config.dataset_dir
