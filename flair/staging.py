"""Photos on their way into a dataset folder: the photos of an archive appear all together, once it proved whole."""

from __future__ import annotations

import filecmp
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from flair import atomic, lock, regular_file
from flair.errors import FlairError

MAX_PHOTOS = 1_000_000  # in one archive; FLAIR's hold about 10,000
_LOCK_SECONDS = 600.0  # moving a million names takes a minute


class UnpackError(FlairError):
    """What is wrong with an archive; `corrupt` when fetching it again may help."""

    def __init__(self, reason: str, *, corrupt: bool = False) -> None:
        super().__init__(reason)
        self.corrupt = corrupt


class Unpacked(NamedTuple):
    """What an archive held, in photos and bytes; `ignored` members were no photos, `first_ignored` names one."""

    photos: int
    photo_bytes: int
    ignored: int = 0
    first_ignored: str = ""


class Staging:
    """A hidden folder inside `photos_dir` (so on the same file system) that `commit` empties into it.

    A leftover of a killed process, of the same name, is removed first. `num_photos` is the published number, or None.
    """

    def __init__(self, photos_dir: Path, name: str, max_photo_bytes: int, num_photos: int | None = None) -> None:
        self.photos_dir, self.max_photo_bytes, self.num_photos = photos_dir, max_photo_bytes, num_photos
        self.folder = staging_folder(photos_dir, name)
        self.sizes: dict[str, int] = {}
        photos_dir.mkdir(parents=True, exist_ok=True)
        self.discard()
        self.folder.mkdir()
        self._descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)

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
        file = os.open(f"{image_id}.jpg", flags, 0o666, dir_fd=self._descriptor)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(file, view) :]
        finally:
            os.close(file)
        self.sizes[image_id] = len(data)

    def commit(self, listing: Path) -> None:
        """Moves every photo into place, then writes `listing`: one line `<image_id> <bytes>` a photo.

        Raises:
          UnpackError: there are more or fewer photos than published, or one that another archive brought with other
            bytes; none has moved.
        """
        if self.num_photos not in (None, len(self.sizes)):
            raise UnpackError(f"holds {len(self.sizes):,} photos, but {self.num_photos:,} are published")
        # Two archives at once would each find the other's photos not there yet.
        with lock.exclusive(
            self.photos_dir, "another archive is being unpacked there", patience=_LOCK_SECONDS
        ) as target:
            self._check_owners(listing)
            for image_id in self.sizes:
                name = f"{image_id}.jpg"
                os.rename(name, name, src_dir_fd=self._descriptor, dst_dir_fd=target)
            atomic.write_text(listing, "".join(f"{image_id} {size}\n" for image_id, size in self.sizes.items()))
        self.discard()

    def _check_owners(self, listing: Path) -> None:
        """Refuses a photo of another archive that has other bytes: which came last would decide what it shows."""
        different = {image_id for image_id in self.sizes if self._differs(f"{image_id}.jpg")}
        if not different:
            return
        for other in sorted(listing.parent.glob(f"*{listing.suffix}")):
            if other == listing:
                continue
            shared = different.intersection(read_listing(other))
            if shared:
                raise UnpackError(
                    f"brings photo {min(shared)!r} with other bytes than {other.stem} did; refused, because nobody "
                    "knows which of the two is right: tell whoever runs the server"
                )

    def _differs(self, name: str) -> bool:
        present = self.photos_dir / name
        return os.path.lexists(present) and not filecmp.cmp(present, self.folder / name, shallow=False)

    def unpacked(self, ignored: int = 0, first_ignored: str = "") -> Unpacked:
        """What came through here."""
        return Unpacked(len(self.sizes), sum(self.sizes.values()), ignored, first_ignored)

    def discard(self) -> None:
        """Removes the hidden folder and what is in it."""
        if self.folder.is_dir():
            shutil.rmtree(self.folder)


def staging_folder(photos_dir: Path, name: str) -> Path:
    """Where the photos of the archive `name` wait."""
    return photos_dir / f".{name}.tmp"


def read_listing(listing: Path) -> dict[str, int]:
    """Image id -> bytes, as `Staging.commit` wrote it."""
    sizes = {}
    for line in regular_file.read_bytes(listing).decode("utf-8").splitlines():
        image_id, _, size = line.partition(" ")
        sizes[image_id] = int(size)
    return sizes
