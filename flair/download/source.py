"""What a source of the dataset offers, and the usual source: Apple's server or a mirror of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from flair.dataset import catalog
from flair.dataset.metadata import MAX_TAXONOMY_BYTES
from flair.download import transfer
from flair.download.client import Client, NotThere, TransferError
from flair.errors import FlairError
from flair.files import json_text

_MAX_MANIFEST_BYTES = 4 << 20  # ten thousand archives take half of it
_MAX_ARCHIVES = 10_000


class Archive(NamedTuple):
    """A file full of photos; `kind` is "gzip" (a tar.gz) or "parquet"; None where nobody publishes a number."""

    name: str
    url: str
    folder: str
    kind: str = "gzip"
    size: int | None = None
    sha256: str | None = None
    photos: int | None = None


class LabelFile(NamedTuple):
    """A file of the dataset folder beside the photos; `optional` when not every server has it.

    It is fetched from `url` as it is, or, where no server has it, made by `make(client, work, target, num_workers)`,
    with `work` for temporary files.
    """

    name: str
    url: str
    optional: bool = False
    most: int = transfer.MOST_BYTES["text"]  # bytes that are taken at most
    make: Callable[[Client, Path, Path, int], None] | None = None


class Source(Protocol):
    """What a download needs to know of the place it downloads from."""

    place: str

    def label_files(self) -> list[LabelFile]:
        """The metadata, the taxonomy, and what else lies beside the photos."""

    def archives(self, client: Client, work: Path, raw: bool) -> list[Archive]:
        """All archives; asks the server where that takes it, with `work` for temporary files."""


class AppleSource:
    """Apple's server, or a mirror with the same layout.

    A mirror may hold the photos in fewer archives, and then says so in `images/small/manifest.json`:
    `{"archives": [{"name": "small_images-00.tar.gz", "size": 123, "sha256": "…", "photos": 10}, …]}`, of which only
    the names are required. A mirror without it has to have all 43 archives, as Apple's server does.
    """

    def __init__(self, base_url: str = catalog.APPLE_BASE_URL) -> None:
        self.place = base_url.rstrip("/")

    def label_files(self) -> list[LabelFile]:
        """The metadata and the taxonomy; the photos' licences where a mirror has them."""
        return [
            LabelFile(catalog.METADATA_FILE, f"{self.place}/{catalog.METADATA_URL_PATH}"),
            LabelFile(catalog.TAXONOMY_FILE, f"{self.place}/{catalog.TAXONOMY_URL_PATH}", most=MAX_TAXONOMY_BYTES),
            LabelFile(catalog.ATTRIBUTION_FILE, f"{self.place}/{catalog.ATTRIBUTION_FILE}", optional=True),
        ]

    def archives(self, client: Client, work: Path, raw: bool) -> list[Archive]:
        """The small archives, then with `raw` the raw ones; from the mirror's manifest where it has one."""
        found = self._archives(client, work, catalog.SMALL_IMAGES_DIR, catalog.small_archive_url_path)
        if raw:
            found += self._archives(client, work, catalog.RAW_IMAGES_DIR, catalog.raw_archive_url_path)
        return found

    def _archives(self, client: Client, work: Path, folder: str, url_path: Callable[[int], str]) -> list[Archive]:
        if self.place != catalog.APPLE_BASE_URL:
            base, _, first_name = url_path(0).rpartition("/")
            prefix = first_name.partition("-")[0]
            url = f"{self.place}/{base}/{catalog.MANIFEST_FILE}"
            manifest = work / f"{prefix}-{catalog.MANIFEST_FILE}"
            part = manifest.with_name(f"{manifest.name}.part")
            transfer.discard(part)
            try:
                transfer.fetch(client, url, part, most=_MAX_MANIFEST_BYTES)
                transfer.take(part, manifest, _MAX_MANIFEST_BYTES)
                content = manifest.read_bytes()
                manifest.unlink()
                return read_manifest(content, url, prefix, folder)
            except NotThere:
                pass  # a plain copy of Apple's server
            except TransferError as error:
                raise FlairError(f"--base_url={self.place}: {error}") from None
        paths = map(url_path, range(catalog.NUM_ARCHIVES))
        return [Archive(path.rpartition("/")[2], f"{self.place}/{path}", folder) for path in paths]


def read_manifest(content: bytes, url: str, prefix: str, folder: str) -> list[Archive]:
    """The archives of a mirror's manifest, of which everything is checked: the names become file names."""
    try:
        items = json_text.parse(content)["archives"]
        archives = [_manifest_archive(item, url, prefix, folder) for item in items[:_MAX_ARCHIVES]]
    except (ValueError, TypeError, KeyError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise FlairError(f"{url}: not a manifest of archives ({reason}); mend the mirror") from None
    if not archives or len({archive.name for archive in archives}) != len(items):
        raise FlairError(f"{url}: names no archive, or one twice; mend the mirror")
    return archives


def _manifest_archive(item: Any, url: str, prefix: str, folder: str) -> Archive:
    name, size, sha256, photos = item["name"], item.get("size"), item.get("sha256"), item.get("photos")
    if not isinstance(name, str) or not re.fullmatch(rf"{prefix}-[0-9]{{2,5}}\.tar\.gz", name):
        raise ValueError(f"name {name!r:.60}, expected {prefix}-NN.tar.gz")
    for field, value in (("size", size), ("photos", photos)):
        if value is not None and (type(value) is not int or value < 0):
            raise ValueError(f"{field} {value!r:.60} of {name}, expected a whole number")
    if sha256 is not None and not (isinstance(sha256, str) and re.fullmatch(r"[0-9a-f]{64}", sha256)):
        raise ValueError(f"sha256 {sha256!r:.80} of {name}, expected 64 hexadecimal digits")
    return Archive(name, f"{url.rpartition('/')[0]}/{name}", folder, "gzip", size, sha256, photos)
