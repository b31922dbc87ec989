"""An archive that somebody else fetched, unpacked as the published function of download_dataset.py is asked to."""

from __future__ import annotations

from pathlib import Path

from flair.dataset import catalog
from flair.download.archive import unpack
from flair.download.source import MAX_PHOTO_BYTES
from flair.download.staging import LISTING_SUFFIX, UnpackError
from flair.download.state import WORK_DIR

_RAW_PREFIX = catalog.raw_archive_url_path(0).rpartition("/")[2].partition("-")[0] + "-"


def extract(archive: Path, dataset_dir: Path, keep: bool) -> None:
    """Unpacks into the folder that the archive's name tells, then deletes the archive unless it is to be kept.

    Raises:
      UnpackError: the archive is damaged or refused; none of its photos is in place, and the archive stays.
    """
    folder = catalog.RAW_IMAGES_DIR if archive.name.startswith(_RAW_PREFIX) else catalog.SMALL_IMAGES_DIR
    work = dataset_dir / WORK_DIR
    work.mkdir(parents=True, exist_ok=True)
    listing = work / f"{archive.name}{LISTING_SUFFIX}"
    try:
        unpack(archive, dataset_dir / folder, archive.name, listing, MAX_PHOTO_BYTES[folder])
    except UnpackError as error:
        raise UnpackError(f"{archive}: {error}", corrupt=error.corrupt, rival=error.rival) from None
    if not keep:
        archive.unlink()
