"""Unpacks a tar.gz of photos from a server that need not be trusted.

Accepted are regular files `<image_id>.jpg`, in any folder inside the archive; they land under their id, never under
the path in the archive. Folders, and files that are not photos, are left out and counted. A path that is absolute or
climbs with `..`, a link, a device, an unsafe id, or more bytes than photos can have, refuses the whole archive. The
checksum of the gzip and the end mark of the tar must be there before any photo moves into place.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from pathlib import Path
from typing import BinaryIO

from flair.dataset import catalog
from flair.dataset.metadata import check_id
from flair.download.staging import LISTING_SUFFIX, MAX_PHOTO_BYTES, Staging, Unpacked, UnpackError
from flair.download.state import WORK_DIR

# JPEG hardly shrinks: FLAIR's archives unpack to about their own size.
MAX_EXPANSION = 20
MIN_UNPACKED_LIMIT = 64 << 20
MAX_HEADER_BYTES = 1 << 20  # of a long name or a pax header
_MOST_HEADER_BYTES_IN_A_ROW = 4 * MAX_HEADER_BYTES  # between two photos
_MOST_GLOBAL_HEADERS = 100  # of pax, each of which stays in memory
_BLOCK = 512
_KINDS = {
    tarfile.SYMTYPE: "symbolic link",
    tarfile.LNKTYPE: "hard link",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "named pipe",
}


def unpack(
    archive: Path, photos_dir: Path, name: str, listing: Path, max_photo_bytes: int, num_photos: int | None = None
) -> Unpacked:
    """Unpacks `archive` into `photos_dir`, all of its photos or none, then writes `listing`; errors as of `staging`."""
    with Staging(photos_dir, name, max_photo_bytes, num_photos) as staging, open(archive, "rb") as file:
        limit = max(MIN_UNPACKED_LIMIT, MAX_EXPANSION * archive.stat().st_size)
        ignored, first_ignored = _stage_members(_Inflater(file, limit), staging)
        if not staging.sizes:
            raise UnpackError("holds no photo; refused")
        return staging.commit(listing)._replace(ignored=ignored, first_ignored=first_ignored)


def extract(archive: Path, dataset_dir: Path, keep: bool) -> None:
    """Unpacks an archive that somebody else fetched, where its name says; then deletes it unless it is to be kept."""
    is_raw = archive.name.startswith("images-")  # see catalog.raw_archive_url_path
    folder = catalog.RAW_IMAGES_DIR if is_raw else catalog.SMALL_IMAGES_DIR
    listing = dataset_dir / WORK_DIR / f"{archive.name}{LISTING_SUFFIX}"
    listing.parent.mkdir(parents=True, exist_ok=True)
    try:
        unpack(archive, dataset_dir / folder, archive.name, listing, MAX_PHOTO_BYTES[folder])
    except UnpackError as error:
        raise UnpackError(f"{archive}: {error}") from None
    if not keep:
        archive.unlink()


def _stage_members(inflater: _Inflater, staging: Staging) -> tuple[int, str]:
    ignored, first_ignored = 0, ""
    try:
        # tarfile parses the headers; everything it reads comes through the inflater, which bounds it.
        archive = tarfile.TarFile(fileobj=inflater, mode="r", encoding="utf-8", errors="surrogateescape")  # type: ignore[arg-type]
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]
            if len(archive.pax_headers or ()) > _MOST_GLOBAL_HEADERS:
                raise UnpackError("has hundreds of headers for all of its members; refused")
            if member.size < 0:
                raise UnpackError(f"member {member.name!r} has a negative size; refused")
            image_id = _photo_id(member)
            if image_id is not None:
                staging.check_size(image_id, member.size)
                inflater.seek(member.offset_data)
                staging.add(image_id, inflater.take(member.size))
            elif not member.isdir():
                ignored, first_ignored = ignored + 1, first_ignored or member.name
    except RecursionError:
        raise UnpackError("has hundreds of headers in a row; refused") from None
    except (tarfile.TarError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise UnpackError(f"is no tar archive: {error}", corrupt=True) from None
    if inflater.last_block != bytes(_BLOCK):
        raise UnpackError("is damaged: the tar inside it ends without an end mark", corrupt=True)
    inflater.drain()
    return ignored, first_ignored


def _photo_id(member: tarfile.TarInfo) -> str | None:
    """The image id of a photo, None for a member that is left out; FlairError for what no honest archive has."""
    name = member.name
    if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or "\0" in name:
        raise UnpackError(f"member {name!r} would leave the dataset folder; the archive is refused")
    if member.isdir():
        return None
    if not member.isreg() or member.issparse():
        kind = "sparse file" if member.issparse() else _KINDS.get(member.type, f"member of type {member.type!r}")
        raise UnpackError(f"member {name!r} is a {kind}, not a photo; the archive is refused")
    base = name.rpartition("/")[2]
    if base.startswith("._") or not base.endswith(".jpg"):  # "._" files are what macOS adds to a tar
        return None
    return check_id(base.removesuffix(".jpg"), "photo name", "member")


class _Inflater:
    """The uncompressed bytes of a gzip file, forward only, at most `limit` of them; file-like enough for tarfile."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._gzip = gzip.GzipFile(fileobj=file, mode="rb")
        self._limit = limit
        self._position = self._header_bytes = 0
        self.last_block = b""

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        if position < self._position:
            raise UnpackError("is damaged: its tar headers point backwards", corrupt=True)
        while self._position < position:
            if not self._take(min(position - self._position, 1 << 20)):
                raise UnpackError("is damaged: it ends in the middle", corrupt=True)

    def read(self, size: int) -> bytes:
        """For tarfile, which reads nothing but headers."""
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise UnpackError(f"has a header of {size:,} bytes; refused")
        self._header_bytes += size
        if self._header_bytes > _MOST_HEADER_BYTES_IN_A_ROW:
            raise UnpackError(f"has headers of {self._header_bytes:,} bytes in a row; refused")
        data = self._take(size)
        if size == _BLOCK:
            self.last_block = data
        return data

    def take(self, size: int) -> bytes:
        """All of the next `size` bytes."""
        self._header_bytes = 0
        data = self._take(size)
        if len(data) < size:
            raise UnpackError("is damaged: it ends in the middle of a photo", corrupt=True)
        return data

    def drain(self) -> None:
        """Reads to the end of the file, where the checksum is."""
        while self._take(1 << 20):
            pass

    def _take(self, size: int) -> bytes:
        try:
            data = self._gzip.read(size)
            if not data and not self._position:
                raise EOFError  # an empty file, which GzipFile takes for one that holds nothing
        except EOFError:
            raise UnpackError("is damaged: the gzip ends in the middle", corrupt=True) from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise UnpackError(f"is damaged: {error}", corrupt=True) from None
        self._position += len(data)
        if self._position > self._limit:
            raise UnpackError(
                f"unpacks to more than {self._limit >> 20:,} MiB, which photos cannot: a zip bomb? refused"
            )
        return data
