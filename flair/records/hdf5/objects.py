"""Objects of an HDF5 file that anybody may have written or damaged: groups, datasets and attributes.

The HDF5 library allocates what a file declares, follows what it points to, and unpacks whatever comes out of a chunk.
Here only what lies in the file itself is reached, and nothing is read before its size is known to be possible. What is
not there, or not what it should be, is a BadObject.
"""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py

from flair.records.hdf5 import global_heap

# What h5py raises for damaged files, depending on where the damage is.
_ERRORS = (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)
_MOST_ATTRIBUTE_BYTES = 1 << 24
_MOST_REFERENCED_BYTES = 1 << 28
_MOST_PATH_CHARACTERS = 1 << 10
_MOST_CHUNK_BYTES = 1 << 26
_MOST_CHARACTERS_SHOWN = 200
_SMALL_CHUNK_BYTES = 1 << 20  # the largest that h5py chooses by itself, also for a small dataset that can grow
_DEFLATE = h5py.h5z.FILTER_DEFLATE
_FILTERS = (_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32)
_CHECKSUM_BYTES = 4  # of Fletcher's checksum, where it is packed together with the chunk


class BadObject(ValueError):
    """An object is not what it should be; the message is one clause that says why, without the file's name."""


@contextlib.contextmanager
def guarded(refuse: Callable[[str, str], Exception]) -> Iterator[None]:
    """Raises `refuse(reason, kind)` for whatever h5py raises: its message on one line, and the name of its class."""
    try:
        yield
    except _ERRORS as error:
        raise refuse(printable(" ".join(str(error).split())), type(error).__name__) from None


def child(parent: h5py.Group, path: str) -> h5py.Group | h5py.Dataset:
    """The object at `path` below a group, reached by hard links only: others could leave the file."""
    if len(path) > _MOST_PATH_CHARACTERS:
        raise BadObject(f"it has no {printable(path)}")
    item = parent
    for part in path.split("/"):
        if not isinstance(item, h5py.Group) or part in ("", ".") or "\0" in part or not has(item, part):
            raise BadObject(f"it has no {printable(path)}")
        if item.id.links.get_info(_link_name(part)).type != h5py.h5l.TYPE_HARD:
            raise BadObject(f"{printable(path)} is a link to another place or file, which is not followed")
        item = item[part]
    return item


def has(parent: h5py.Group, name: str) -> bool:
    """Whether a group has an entry of this name, wherever it leads: `name in parent` would go there and look."""
    return bool(parent.id.links.exists(_link_name(name)))


def group(parent: h5py.Group, path: str) -> h5py.Group:
    """The group at `path`."""
    item = child(parent, path)
    if not isinstance(item, h5py.Group):
        raise BadObject(f"{printable(path)} is not a group")
    return item


def dataset(parent: h5py.Group, path: str) -> h5py.Dataset:
    """The dataset at `path`, of which nothing is checked but that it lies there."""
    item = child(parent, path)
    if not isinstance(item, h5py.Dataset) or item.shape is None:
        raise BadObject(f"{printable(path)} is not an array")
    return item


def stored(parent: h5py.Group, path: str, most_bytes: int | None = None) -> h5py.Dataset:
    """The dataset at `path`, safe to be read whole (or by rows, where `most_bytes` is None): see `_check_storage`."""
    item = dataset(parent, path)
    try:
        _check_storage(item, most_bytes)
    except BadObject as error:
        raise BadObject(f"{printable(path)} {error}") from None
    return item


def text(item: h5py.HLObject, name: str) -> str | None:
    """The attribute `name` as text in UTF-8; None where there is no such attribute."""
    value = _attribute(item, name)
    return None if value is None else _decoded(value, name)


def texts(item: h5py.HLObject, name: str) -> list[str] | None:
    """The attribute `name` as a list of texts; None where there is no such attribute."""
    value = _attribute(item, name)
    if value is None:
        return None
    if getattr(value, "ndim", 0) != 1:
        raise BadObject(f"its attribute {name} is not a list of names")
    return [_decoded(one, name) for one in value]


def printable(name: str) -> str:
    """A name on one line, whatever characters somebody has put into it, cut where it is long.

    >>> printable("näme\\n\\x1b[2J")
    'näme\\\\n\\\\x1b[2J'
    """
    shown = name if len(name) <= _MOST_CHARACTERS_SHOWN else f"{name[:_MOST_CHARACTERS_SHOWN]}..."
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in shown)


def _link_name(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _attribute(item: h5py.HLObject, name: str) -> Any:
    if name not in item.attrs:
        return None
    attribute = item.attrs.get_id(name)
    if attribute.shape is None or math.prod(attribute.shape) * attribute.get_type().get_size() > _MOST_ATTRIBUTE_BYTES:
        raise BadObject(f"its attribute {name} is empty or larger than {_MOST_ATTRIBUTE_BYTES:,} bytes")
    count = math.prod(attribute.shape)
    if count > 1 and attribute.dtype.kind == "O":  # texts of any length, all of which may lie in one place of the file
        path = Path(item.file.filename)
        if count * global_heap.check_collections(path, path.stat().st_size) > _MOST_REFERENCED_BYTES:
            raise BadObject(f"its attribute {name} has {count:,} texts, which may be larger than the memory")
    return item.attrs[name]


def _decoded(value: Any, name: str) -> str:
    if not isinstance(value, bytes | str):
        raise BadObject(f"its attribute {name} is not text")
    try:
        # h5py keeps bytes that are not UTF-8 as half surrogates.
        raw = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
        return raw.decode("utf-8")
    except UnicodeError:
        raise BadObject(f"its attribute {name} is not UTF-8") from None


def _check_storage(item: h5py.Dataset, most_bytes: int | None) -> None:
    """That all values were written, in this file, as at most `most_bytes`, and would not fill memory once unpacked."""
    properties = item.id.get_create_plist()
    layout = properties.get_layout()
    if layout == h5py.h5d.VIRTUAL or properties.get_external_count():
        raise BadObject("has its values in other files, which are not read")
    item_bytes = item.id.get_type().get_size()
    declared = math.prod(item.shape) * item_bytes
    if most_bytes is not None and declared > most_bytes:
        raise BadObject(f"declares {declared:,} bytes, where at most {most_bytes:,} can be")
    if layout == h5py.h5d.CHUNKED:
        _check_chunks(item, properties, declared, item_bytes)
    else:
        # Of values of any length the file keeps references, whose size differs from that in memory.
        size = item.id.get_storage_size()
        is_referenced = item.dtype.kind == "O" and size > 0
        if size != declared and not is_referenced:
            raise BadObject("was not written whole")
        if is_referenced and layout == h5py.h5d.CONTIGUOUS:
            count = size // global_heap.REFERENCE_BYTES
            global_heap.check_references(Path(item.file.filename), item.id.get_offset(), count)


def _check_chunks(item: h5py.Dataset, properties: h5py.h5p.PropDCID, declared: int, item_bytes: int) -> None:
    chunk_bytes = math.prod(item.chunks) * item_bytes
    if chunk_bytes > min(max(_SMALL_CHUNK_BYTES, 2 * declared), _MOST_CHUNK_BYTES):
        raise BadObject(f"is kept in chunks of {chunk_bytes:,} bytes, which is too many for its size")
    filters = [properties.get_filter(index)[0] for index in range(properties.get_nfilters())]
    if not set(filters) <= set(_FILTERS) or filters.count(_DEFLATE) > 1:
        raise BadObject("is packed in another way than by gzip; store it by gzip, or not packed")
    deflate_bit = 1 << filters.index(_DEFLATE) if _DEFLATE in filters else 0
    chunks: list[h5py.h5d.StoreInfo] = []
    item.id.chunk_iter(chunks.append)
    if len(chunks) != math.prod(-(-length // chunk) for length, chunk in zip(item.shape, item.chunks, strict=True)):
        raise BadObject("was not written whole")
    most = chunk_bytes + _CHECKSUM_BYTES
    for chunk in chunks:
        if chunk.size > 2 * most:
            raise BadObject(f"has a chunk of {chunk.size:,} bytes, where at most {most:,} can be")
        if deflate_bit and not chunk.filter_mask & deflate_bit:
            _check_packed(item.id.read_direct_chunk(chunk.chunk_offset)[1], most)


def _check_packed(packed: bytes, most: int) -> None:
    """The library's own unpacking has no limit: two megabytes can become two gigabytes."""
    try:
        size = len(zlib.decompressobj().decompress(packed, most + 1))
    except zlib.error as error:
        raise BadObject(f"cannot be unpacked ({error})") from None
    if size > most:
        raise BadObject(f"has a chunk that unpacks to more than {most:,} bytes")
