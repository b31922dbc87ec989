"""Packs a dataset folder the way Apple's server has it, so that the downloader can be tried without the network."""

from __future__ import annotations

import gzip
import shutil
import tarfile
from pathlib import Path
from typing import IO, cast

from flair.dataset import catalog
from flair.dataset.metadata import load_records, photo_path
from flair.errors import FlairError
from flair.files import atomic
from flair.files.regular_file import file_sha256
from flair.terminal.progress import Progress

_GZIP_LEVEL = 1  # JPEG does not get smaller


def pack(dataset_dir: str | Path, archives_dir: str | Path, num_archives: int, *, raw: bool = False) -> list[Path]:
    """Lays out `archives_dir` as the folder behind `catalog.APPLE_BASE_URL`; returns the files written.

    Two label files, and `num_archives` (1 or more, at most one a photo) of the form
    `images/small/small_images-00.tar.gz`, whose members are `small_images/<image_id>.jpg`, with a manifest that names
    them all, their sizes and sha256. The photos are dealt out in file order, as evenly as can be. With `raw`, the same
    photos once more as `images/raw/images-00.tar.gz` with members `raw_images/<image_id>.jpg`. The same dataset gives
    the same bytes.

    Raises:
      FlairError: a photo is missing.
    """
    dataset_dir, archives = Path(dataset_dir), Path(archives_dir)
    image_ids = [record.image_id for record in load_records(dataset_dir)]
    written = [archives / url_path for url_path in (catalog.METADATA_URL_PATH, catalog.TAXONOMY_URL_PATH)]
    for path in written:
        with atomic.replacing(path) as temporary:
            shutil.copyfile(dataset_dir / path.name, temporary)
    kinds = [(catalog.SMALL_IMAGES_DIR, catalog.small_archive_url_path)]
    if raw:
        kinds.append((catalog.RAW_IMAGES_DIR, catalog.raw_archive_url_path))
    with Progress(len(image_ids) * len(kinds), "packing", "photo") as progress:
        for top, url_path_of in kinds:
            listed: list[dict[str, int | str]] = []
            for index in range(num_archives):
                start, stop = (len(image_ids) * i // num_archives for i in (index, index + 1))
                path = archives / url_path_of(index)
                with atomic.replacing(path) as temporary:
                    _write_archive(temporary, dataset_dir, top, image_ids[start:stop])
                written.append(path)
                size, sha256 = path.stat().st_size, file_sha256(path)
                listed.append({"name": path.name, "size": size, "sha256": sha256, "photos": stop - start})
                progress.add(stop - start)
            manifest = archives / Path(url_path_of(0)).parent / catalog.MANIFEST_FILE
            atomic.write_json(manifest, {"archives": listed})
            written.append(manifest)
    return written


def _write_archive(path: Path, dataset_dir: Path, top: str, image_ids: list[str]) -> None:
    with (
        open(path, "wb") as file,
        gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as compressed,
        tarfile.open(fileobj=cast(IO[bytes], compressed), mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        folder = tarfile.TarInfo(top)
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(folder)
        for image_id in image_ids:
            photo = photo_path(dataset_dir, image_id)
            try:
                with open(photo, "rb") as content:
                    member = tarfile.TarInfo(f"{top}/{image_id}.jpg")
                    member.size = photo.stat().st_size
                    archive.addfile(member, content)
            except FileNotFoundError:
                raise FlairError(f"{photo}: missing, but in the metadata; make the dataset again") from None
