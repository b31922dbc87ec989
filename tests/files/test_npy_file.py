"""Rows in a cache: what was written is read, and nothing else is."""

from __future__ import annotations

import contextlib
import io
import resource
from pathlib import Path

import numpy as np
import pytest

from flair.errors import FlairError
from flair.files.npy_file import map_rows, read_rows, write_array, write_chunks, write_rows

DTYPE = np.dtype([("first", "<i4"), ("mirrored", "?"), ("distance", "<f8")])


def _rows(count: int) -> np.ndarray:
    rows = np.zeros(count, DTYPE)
    rows["first"], rows["distance"] = np.arange(count), np.arange(count) / 7
    return rows


@pytest.mark.parametrize("count", [0, 1, 7])
def test_what_is_written_is_read_here_and_by_numpy(tmp_path: Path, count: int) -> None:
    rows, path = _rows(count), tmp_path / "rows.npy"
    write_rows(path, rows)
    data = path.read_bytes()
    for found in (read_rows(path, DTYPE), read_rows(path, DTYPE, "r"), map_rows(path, DTYPE), np.load(path)):
        assert found.tolist() == rows.tolist()
    write_chunks(path, DTYPE, count, [rows[:3], rows[3:]])
    assert path.read_bytes() == data


def test_a_file_that_numpy_wrote_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", _rows(5))
    assert read_rows(tmp_path / "rows.npy", DTYPE).tolist() == _rows(5).tolist()


def test_an_array_has_the_bytes_of_numpy_and_a_full_disk_is_named(tmp_path: Path) -> None:
    for array in (np.zeros((0, 3), np.uint8), np.arange(6, dtype=np.float32).reshape(2, 3).T, np.eye(300)):
        write_array(tmp_path / "ours.npy", array)
        np.save(tmp_path / "numpy.npy", np.ascontiguousarray(array))
        assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as full:
            write_array(tmp_path / "new.npy", np.eye(300))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert full.value.filename == str(tmp_path / "new.npy")
    assert {path.name for path in tmp_path.iterdir()} == {"ours.npy", "numpy.npy"}


def test_no_changed_byte_is_trusted(tmp_path: Path) -> None:
    rows, path = _rows(5), tmp_path / "rows.npy"
    write_rows(path, rows)
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        # Of the header, spaces and the padding mean nothing.
        with contextlib.suppress(FlairError):
            assert read_rows(path, DTYPE).tolist() == rows.tolist(), place


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    write_rows(path, _rows(5))
    data = path.read_bytes()
    for length in [*range(len(data) - 4), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(FlairError, match="delete it and run the same command again"):
            read_rows(path, DTYPE)


def test_rows_of_another_kind_are_refused(tmp_path: Path) -> None:
    path, archive = tmp_path / "rows.npy", io.BytesIO()
    np.savez(archive, rows=_rows(5))
    for data in (archive.getvalue(), b"junk"):
        path.write_bytes(data)
        with pytest.raises(FlairError):
            read_rows(path, DTYPE)
    write_rows(path, np.arange(5))
    with pytest.raises(FlairError, match="holds something else"):
        read_rows(path, DTYPE)
