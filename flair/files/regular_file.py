"""Opens ordinary files; refuses folders, pipes and devices, and never waits for them."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import BinaryIO

from flair.errors import FlairError


def open_file(path: str | Path) -> BinaryIO:
    """Opens a file to read its bytes; symbolic links are followed, and /dev/null is an empty file.

    Raises:
      FlairError: there is something else of that name, or it may not be read; one line naming it.
      FileNotFoundError: there is nothing of that name.
      OSError: the system is out of descriptors or memory, which is not the fault of the file.
    """
    try:
        # Without O_NONBLOCK, a pipe nobody writes to is waited for, without end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        if os.path.islink(path):
            raise FlairError(f"{path}: is a link to a file that is not there; remove it or mend it") from None
        raise
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        reason = "is a device or socket" if error.errno == errno.ENXIO else f"cannot be read ({error.strerror})"
        raise FlairError(f"{path}: {reason}; expected a file that may be read") from None
    found = os.fstat(descriptor)
    if not is_file(found):
        os.close(descriptor)
        kind = {stat.S_IFDIR: "directory", stat.S_IFIFO: "pipe"}.get(stat.S_IFMT(found.st_mode), "device")
        raise FlairError(f"{path}: is a {kind}; expected a file")
    return open(descriptor, "rb")


def is_file(found: os.stat_result) -> bool:
    """Whether it is an ordinary file, or /dev/null."""
    return stat.S_ISREG(found.st_mode) or os.path.samestat(found, os.stat(os.devnull))


def read_bytes(path: str | Path) -> bytes:
    """All bytes of a file; errors like `open_file`, and FlairError where the disk does not give them."""
    with open_file(path) as file:
        try:
            return file.read()
        except OSError as error:
            raise FlairError(f"{path}: cannot be read ({error.strerror}); restore it") from None


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hexadecimal, read a mebibyte at a time."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
