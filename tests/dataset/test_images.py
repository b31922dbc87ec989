"""Photos: good ones pass untouched, grayscale becomes RGB, and each kind of bad one ends in one line."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flair.dataset import images
from flair.dataset.metadata import Record, load_records

RECORD = Record("59769174@N00", "14913474848", ("art",), ("art",), "train")


def picture(mode: str = "RGB", size: tuple[int, int] = (256, 256)) -> Image.Image:
    noise = np.random.default_rng(5).integers(0, 256, (16, 16, 3), np.uint8)
    return Image.fromarray(noise).resize(size).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


PHOTO = encoded(picture())


def place(folder: Path, data: bytes) -> Path:
    (folder / "small_images").mkdir(exist_ok=True)
    (folder / "small_images" / f"{RECORD.image_id}.jpg").write_bytes(data)
    return folder


def test_a_good_photo_keeps_its_bytes_and_decodes_as_pillow_does(tmp_path: Path) -> None:
    place(tmp_path, PHOTO)
    assert images.read_jpeg(tmp_path, RECORD) == (PHOTO, False)
    pixels = images.read_pixels(tmp_path, RECORD)
    assert not pixels.converted
    assert pixels.data.dtype == np.uint8
    assert np.array_equal(pixels.data, np.asarray(Image.open(io.BytesIO(PHOTO))))


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"quality": 100, "optimize": True}])
def test_every_kind_of_rgb_jpeg_is_good(tmp_path: Path, options: dict[str, object]) -> None:
    data = encoded(picture(), **options)
    assert images.read_jpeg(place(tmp_path, data), RECORD) == (data, False)


def test_a_grayscale_photo_becomes_an_rgb_jpeg_and_rgb_pixels(tmp_path: Path) -> None:
    gray = picture("L")
    place(tmp_path, encoded(gray))
    jpeg = images.read_jpeg(tmp_path, RECORD)
    assert jpeg.converted
    reopened = Image.open(io.BytesIO(jpeg.data))
    assert (reopened.format, reopened.mode, reopened.size) == ("JPEG", "RGB", (256, 256))
    pixels = images.read_pixels(tmp_path, RECORD)
    assert pixels.converted
    assert np.array_equal(pixels.data, np.repeat(np.asarray(Image.open(io.BytesIO(encoded(gray))))[..., None], 3, 2))
    assert np.abs(np.asarray(reopened).astype(int) - pixels.data).max() <= 8
    assert images.read_jpeg(tmp_path, RECORD) == jpeg


def bomb() -> bytes:
    header = PHOTO.index(b"\xff\xc0")
    return PHOTO[: header + 5] + b"\xff\xdc\xff\xdc" + PHOTO[header + 9 :]


@pytest.mark.parametrize("read", [images.read_jpeg, images.read_pixels])
@pytest.mark.parametrize(
    ("data", "kind", "reason"),
    [
        (b"", images.BrokenPhoto, "is empty"),
        (b"<html>404</html>", images.BrokenPhoto, "is not a JPEG"),
        (encoded(picture(), "PNG"), images.BrokenPhoto, "is not a JPEG"),
        (PHOTO[:600], images.BrokenPhoto, "is not a JPEG|is truncated"),
        (PHOTO[: len(PHOTO) // 2], images.BrokenPhoto, "is truncated"),
        (PHOTO[:-2], images.BrokenPhoto, "is truncated"),
        (bytes(5_000_000), images.BrokenPhoto, "has 5,000,000 bytes"),
        (encoded(picture(size=(256, 255))), images.WrongSize, "is 256x255 pixels, expected 256x256"),
        (encoded(picture(size=(300, 200))), images.WrongSize, "is 300x200 pixels"),
        (bomb(), images.WrongSize, "is 65500x65500 pixels"),
        (encoded(picture("CMYK")), images.WrongColors, "its colors are CMYK, expected RGB"),
    ],
)
def test_a_bad_photo_is_named_with_its_user(
    tmp_path: Path, data: bytes, kind: type[images.PhotoError], reason: str, read: object
) -> None:
    place(tmp_path, data)
    with pytest.raises(kind, match=reason) as error:
        read(tmp_path, RECORD)  # type: ignore[operator]
    assert "image 14913474848 of user 59769174@N00" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_photo_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "small_images").mkdir()
    (tmp_path / "small_images" / "1.jpg").symlink_to("1.jpg")
    with pytest.raises(images.BrokenPhoto, match=r"1\.jpg .*: cannot be read \(Too many levels of symbolic links\)"):
        images.read_jpeg(tmp_path, Record("1@N00", "1", ("art",), ("art",), "train"))


@pytest.mark.parametrize("read", [images.read_jpeg, images.read_pixels])
def test_a_missing_photo_is_named(tmp_path: Path, read: object) -> None:
    with pytest.raises(images.MissingPhoto, match=r"14913474848\.jpg \(image 14913474848 of user .*missing"):
        read(tmp_path, RECORD)  # type: ignore[operator]


def test_something_else_in_the_place_of_a_photo_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "small_images").mkdir()
    os.mkfifo(tmp_path / "small_images" / f"{RECORD.image_id}.jpg")  # opening it would wait forever
    with pytest.raises(images.MissingPhoto, match="is no regular file"):
        images.read_jpeg(tmp_path, RECORD)


@given(st.integers(1, len(PHOTO)))
def test_a_photo_cut_anywhere_is_refused(cut: int) -> None:
    with pytest.raises(images.BrokenPhoto):
        images.checked_jpeg(PHOTO[:-cut], "photo")


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda tail: PHOTO[:400] + tail))
def test_no_bytes_end_in_another_error(data: bytes) -> None:
    for read in (images.checked_jpeg, images.decode):
        with pytest.raises(images.PhotoError):
            read(data, "photo")


def test_sizes_of_all_photos_are_summed_and_a_missing_one_is_named(flair_sample: Path, tmp_path: Path) -> None:
    records = load_records(flair_sample)
    expected = sum(path.stat().st_size for path in (flair_sample / "small_images").iterdir())
    assert images.total_size(flair_sample, records) == expected
    with pytest.raises(images.MissingPhoto, match=records[0].image_id):
        images.total_size(tmp_path, records)
