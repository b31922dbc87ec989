"""Checks of the global heap, where an HDF5 file keeps values of any length, before the HDF5 library reads it.

On some damaged heaps the library goes round for ever, and nothing can interrupt it. Source of the layout: the HDF5 File
Format Specification, sections "III.E. Disk Format: Level 1E - Global Heap" and "VIII.B. Reference Encoding /
variable-length", https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from flair.files import regular_file

_COLLECTION = struct.Struct("<4sB3xQ")  # signature, version, size of the collection with this header
_BEGINNING = b"GCOL\x01\0\0\0"
_OBJECT = struct.Struct("<HH4xQ")  # index, reference count, size of the object without this header
_REFERENCE = struct.Struct("<IQI")  # number of elements, address of the collection, index in it
REFERENCE_BYTES = _REFERENCE.size
_SUPERBLOCK_VERSION_OFFSET = 8
BYTES_OF_ATTRIBUTES = 1 << 26  # at the beginning of a file, where attributes keep their texts


class DamagedHeap(ValueError):
    """An object of a collection has no index and no size, or ends outside of it: the library would go on for ever."""


def check_collections(path: Path, most_bytes: int) -> int:
    """Looks at the collections in the first `most_bytes` of a file; returns the size of their largest object.

    Raises DamagedHeap, and what `regular_file.open_file` raises.
    """
    largest = 0
    with _mapped(path) as data:
        start = data.find(_BEGINNING, 0, most_bytes)
        while start >= 0:
            end, size = _check_collection(data, start)
            largest = max(largest, size)
            start = data.find(_BEGINNING, end, most_bytes)  # not inside of it: a photo may look like another one
    return largest


def check_references(path: Path, place: int, count: int) -> None:
    """Looks at the collections that `count` references at `place` lead to; errors as of `check_collections`."""
    with _mapped(path) as data:
        if not data or place + count * _REFERENCE.size > len(data):
            return
        addresses = {address for _, address, _ in _REFERENCE.iter_unpack(data[place : place + count * _REFERENCE.size])}
        for address in addresses:
            if data[address : address + len(_BEGINNING)] == _BEGINNING:  # the library itself refuses any other
                _check_collection(data, address)


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap | bytes]:
    """The bytes of a file, none where its addresses have another size than 8 bytes."""
    with regular_file.open_file(path) as file:
        if os.fstat(file.fileno()).st_size == 0:
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            version = data[_SUPERBLOCK_VERSION_OFFSET : _SUPERBLOCK_VERSION_OFFSET + 1]
            sizes = data[13:15] if version in (b"\0", b"\1") else data[9:11]
            yield data if sizes == b"\x08\x08" else b""


def _check_collection(data: mmap.mmap | bytes, start: int) -> tuple[int, int]:
    """Where a collection ends, if it does, and its largest object."""
    place = start + _COLLECTION.size
    if place > len(data):
        return place, 0
    end = start + _COLLECTION.unpack_from(data, start)[2]
    if not place <= end <= len(data):
        return place, 0
    largest = 0
    while place + _OBJECT.size <= end:
        index, _, size = _OBJECT.unpack_from(data, place)
        place += size if index == 0 else _OBJECT.size + -(-size // 8) * 8
        if (index == 0 and size < _OBJECT.size) or place > end:
            raise DamagedHeap(f"its heap is damaged at byte {start:,}")
        largest = max(largest, size)
    return end, largest
