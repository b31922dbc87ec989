"""Where HDF5 keeps variable-length values: global heap collections, laid out by hand.

The HDF5 library can write them too, but not so that a killed process leaves a file that can be continued, nor from
several processes. Source of the layout: the HDF5 File Format Specification, sections "III.E. Disk Format: Level 1E -
Global Heap" and "VIII.B. Reference Encoding / variable-length", https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from flair.errors import FlairError
from flair.files import regular_file

_COLLECTION = struct.Struct("<4sB3xQ")  # signature, version, size of the collection with this header
_BEGINNING = b"GCOL\x01\0\0\0"
_OBJECT = struct.Struct("<HH4xQ")  # index, reference count, size of the object without this header
_REFERENCE = struct.Struct("<IQI")  # number of elements, address of the collection, index in it
_MIN_COLLECTION_BYTES = 4096  # H5HG_MINSIZE
REFERENCE_BYTES = _REFERENCE.size
_SUPERBLOCK_VERSION_OFFSET = 8
BYTES_OF_ATTRIBUTES = 1 << 26  # at the beginning of a file, where attributes keep their texts
_END_OF_FILE_OFFSET = 40  # in a superblock of version 0 with 8-byte offsets and lengths


def collection(data: bytes) -> bytes:
    """A heap collection that holds `data` as its object 1; its length is a multiple of 8, at least 4096.

    >>> len(collection(b"photo")), len(collection(bytes(5000)))
    (4096, 5032)
    """
    used = _COLLECTION.size + _OBJECT.size + -(-len(data) // 8) * 8
    size = max(used, _MIN_COLLECTION_BYTES)
    parts = [_COLLECTION.pack(b"GCOL", 1, size), _OBJECT.pack(1, 0, len(data)), data]
    padding = bytes(-len(data) % 8)
    free = size - used
    if free >= _OBJECT.size:
        padding += _OBJECT.pack(0, 0, free) + bytes(free - _OBJECT.size)
    else:
        padding += bytes(free)
    return b"".join((*parts, padding))


def reference(num_bytes: int, address: int) -> bytes:
    """What a variable-length uint8 dataset stores for a value: its length and the address of its collection."""
    return _REFERENCE.pack(num_bytes, address, 1)


def set_end_of_file(descriptor: int, end: int) -> None:
    """Tells the superblock of an HDF5 file (version 0, as `libver="earliest"` writes) where the file ends."""
    superblock = os.pread(descriptor, _END_OF_FILE_OFFSET, 0)
    if superblock[_SUPERBLOCK_VERSION_OFFSET] != 0 or superblock[13:15] != b"\x08\x08":
        raise FlairError("this version of the HDF5 library writes an unknown superblock; use --image_format=raw")
    os.pwrite(descriptor, struct.pack("<Q", end), _END_OF_FILE_OFFSET)


class DamagedHeap(ValueError):
    """A collection on which the HDF5 library would go round for ever, and nothing could interrupt it."""


def check_collections(path: Path, most_bytes: int) -> int:
    """Looks at the collections in the first `most_bytes` of a file; returns the size of their largest object.

    Raises:
      DamagedHeap: an object of a collection has no index and no size, or ends outside of it.
      FlairError, OSError: as of `regular_file.open_file`.
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
