"""Opens a photo for the page: only a regular file of the photo folder itself, never the target of a link."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # opening a pipe would wait for its other end


def open_photo(path: Path) -> BinaryIO | None:
    """Opens the file to read; None if it is missing or not a regular file, or if it or its folder is a symbolic link.

    Raises:
      OSError: it cannot be opened for another reason, such as its permissions.
    """
    try:
        folder = os.open(path.parent, _FLAGS | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):  # the latter also for a link
        return None
    try:
        file = open(os.open(path.name, _FLAGS, dir_fd=folder), "rb")  # noqa: SIM115 - the caller closes it
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):  # a link, a socket, a folder
            return None
        raise
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        return None
    return file
