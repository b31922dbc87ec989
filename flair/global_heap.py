"""Where HDF5 keeps variable-length values: global heap collections, laid out by hand.

The HDF5 library can write them too, but not so that a killed process leaves a file that can be continued, nor from
several processes. Source of the layout: the HDF5 File Format Specification, sections "III.E. Disk Format: Level 1E -
Global Heap" and "VIII.B. Reference Encoding / variable-length", https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html
"""

from __future__ import annotations

import os
import struct

from flair.errors import FlairError

_COLLECTION = struct.Struct("<4sB3xQ")  # signature, version, size of the collection with this header
_OBJECT = struct.Struct("<HH4xQ")  # index, reference count, size of the object without this header
_REFERENCE = struct.Struct("<IQI")  # number of elements, address of the collection, index in it
_MIN_COLLECTION_BYTES = 4096  # H5HG_MINSIZE
REFERENCE_BYTES = _REFERENCE.size
_SUPERBLOCK_VERSION_OFFSET = 8
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
