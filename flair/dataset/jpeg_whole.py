"""Whether a JPEG file is whole: its markers are in order, and its coded data fills its picture.

libjpeg decodes what is there, takes zeros for the rest, and warns; Pillow does not pass the warning on. So the file is
decoded at an eighth of its size as if the picture were one row of coding units taller. libjpeg leaves units mean gray
(128) once it has run out of data, and not before: data that ends inside the picture leaves all of the added row gray;
data that fills the picture ends within the row's first unit, which begins with the color of the last one. Where that is
gray by chance, where the data goes on, and in files of several scans or with restart markers, the codes are read one by
one. What passes nevertheless is damage after which the codes fit the picture again, give or take a few bytes.
"""

from __future__ import annotations

import io

from PIL.JpegImagePlugin import JpegImageFile

from flair.dataset.jpeg_coding import require_filled
from flair.dataset.jpeg_markers import BadJpeg, Frame, Markers, read_markers

_BLOCK = 8
_RAN_OUT = b"\x80"


def require_whole(data: bytes) -> None:
    """Returns if the file is whole up to its end marker, behind which no decoder reads; else raises BadJpeg."""
    markers = read_markers(data)
    data = data[: markers.end]
    is_plain = _is_plain(markers)
    if is_plain and _ends_in_time(data, markers.frame):
        return
    require_filled(data, markers)
    if not is_plain:
        _decode_small(data)


def _is_plain(markers: Markers) -> bool:
    """Whether the file is as most are: one scan of all colors, without restart markers."""
    return (
        not markers.frame.progressive
        and len(markers.scans) == 1
        and len(markers.scans[0].components) == len(markers.frame.components)
        and markers.scans[0].restart_interval == 0
        and len(markers.scans[0].intervals) == 1
    )


def _ends_in_time(data: bytes, frame: Frame) -> bool:
    """Whether the decoder ran out of data in the first unit of a row below the picture; False also if in doubt."""
    across, down = (1, 1) if len(frame.components) == 1 else frame.unit
    rows = -(-frame.height // (_BLOCK * down)) * down  # in an eighth of the size
    taller = (_BLOCK * (rows + down)).to_bytes(2, "big")
    small = _decode_small(data[: frame.height_at] + taller + data[frame.height_at + 2 :])
    colors = len(small.getbands())
    pixels, line = small.tobytes(), small.width * colors
    below = [pixels[start : start + line] for start in range(rows * line, len(pixels), line)]
    first = b"".join(row[: across * colors] for row in below)
    others = b"".join(row[across * colors :] for row in below)
    return bool(first.strip(_RAN_OUT)) and not others.strip(_RAN_OUT)


def _decode_small(data: bytes) -> JpegImageFile:
    """The picture at an eighth of the size; all coded data is read for it."""
    try:
        image = JpegImageFile(io.BytesIO(data))
        image.draft("RGB", (max(1, image.width // _BLOCK), max(1, image.height // _BLOCK)))
        image.load()
    except (OSError, SyntaxError, ValueError):
        raise BadJpeg("is truncated or damaged: it does not decode to its end") from None
    return image
