"""One photo of `small_images`: read, checked, and turned into what the record files store.

A photo is refused unless it is a whole 256x256 JPEG in RGB or grayscale. Its dimensions are read from the header and
checked before anything is decoded, so a decompression bomb costs no memory. Bytes behind its end marker are no fault:
cameras and web sites append some, and every decoder stops before them. Grayscale becomes RGB, because readers of the
record files reshape every photo to [256, 256, 3].
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile

from flair.dataset.catalog import IMAGE_SIZE, SMALL_IMAGES_DIR
from flair.dataset.jpeg_markers import BadJpeg
from flair.dataset.jpeg_whole import require_whole
from flair.dataset.metadata import Record
from flair.errors import FlairError

PIXELS_SHAPE = (IMAGE_SIZE, IMAGE_SIZE, 3)
PIXELS_BYTES = IMAGE_SIZE * IMAGE_SIZE * 3
MAX_JPEG_BYTES = 4 * 1024 * 1024  # FLAIR's photos have 3 to 22 KB; uncompressed they have 192 KiB
# Pillow warns about metadata beside the picture without naming the photo.
warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")
CONVERTED_QUALITY = 95  # of a grayscale photo stored as an RGB JPEG


class PhotoError(FlairError):
    """A photo cannot be used; one subclass per reason."""


class MissingPhoto(PhotoError):
    """The file does not exist, or is not a file."""


class BrokenPhoto(PhotoError):
    """The file is not a JPEG, or its coded data does not fill its picture."""


class WrongSize(PhotoError):
    """The photo is not 256x256."""


class WrongColors(PhotoError):
    """The photo is neither RGB nor grayscale (CMYK, for example)."""


class Jpeg(NamedTuple):
    """A checked photo as JPEG bytes; `converted` if it was grayscale and is encoded again as RGB."""

    data: bytes
    converted: bool


class Pixels(NamedTuple):
    """A checked photo as uint8 [256, 256, 3]; `converted` if it was grayscale."""

    data: NDArray[np.uint8]
    converted: bool


def read_jpeg(dataset_dir: str | Path, record: Record) -> Jpeg:
    """Reads and checks the photo of `record`; an RGB photo's bytes are returned untouched.

    Raises:
      PhotoError: one line naming the file, the image and the user, and what is wrong.
    """
    return checked_jpeg(*read_file(dataset_dir, record))


def read_pixels(dataset_dir: str | Path, record: Record) -> Pixels:
    """Reads, checks and decodes the photo of `record`; errors as of `read_jpeg`."""
    return decode(*read_file(dataset_dir, record))


def read_file(dataset_dir: str | Path, record: Record) -> tuple[bytes, str]:
    """The file of a photo, and how messages name it, both for `decode`; errors as of `read_jpeg`."""
    path, where = _place(dataset_dir, record)
    size = _size(path, where)
    if size > MAX_JPEG_BYTES:
        raise BrokenPhoto(f"{where}: has {size:,} bytes, far more than a photo of that size; download it again")
    try:
        with open(path, "rb") as file:
            return file.read(), where
    except OSError as error:
        raise BrokenPhoto(f"{where}: cannot be read ({error.strerror}); check the disk") from None


def checked_jpeg(data: bytes, where: str) -> Jpeg:
    """Checks that a JPEG is whole, to its last coded bit; see `read_jpeg`."""
    image = _open(data, where)
    if image.mode == "RGB":
        return Jpeg(data, False)
    _load(image, where)
    encoded = io.BytesIO()
    image.convert("RGB").save(encoded, "JPEG", quality=CONVERTED_QUALITY, subsampling=0)
    return Jpeg(encoded.getvalue(), True)


def decode(data: bytes, where: str) -> Pixels:
    """Decodes JPEG bytes to RGB; `where` begins the message of the PhotoError that a bad photo ends in."""
    image = _open(data, where)
    _load(image, where)
    converted = image.mode == "L"
    return Pixels(np.asarray(image.convert("RGB") if converted else image), converted)


def is_stored_as(data: bytes, dataset_dir: str | Path, record: Record) -> bool:
    """Whether `read_jpeg` gives these bytes; its errors where they are not those of the file."""
    return data == read_file(dataset_dir, record)[0] or data == read_jpeg(dataset_dir, record).data


def stored_size(dataset_dir: str | Path, record: Record) -> int:
    """Bytes of a photo's file, which `read_jpeg` may convert to others; raises MissingPhoto where it is not there."""
    return _size(*_place(dataset_dir, record))


def total_size(dataset_dir: str | Path, records: Iterable[Record]) -> int:
    """Bytes of all photos of `records`; raises MissingPhoto for the first that is not there."""
    return sum(stored_size(dataset_dir, record) for record in records)


def _place(dataset_dir: str | Path, record: Record) -> tuple[str, str]:
    """The path of a photo, and how messages name it."""
    # As flair.dataset.metadata.photo_path, without the cost of half a million Path objects.
    path = os.path.join(dataset_dir, SMALL_IMAGES_DIR, f"{record.image_id}.jpg")
    return path, f"{path} (image {record.image_id} of user {record.user_id})"


def _size(path: str, where: str) -> int:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingPhoto(f"{where}: the photo is missing; run download_dataset.py again") from None
    except OSError as error:
        raise BrokenPhoto(f"{where}: cannot be read ({error.strerror}); check the disk") from None
    if not stat.S_ISREG(status.st_mode):
        raise MissingPhoto(f"{where}: is no regular file; run download_dataset.py again")
    return status.st_size


def _open(data: bytes, where: str) -> JpegImageFile:
    try:
        image = JpegImageFile(io.BytesIO(data))
    except (SyntaxError, OSError, ValueError):
        reason = "is not a JPEG that can be read" if data else "is empty"
        raise BrokenPhoto(f"{where}: {reason}; download it again") from None
    if image.size != (IMAGE_SIZE, IMAGE_SIZE):
        width, height = image.size
        raise WrongSize(f"{where}: is {width}x{height} pixels, expected {IMAGE_SIZE}x{IMAGE_SIZE}; download it again")
    if image.mode not in ("RGB", "L"):
        raise WrongColors(f"{where}: its colors are {image.mode}, expected RGB; convert it or download it again")
    try:
        require_whole(data)
    except BadJpeg as error:
        raise BrokenPhoto(f"{where}: {error}; download it again") from None
    return image


def _load(image: JpegImageFile, where: str) -> None:
    try:
        image.load()
    except (OSError, SyntaxError, ValueError):
        raise BrokenPhoto(f"{where}: is damaged: it does not decode; download it again") from None
