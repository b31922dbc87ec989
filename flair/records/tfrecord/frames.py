"""TFRecord framing, without TensorFlow: a record is a length, its checksum, a payload, its checksum.

Source of the format: https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import google_crc32c

from flair.errors import FlairError
from flair.files import regular_file

_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")
_HEADER_BYTES = _LENGTH.size + _CHECKSUM.size
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
    """Yields the payloads of the records in `length` bytes of `path` from `offset`, with one seek (None: to its end).

    Raises:
      DamagedRecord: a checksum is wrong, or the bytes end inside a record; one line naming the file and the offset.
    """
    with regular_file.open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        end = size if length is None else offset + length
        if end > size:
            raise DamagedRecord(f"{path}: has {size:,} bytes where the index says {end:,}; prepare it again")
        file.seek(offset)
        while offset < end:
            payload = _read_payload(file, offset, end, path)
            offset += len(payload) + FRAME_BYTES
            yield payload


def _read_payload(file: BinaryIO, offset: int, end: int, path: str | Path) -> bytes:
    header = file.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES:
        raise _damaged(path, offset, "the file ends inside a record")
    length_bytes, (checksum,) = header[: _LENGTH.size], _CHECKSUM.unpack_from(header, _LENGTH.size)
    (length,) = _LENGTH.unpack(length_bytes)
    if masked_crc32c(length_bytes) != checksum:
        raise _damaged(path, offset, "the checksum of the length is wrong")
    if offset + length + FRAME_BYTES > end:
        raise _damaged(path, offset, "the record is longer than its file or index entry")
    payload = file.read(length)
    trailer = file.read(_CHECKSUM.size)
    if len(trailer) < _CHECKSUM.size:
        raise _damaged(path, offset, "the file ends inside a record")
    if masked_crc32c(payload) != _CHECKSUM.unpack(trailer)[0]:
        raise _damaged(path, offset, "the checksum of the payload is wrong")
    return payload


def _damaged(path: str | Path, offset: int, reason: str) -> DamagedRecord:
    return DamagedRecord(f"{path}: damaged record at byte {offset:,}: {reason}; prepare it again")
