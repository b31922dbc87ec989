"""A whole JPEG of every kind passes; one whose coded data does not fill its picture is refused, wherever it ends."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flair.dataset import images
from flair.dataset.jpeg_markers import BadJpeg, read_markers
from flair.dataset.jpeg_whole import require_filled, require_whole
from tests.support.damage import time_limit

END = b"\xff\xd9"


def picture(mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(5).integers(0, 256, (32, 32, 3), np.uint8)
    return Image.fromarray(noise).resize((256, 256)).convert(mode)


def encoded(image: Image.Image, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, "JPEG", **options)
    return data.getvalue()


KINDS = {
    "baseline": encoded(picture()),
    "full color": encoded(picture(), subsampling=0, optimize=True),
    "half color": encoded(picture(), subsampling=1, quality=95),
    "coded as RGB": encoded(picture(), keep_rgb=True),
    "grayscale": encoded(picture("L")),
    "restart markers": encoded(picture(), restart_marker_blocks=7),
    "progressive": encoded(picture(), progressive=True),
    "progressive with restart markers": encoded(picture(), progressive=True, restart_marker_rows=2),
    "progressive grayscale": encoded(picture("L"), progressive=True),
    # The decoder's filling looks like this picture: only the codes themselves tell.
    "mean gray": encoded(Image.new("RGB", (256, 256), (128, 128, 128))),
}
READ = (images.checked_jpeg, images.decode)


def coded_span(data: bytes) -> tuple[int, int]:
    scans = read_markers(data).scans
    return scans[0].intervals[0][0], scans[-1].intervals[-1][1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_jpeg_of_every_kind_passes(kind: str) -> None:
    for check in (require_whole, lambda data: require_filled(data, read_markers(data))):
        check(KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_cut_anywhere_and_closed_with_an_end_marker_is_refused(kind: str) -> None:
    begin, end = coded_span(KINDS[kind])
    shares = [begin + round((end - begin) * share) for share in (0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999)]
    for cut in {*shares, *range(end - 4, end)} - {end}:
        for read in READ:
            with pytest.raises(images.BrokenPhoto, match=r"photo: is truncated.*; download it again"):
                read(KINDS[kind][:cut] + END, "photo")


def test_a_progressive_jpeg_that_lacks_its_last_scans_is_refused() -> None:
    data = KINDS["progressive"]
    for scan in read_markers(data).scans[:-1]:
        with pytest.raises(BadJpeg, match="is truncated: it does not have all scans"):
            require_whole(data[: scan.intervals[-1][1]] + END)


@pytest.mark.parametrize("kind", ["baseline", "grayscale", "restart markers", "progressive"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda coded: coded[: len(coded) // 2] + coded[len(coded) // 2 + 200 :],
        lambda coded: coded[: len(coded) // 2] + coded[len(coded) // 3 :],
        lambda coded: coded[: len(coded) // 2] + bytes(400) + coded[len(coded) // 2 + 400 :],
        lambda coded: coded + coded[len(coded) // 2 :],
    ],
    ids=["bytes lost", "bytes twice", "a hole of zeros", "bytes too many"],
)
def test_damage_inside_the_coded_data_is_refused(kind: str, damage: Callable[[bytes], bytes]) -> None:
    begin, end = coded_span(KINDS[kind])
    data = KINDS[kind]
    for read in READ:
        with pytest.raises(images.BrokenPhoto, match=r"photo: is (truncated|damaged|truncated or damaged): "):
            read(data[:begin] + damage(data[begin:end]) + data[end:], "photo")


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_changed_bytes_end_in_one_line_or_in_a_photo(kind: str, data: st.DataObject) -> None:
    changed = bytearray(KINDS[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(2, len(changed) - 1))] = data.draw(st.integers(0, 255))
    for check in (require_whole, lambda found: require_filled(found, read_markers(found))):
        reason = "is whole"
        try:
            check(bytes(changed))
        except BadJpeg as error:
            reason = str(error)
        assert reason.startswith("is ") and "\n" not in reason


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_behind_the_end_marker_are_no_fault(kind: str) -> None:
    data = KINDS[kind]
    for tail in (b"\0", b"appended" * 400, END, data[: len(data) // 2]):
        assert np.array_equal(images.decode(data + tail, "photo").data, images.decode(data, "photo").data)
        jpeg = images.checked_jpeg(data + tail, "photo")
        assert jpeg.converted or jpeg.data == data + tail


def test_a_thumbnail_inside_the_header_is_none_of_the_picture() -> None:
    data, thumbnail = KINDS["baseline"], encoded(picture().resize((32, 32)))
    comment = b"\xff\xfe" + (2 + len(thumbnail)).to_bytes(2, "big") + thumbnail
    require_whole(data[:2] + comment + data[2:])
    begin, end = coded_span(data)
    with pytest.raises(BadJpeg, match="truncated"):
        require_whole(data[:2] + comment + data[2 : (begin + end) // 2] + END)


def test_hundreds_of_thousands_of_scans_are_not_walked_through() -> None:
    """Each looked for the end of the file once more: an hour for a file of 4 MB."""
    whole = KINDS["baseline"]
    start = whole.index(b"\xff\xda")
    flooded = whole[:start] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" * 300_000 + whole[start:]
    with time_limit(5), pytest.raises(images.BrokenPhoto, match="has more than 500 scans"):
        images.checked_jpeg(flooded, "a.jpg")


def test_a_coding_that_cannot_be_checked_is_named() -> None:
    for marker in (0xC3, 0xC9, 0xCA):
        arithmetic = KINDS["baseline"].replace(b"\xff\xc0", bytes([0xFF, marker]), 1)
        with pytest.raises(images.BrokenPhoto, match=rf"its marker FF {marker:02X} .* a coding that is not supported"):
            images.checked_jpeg(arithmetic, "photo")


def test_every_real_photo_passes_and_none_does_when_it_is_cut(flair_sample: Path, coco256: Path) -> None:
    for folder, num_cut in ((flair_sample, 35), (coco256, 30)):
        for number, path in enumerate((folder / "small_images").iterdir()):
            data = path.read_bytes()
            require_whole(data)
            begin, end = coded_span(data)
            for cut in ((begin + end) // 2, end - 1) if number < num_cut else ():
                with pytest.raises(BadJpeg, match="its coded data does not fill the picture"):
                    require_whole(data[:cut] + END)


def test_every_photo_of_the_miniature_passes(miniature: Path) -> None:
    for path in (miniature / "small_images").iterdir():
        require_whole(path.read_bytes())
