"""A file for the HDF5 library to write to, which never fails while the library looks.

When a write fails (full disk, quota), or Ctrl-C arrives inside it, the library neither closes the file nor survives the
end of the process. This file tells it that all is well, and keeps the error for whoever closes it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from flair.files.atomic import sync, write_all
from flair.records.preparation import naming


def write_at(path: Path, *pieces: tuple[int, bytes]) -> None:
    """Writes pieces, each a position and its bytes, into a file open as a `SoftFile`, here or in another process."""
    with naming(path), open(path, "r+b", buffering=0) as file:
        for position, data in pieces:
            write_all(file.fileno(), data, position)


class SoftFile(contextlib.AbstractContextManager["SoftFile"]):
    """A new file at `path`, as h5py's driver for file objects needs it; leaving the block raises what was kept."""

    def __init__(self, path: Path) -> None:
        self._error: BaseException | None = None
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self._path, self._position, self._size = path, 0, 0

    def check(self) -> None:
        """Raises the error that was kept, if any."""
        if self._error is not None:
            with naming(self._path):
                raise self._error

    def sync(self) -> None:
        """Waits until all of it is on disk."""
        sync(self._descriptor)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves to a byte of the file, or to its end."""
        self._position = offset + (self._size if whence == os.SEEK_END else 0)
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def read(self, size: int) -> bytes:
        """Reads `size` bytes; what was never written reads as zeros."""
        buffer = bytearray(size)
        self.readinto(memoryview(buffer))
        return bytes(buffer)

    def readinto(self, buffer: memoryview) -> int:
        """Reads to fill `buffer`; what was never written reads as zeros."""
        buffer[:] = bytes(len(buffer))
        self._keep_error(lambda: os.preadv(self._descriptor, [buffer], self._position))
        return len(buffer)

    def write(self, data: memoryview) -> int:
        """Writes all of `data`."""
        self._keep_error(lambda: write_all(self._descriptor, data, self._position))
        self._size = max(self._size, self._position + len(data))
        return len(data)

    def truncate(self, size: int) -> None:
        """Makes the file `size` bytes long."""
        self._keep_error(lambda: os.ftruncate(self._descriptor, size))
        self._size = size

    def flush(self) -> None:
        """Does nothing: no byte waits here."""

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
        self.check()  # in place of what the library says, which has read zeros since

    def _keep_error(self, operation: Callable[[], object]) -> None:
        if self._error is None:
            try:
                operation()
            except BaseException as error:  # noqa: BLE001 - raised by check()
                self._error = error
