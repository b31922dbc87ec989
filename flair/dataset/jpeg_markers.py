"""The markers of a JPEG file (ITU-T T.81, annex B): its frame, its scans, and where their coded data lies."""

from __future__ import annotations

import re
from typing import NamedTuple

_SOI, _EOI, _SOS, _DHT, _DRI = 0xD8, 0xD9, 0xDA, 0xC4, 0xDD
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), 0xC2
_OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)  # lossless, hierarchical, arithmetic
_RESTARTS = range(0xD0, 0xD8)
_WITHOUT_LENGTH = (0x01, _SOI, *_RESTARTS)
_MOST_SCANS = 500  # a few hours could pass over hundreds of thousands; a progressive photo has some ten
_FILLED = re.compile(rb"\xff+([^\xff])")  # any number of ones may stand before a marker


class BadJpeg(ValueError):
    """The file is not a whole JPEG; the message is a clause that says why, without the file's name."""


class Component(NamedTuple):
    """One color: its id, and how many blocks it has in a coding unit (MCU), across and down."""

    id: int
    across: int
    down: int


class Frame(NamedTuple):
    """What is coded; `height_at` is where the file holds the height, two bytes."""

    progressive: bool
    height_at: int
    height: int
    width: int
    components: tuple[Component, ...]

    @property
    def unit(self) -> tuple[int, int]:
        """Blocks that a coding unit has across and down, in the color that has the most of them."""
        return max(part.across for part in self.components), max(part.down for part in self.components)


Intervals = tuple[tuple[int, int], ...]  # where each of them begins and ends in the file


class Scan(NamedTuple):
    """One pass over the picture.

    Attributes:
      components: rows of the frame's.
      dc, ac: Huffman table of each of them, as the file defines it (16 counts, then the symbols); None if undefined.
      first, last: coefficients it holds, 0 to 63.
      before, after: bits of the coefficients still to come, before it (0 if it is their first) and after it.
      restart_interval: coding units between two restart markers; 0 without.
      intervals: of the coded bytes, divided by the restart markers.
    """

    components: tuple[int, ...]
    dc: tuple[bytes | None, ...]
    ac: tuple[bytes | None, ...]
    first: int
    last: int
    before: int
    after: int
    restart_interval: int
    intervals: Intervals


class Markers(NamedTuple):
    """The frame and the scans of a file; `end` is the byte after its end marker, whatever follows."""

    frame: Frame
    scans: tuple[Scan, ...]
    end: int


def read_markers(data: bytes) -> Markers:
    """Walks from the start marker to the end marker; BadJpeg where a segment is cut, missing or out of place."""
    if data[:2] != b"\xff\xd8":
        raise BadJpeg("is not a JPEG: it does not begin with a start marker")
    frame: Frame | None = None
    scans: list[Scan] = []
    tables: dict[int, bytes] = {}
    restart_interval = 0
    position = 2
    while True:
        found = _FILLED.match(data, position)
        if found is None:
            cut_or_damaged = "truncated" if position >= len(data) - 1 else "damaged"
            raise BadJpeg(f"is {cut_or_damaged}: it has no marker at byte {position:,}")
        marker, start = found[1][0], found.end()
        if marker == _EOI:
            if frame is None:
                raise BadJpeg("is damaged: it has no picture before its end marker")
            return Markers(frame, tuple(scans), start)
        if marker in _WITHOUT_LENGTH or marker in _OTHER_FRAMES or not marker:
            kind = "a coding that is not supported" if marker in _OTHER_FRAMES else "out of place"
            raise BadJpeg(f"is damaged: its marker FF {marker:02X} at byte {position:,} is {kind}")
        position = start + int.from_bytes(data[start : start + 2], "big")
        content = data[start + 2 : position]
        if not start + 2 <= position <= len(data):
            raise BadJpeg(f"is truncated: its segment at byte {start:,} is cut")
        try:
            if marker in (*_SEQUENTIAL, _PROGRESSIVE):
                if frame is not None:
                    raise BadJpeg("is damaged: it has two frames")
                frame = _frame(content, marker == _PROGRESSIVE, start + 3)
            elif marker == _DHT:
                tables.update(_tables(content))
            elif marker == _DRI:
                restart_interval = content[0] << 8 | content[1]
            elif marker == _SOS:
                if frame is None:
                    raise BadJpeg("is damaged: it has a scan before its frame")
                if len(scans) == _MOST_SCANS:
                    raise BadJpeg(f"has more than {_MOST_SCANS} scans, far more than a photo needs")
                intervals = _intervals(data, position, may_be_last=not scans)
                scans.append(_scan(content, frame, tables, restart_interval, intervals))
                position = intervals[-1][1]
        except IndexError:
            raise BadJpeg(f"is damaged: its segment at byte {start:,} is too short") from None


def _frame(content: bytes, progressive: bool, height_at: int) -> Frame:
    components = [
        Component(content[at], content[at + 1] >> 4, content[at + 1] & 15) for at in range(6, 6 + 3 * content[5], 3)
    ]
    if not all(1 <= part.across <= 4 and 1 <= part.down <= 4 for part in components):
        raise BadJpeg("is damaged: its sampling factors are not 1 to 4")
    height, width = content[1] << 8 | content[2], content[3] << 8 | content[4]
    return Frame(progressive, height_at, height, width, tuple(components))


def _tables(content: bytes) -> dict[int, bytes]:
    """Class and number of a table, in one byte -> its 16 counts and its symbols."""
    tables, at = {}, 0
    while at < len(content):
        end = at + 17 + sum(content[at + 1 : at + 17])
        if end > len(content):
            raise BadJpeg("is damaged: a Huffman table is cut")
        tables[content[at]] = content[at + 1 : end]
        at = end
    return tables


def _scan(content: bytes, frame: Frame, tables: dict[int, bytes], restart_interval: int, intervals: Intervals) -> Scan:
    count = content[0]
    rows = {part.id: row for row, part in enumerate(frame.components)}
    chosen = [(content[at], content[at + 1]) for at in range(1, 1 + 2 * count, 2)]
    if not chosen or len({name for name, _ in chosen} & rows.keys()) < count:
        raise BadJpeg("is damaged: a scan holds no color, one twice, or one that the frame does not have")
    first, last, precision = content[1 + 2 * count : 4 + 2 * count]
    return Scan(
        tuple(rows[name] for name, _ in chosen),
        tuple(tables.get(number >> 4) for _, number in chosen),
        tuple(tables.get(0x10 | number & 15) for _, number in chosen),
        *(first, last, precision >> 4, precision & 15),
        restart_interval,
        intervals,
    )


def _intervals(data: bytes, begin: int, may_be_last: bool) -> Intervals:
    end = data.find(b"\xff\xd9", begin) if may_be_last else -1
    if end >= 0 and data.count(b"\xff", begin, end) == data.count(b"\xff\x00", begin, end):
        return ((begin, end),)  # as most files are; what follows does the same, more slowly
    intervals: list[tuple[int, int]] = []
    ones = data.find(b"\xff", begin)
    while found := _FILLED.match(data, ones) if ones >= 0 else None:
        marker = found[1][0]
        if marker:  # a zero makes a coded byte of the ones before it
            intervals.append((begin, ones))
            begin = found.end()
            if marker not in _RESTARTS:
                return tuple(intervals)
            if marker != _RESTARTS[(len(intervals) - 1) % 8]:
                raise BadJpeg("is damaged: its restart markers are out of order")
        ones = data.find(b"\xff", found.end())
    raise BadJpeg("is truncated: it has no end-of-image marker")
