"""Whether a JPEG file is whole: its markers are in order, and its coded data fills its picture.

libjpeg decodes what is there, takes zeros for the rest, and warns; Pillow does not pass the warning on. So the file is
decoded at an eighth of its size as if the picture were one row of coding units taller. libjpeg leaves units mean gray
(128) once it has run out of data, and not before: data that ends inside the picture leaves all of the added row gray;
data that fills the picture ends within the row's first unit, which begins with the color of the last one. Where that is
gray by chance, where the data goes on, and in files of several scans or with restart markers, the Huffman codes are
read one by one (ITU-T T.81, F.2 and G.2), and no pixel is made. What passes nevertheless is damage after which the
codes fit the picture again, give or take a few bytes.
"""

from __future__ import annotations

import functools
import io
import math
import re
from collections.abc import Callable

import numpy as np
from PIL.JpegImagePlugin import JpegImageFile

from flair.dataset.jpeg_markers import BadJpeg, Frame, Markers, Scan, read_markers

_BLOCK = 8
_RAN_OUT = b"\x80"
_COEFFICIENTS = 64
_LAST = _COEFFICIENTS - 1
_STUFFED = re.compile(rb"\xff+\x00")
# An entry of a code table: bits << 9 | _CODED if a coefficient follows | how many coefficients it goes on. An end of
# block goes on by _END_OF_BLOCK and the number of bits that tell how many blocks it ends.
_CODED, _ADVANCE, _END_OF_BLOCK = 0x100, 0xFF, 128
_NO_CODE = 1 << 49  # more bits than any file has

Codes = list[int]  # [65536], by the next 16 bits
Windows = memoryview  # of uint16, for each bit; a list of a large file would take gigabytes


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


def require_filled(data: bytes, markers: Markers) -> None:
    """Returns if the coded data has every coefficient of the picture and nothing more, else raises BadJpeg.

    It takes about 0.2 microseconds per bit, so it is for files about which a decoder leaves a doubt.
    """
    frame = markers.frame
    _require_all_scans(markers)
    nonzero = [bytearray(_COEFFICIENTS * math.prod(_blocks(frame, row))) for row in range(len(frame.components))]
    for scan in markers.scans:
        units, rows = _coding_units(frame, scan)
        per_interval = scan.restart_interval or units
        if len(scan.intervals) != -(-units // per_interval):
            raise BadJpeg("is truncated or damaged: a part of its coded data is missing")
        walk = _walker(frame, scan, rows, nonzero)
        for number, (begin, end) in enumerate(scan.intervals):
            coded = _STUFFED.sub(b"\xff", data[begin:end])
            first = number * per_interval
            try:
                used = walk(_windows(coded), first, min(first + per_interval, units))
            except IndexError:
                used = _NO_CODE
            if used > 8 * len(coded):
                raise BadJpeg("is truncated or damaged: its coded data does not fill the picture")
            if used <= 8 * (len(coded) - 1):
                raise BadJpeg("is damaged: it has more coded data than its picture needs")


def _require_all_scans(markers: Markers) -> None:
    to_come: list[list[int | None]] = [[None] * _COEFFICIENTS for _ in markers.frame.components]  # bits; None: all
    for given in markers.scans:
        scan = given if markers.frame.progressive else given._replace(first=0, last=_LAST, before=0, after=0)
        dc_or_ac = scan.last == 0 if scan.first == 0 else _alone(scan)
        if markers.frame.progressive and not (dc_or_ac and scan.first <= scan.last <= _LAST):
            raise BadJpeg("is damaged: a scan holds coefficients that cannot stand together")
        for row in scan.components:
            for coefficient in range(scan.first, scan.last + 1):
                if to_come[row][coefficient] != (scan.before or None) or scan.before not in (0, scan.after + 1):
                    raise BadJpeg("is damaged: its scans contradict one another")
                to_come[row][coefficient] = scan.after
    if any(bits != 0 for of_component in to_come for bits in of_component):
        raise BadJpeg("is truncated: it does not have all scans of its picture")


def _alone(scan: Scan) -> bool:
    return len(scan.components) == 1


def _blocks(frame: Frame, row: int) -> tuple[int, int]:
    """(down, across) blocks of a component that has a scan for itself."""
    part, (across, down) = frame.components[row], frame.unit
    return -(-frame.height * part.down // (8 * down)), -(-frame.width * part.across // (8 * across))


def _coding_units(frame: Frame, scan: Scan) -> tuple[int, list[int]]:
    """How many coding units a scan has, and the place in `scan.components` of each block of one of them."""
    if _alone(scan):
        return math.prod(_blocks(frame, scan.components[0])), [0]
    across, down = frame.unit
    parts = [frame.components[row] for row in scan.components]
    places = [place for place, part in enumerate(parts) for _ in range(part.across * part.down)]
    return -(-frame.height // (8 * down)) * -(-frame.width // (8 * across)), places


def _windows(coded: bytes) -> Windows:
    """For each bit, and those of one byte more, the 16 bits that begin there; zeros follow the data."""
    padded = np.frombuffer(coded + b"\0\0\0", np.uint8).astype(np.uint32)
    three_bytes = padded[:-2] << 16 | padded[1:-1] << 8 | padded[2:]
    return (three_bytes[:, None] >> np.arange(8, 0, -1, np.uint32)).astype(np.uint16).reshape(-1).data


# Walks the units `first` to `last` from the first bit of an interval on, and returns the number of bits.
_Walk = Callable[[Windows, int, int], int]


def _walker(frame: Frame, scan: Scan, places: list[int], nonzero: list[bytearray]) -> _Walk:
    dc, ac = (
        [_codes(table, kind) if table is not None else None for table in tables]
        for tables, kind in ((scan.dc, "dc"), (scan.ac, "ac"))
    )
    if not frame.progressive:
        both = [(_defined(dc[place]), _defined(ac[place])) for place in places]
        return lambda windows, first, last: _sequential(windows, both * (last - first))
    if scan.first == 0:
        if scan.before:
            return lambda windows, first, last: len(places) * (last - first)
        own = [_defined(dc[place]) for place in places]
        return lambda windows, first, last: _dc(windows, own * (last - first))
    walk = _ac_again if scan.before else _ac_first
    history, codes = nonzero[scan.components[0]], _defined(ac[0])
    return lambda windows, first, last: walk(windows, codes, range(first, last), scan.first, scan.last, history)


def _sequential(windows: Windows, blocks: list[tuple[Codes, Codes]]) -> int:
    position = 0
    for dc, ac in blocks:
        position += dc[windows[position]] >> 9
        coefficient = 1
        while coefficient < _COEFFICIENTS:
            entry = ac[windows[position]]
            position += entry >> 9
            coefficient += entry & _ADVANCE
        if _COEFFICIENTS < coefficient < _END_OF_BLOCK:
            return _NO_CODE
    return position


def _dc(windows: Windows, blocks: list[Codes]) -> int:
    position = 0
    for codes in blocks:
        position += codes[windows[position]] >> 9
    return position


def _ac_first(windows: Windows, codes: Codes, blocks: range, first: int, last: int, nonzero: bytearray) -> int:
    position = ended = 0
    for block in blocks:
        if ended:
            ended -= 1
            continue
        coefficient = first
        while coefficient <= last:
            entry = codes[windows[position]]
            position += entry >> 9
            coefficient += entry & _ADVANCE
            if entry & _END_OF_BLOCK:
                more = (entry & _ADVANCE) - _END_OF_BLOCK
                ended = (1 << more) - 1 + (windows[position] >> 16 - more)
                position += more
            elif coefficient > last + 1:
                return _NO_CODE
            elif entry & _CODED:
                nonzero[_COEFFICIENTS * block + coefficient - 1] = 1
    return position


def _ac_again(windows: Windows, codes: Codes, blocks: range, first: int, last: int, nonzero: bytearray) -> int:
    """One more bit of each coefficient: plain where it is nonzero already, else as a code if it becomes nonzero."""
    position = ended = 0
    for block in blocks:
        base = _COEFFICIENTS * block
        coefficient = first
        while not ended and coefficient <= last:
            entry = codes[windows[position]]
            position += entry >> 9
            if entry & _END_OF_BLOCK:
                more = (entry & _ADVANCE) - _END_OF_BLOCK
                ended = (1 << more) + (windows[position] >> 16 - more)
                position += more
                break
            zeros = entry & _ADVANCE
            while coefficient <= last:
                if nonzero[base + coefficient]:
                    position += 1
                else:
                    zeros -= 1
                    if not zeros:
                        break
                coefficient += 1
            if entry & _CODED:
                if coefficient > last:
                    return _NO_CODE
                nonzero[base + coefficient] = 1
            coefficient += 1
        if ended:
            position += sum(nonzero[base + coefficient : base + last + 1])
            ended -= 1
    return position


def _defined(codes: Codes | None) -> Codes:
    if codes is None:
        raise BadJpeg("is damaged: it lacks a Huffman table")
    return codes


@functools.lru_cache(maxsize=16)
def _codes(table: bytes, kind: str) -> Codes:
    """The entries of a Huffman table for every 16 bits that may come; its codes are in the order of their symbols."""
    entries = np.full(1 << 16, _NO_CODE << 9, np.int64)
    start, symbols = 0, iter(table[16:])
    for length, count in enumerate(table[:16], start=1):
        for _ in range(count):
            end = start + (1 << 16 - length)
            entries[start:end] = _entry(next(symbols), length, kind)
            start = end
    if start > 1 << 16:
        raise BadJpeg("is damaged: a Huffman table has too many codes")
    return list(entries.tolist())


def _entry(symbol: int, length: int, kind: str) -> int:
    if kind == "dc":
        return length + symbol << 9
    zeros, size = symbol >> 4, symbol & 15
    if size:
        return length + size << 9 | _CODED | zeros + 1
    return length << 9 | (16 if zeros == 15 else _END_OF_BLOCK + zeros)
