"""Puts the photos of an archive into the dataset folder, all together or none."""

from __future__ import annotations

import filecmp
import os
import re
from pathlib import Path
from typing import NamedTuple

from flair.dataset import catalog
from flair.errors import FlairError
from flair.files import atomic, lock, regular_file

MAX_PHOTOS = 1_000_000  # in one archive; FLAIR's hold about 10,000
# Generous bounds of one photo: small photos have 3 to 22 kB, Flickr takes originals up to 200 MB.
MAX_PHOTO_BYTES = {catalog.SMALL_IMAGES_DIR: 4 << 20, catalog.RAW_IMAGES_DIR: 256 << 20}
LISTING_SUFFIX = ".photos"
_LISTED = re.compile(r"(\S+) ([0-9]{1,15})")
_LOCK_SECONDS = 600.0  # for the photos of all other archives at work to move into place


class UnpackError(FlairError):
    """What is wrong with an archive; `corrupt` when fetching it again may help, `rival` the archive it contradicts."""

    def __init__(self, reason: str, *, corrupt: bool = False, rival: str = "") -> None:
        super().__init__(reason)
        self.corrupt, self.rival = corrupt, rival


class Unpacked(NamedTuple):
    """What an archive held, in photos and bytes; `ignored` members were no photos, `first_ignored` names one."""

    photos: int
    photo_bytes: int
    ignored: int = 0
    first_ignored: str = ""


class Staging:
    """A hidden folder inside `photos_dir` (so on the same file system) that `commit` empties into it.

    It goes at the end of `with`; a leftover of a killed process, of the same name, is removed first. A FlairError that
    ends the block, such as that of an unsafe id, leaves it as an UnpackError, and nothing of the archive, whose name is
    `name`, is in `photos_dir`. `num_photos` is the published number, or None.
    """

    def __init__(self, photos_dir: Path, name: str, max_photo_bytes: int, num_photos: int | None = None) -> None:
        self.photos_dir, self.max_photo_bytes, self.num_photos = photos_dir, max_photo_bytes, num_photos
        self.folder = staging_folder(photos_dir, name)
        self.sizes: dict[str, int] = {}
        photos_dir.mkdir(parents=True, exist_ok=True)
        self.discard()
        self.folder.mkdir()
        self._descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        os.close(self._descriptor)
        self.discard()
        if isinstance(error, FlairError) and not isinstance(error, UnpackError):
            raise UnpackError(str(error)) from None

    def check_size(self, image_id: str, size: int) -> None:
        """Refuses a photo that is larger than any of FLAIR's, before it is read."""
        if size > self.max_photo_bytes:
            raise UnpackError(
                f"photo {image_id!r} would have {size:,} bytes, more than the {self.max_photo_bytes:,} that are "
                f"plausible; refused"
            )
        if len(self.sizes) >= MAX_PHOTOS:
            raise UnpackError(f"holds more than {MAX_PHOTOS:,} photos; refused")

    def add(self, image_id: str, data: bytes) -> None:
        """Writes one photo; `image_id` is a checked id."""
        self.check_size(image_id, len(data))
        if image_id in self.sizes:
            raise UnpackError(f"holds photo {image_id!r} twice; refused")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            file = os.open(f"{image_id}.jpg", flags, 0o666, dir_fd=self._descriptor)
        except FileExistsError:
            raise UnpackError(
                f"holds photo {image_id!r} and one whose id differs in case only, which this file system takes for the "
                "same; refused, choose a --dataset_dir on another file system"
            ) from None
        try:
            atomic.write_all(file, data)
        finally:
            os.close(file)
        self.sizes[image_id] = len(data)

    def commit(self, listing: Path) -> Unpacked:
        """Writes `listing`, one line `<image_id> <bytes>` per photo, moves every photo into place, and counts them.

        The listings beside it say which photos other archives brought: those are never replaced by other bytes.
        What no listing has is replaced.

        Raises:
          UnpackError: there are more or fewer photos than published, or another archive brought one of them with other
            bytes (`rival`); none has moved.
        """
        if self.num_photos not in (None, len(self.sizes)):
            raise UnpackError(f"holds {len(self.sizes):,} photos, but {self.num_photos:,} are published")
        busy = f"{self.photos_dir}: another process moves photos there, without end; stop it"
        # Two archives that land together must see each other's photos.
        with lock.exclusive(self.photos_dir, busy, patience=_LOCK_SECONDS) as target:
            self._require_no_rival(listing)
            # Listed first: after a kill among the moves, another archive must know whose the moved ones are.
            atomic.write_text(listing, "".join(f"{image_id} {size}\n" for image_id, size in self.sizes.items()))
            for image_id in self.sizes:
                name = f"{image_id}.jpg"
                os.rename(name, name, src_dir_fd=self._descriptor, dst_dir_fd=target)
        return Unpacked(len(self.sizes), sum(self.sizes.values()))

    def _require_no_rival(self, listing: Path) -> None:
        owners: dict[tuple[str, int], str] | None = None
        filecmp.clear_cache()
        for image_id in self.sizes:
            there = self.photos_dir / f"{image_id}.jpg"
            try:
                if filecmp.cmp(self.folder / there.name, there, shallow=False):
                    continue
                size = there.stat().st_size
            except FileNotFoundError:
                continue
            owners = _owners(listing) if owners is None else owners
            # A photo of another size than listed has changed since: its own archive is due again.
            if rival := owners.get((image_id.lower(), size)):
                raise UnpackError(
                    f"brings photo {image_id!r} with other bytes than {rival}, which brought it before; refused, since "
                    "only one is right: run the same command when the server is mended, or use another --dataset_dir",
                    rival=rival,
                )

    def discard(self) -> None:
        """Removes the hidden folder and what is in it."""
        atomic.remove(self.folder)


def staging_folder(photos_dir: Path, name: str) -> Path:
    """Where the photos of the archive `name` wait."""
    return photos_dir / f".{name}.tmp"


def read_listing(listing: Path) -> dict[str, int]:
    """Image id -> bytes, as `Staging.commit` wrote it; nothing when it is missing or damaged."""
    try:
        lines = regular_file.read_bytes(listing).decode("ascii").splitlines()
    except (FileNotFoundError, UnicodeDecodeError):
        return {}
    listed = [_LISTED.fullmatch(line) for line in lines]
    return {match[1]: int(match[2]) for match in listed if match} if all(listed) else {}


def _owners(listing: Path) -> dict[tuple[str, int], str]:
    """(image id, bytes) -> the archive that brought it, of all listings beside `listing`.

    The ids are in lower case: a file system may take two that differ in case only for one.
    """
    others = sorted(path for path in listing.parent.glob(f"*{LISTING_SUFFIX}") if path.name != listing.name)
    return {
        (image_id.lower(), size): other.name.removesuffix(LISTING_SUFFIX)
        for other in others
        for image_id, size in read_listing(other).items()
    }
