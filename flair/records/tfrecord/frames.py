"""TFRecord framing, without TensorFlow: a record is a length, its checksum, a payload, its checksum.

Source of the format: https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import google_crc32c

from flair.errors import FlairError
from flair.files import regular_file

_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")
_HEADER = struct.Struct("<QI")  # the length and its checksum
_HEADER_BYTES = _HEADER.size
FRAME_BYTES = _HEADER_BYTES + _CHECKSUM.size  # a record's bytes beside its payload


class DamagedRecord(FlairError):
    """A record file does not hold what was written to it."""


def masked_crc32c(data: bytes) -> int:
    """The checksum of the format: CRC-32C, rotated and shifted so that checksums of checksums stay useful.

    >>> hex(masked_crc32c(b"123456789"))
    '0xc78ab0e5'
    """
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame(payload: bytes) -> bytes:
    """One record of a TFRecord file: 16 bytes more than its payload.

    >>> len(frame(b"abc"))
    19
    """
    length = _LENGTH.pack(len(payload))
    return b"".join((length, _CHECKSUM.pack(masked_crc32c(length)), payload, _CHECKSUM.pack(masked_crc32c(payload))))


def read_payloads(path: str | Path, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
    """Yields the payloads of the records in `length` bytes of `path` from `offset` (None: to its end).

    Raises:
      DamagedRecord: a checksum is wrong, or the bytes end inside a record; one line naming the file and the offset.
    """
    with regular_file.open_file(path) as file:
        for start, num_bytes in _places(file.fileno(), path, offset, length):
            rest = os.pread(file.fileno(), num_bytes - _HEADER_BYTES, start + _HEADER_BYTES)
            payload, checksum = rest[: -_CHECKSUM.size], rest[-_CHECKSUM.size :]
            if len(rest) < num_bytes - _HEADER_BYTES:
                raise _damaged(path, start, "the file ends inside a record")
            if checksum != _CHECKSUM.pack(masked_crc32c(payload)):
                raise _damaged(path, start, "the checksum of the payload is wrong")
            yield payload


def record_places(path: str | Path, offset: int = 0, length: int | None = None) -> list[tuple[int, int]]:
    """Offset and length in bytes of each of these records, from their headers alone; errors as of `read_payloads`."""
    with regular_file.open_file(path) as file:
        return list(_places(file.fileno(), path, offset, length))


def _places(descriptor: int, path: str | Path, offset: int, length: int | None) -> Iterator[tuple[int, int]]:
    size = os.fstat(descriptor).st_size
    end = size if length is None else offset + length
    if end > size:
        raise DamagedRecord(f"{path}: has {size:,} bytes where the index says {end:,}; prepare it again")
    while offset < end:
        header = os.pread(descriptor, _HEADER_BYTES, offset)
        if len(header) < _HEADER_BYTES:
            raise _damaged(path, offset, "the file ends inside a record")
        payload_bytes, checksum = _HEADER.unpack(header)
        if masked_crc32c(header[: _LENGTH.size]) != checksum:
            raise _damaged(path, offset, "the checksum of the length is wrong")
        num_bytes = payload_bytes + FRAME_BYTES
        if offset + num_bytes > end:
            raise _damaged(path, offset, "the record is longer than its file or index entry")
        yield offset, num_bytes
        offset += num_bytes


def _damaged(path: str | Path, offset: int, reason: str) -> DamagedRecord:
    return DamagedRecord(f"{path}: damaged record at byte {offset:,}: {reason}; prepare it again")
