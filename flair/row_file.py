"""Rows of numbers kept in a cache as .npy: whole or not at all, and never unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flair.atomic import replacing
from flair.errors import FlairError


def write_rows(path: Path, rows: NDArray[Any]) -> None:
    """Writes rows [k] to `path`."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, rows)


def read_rows(path: Path, dtype: np.dtype[Any], mmap_mode: Literal["r"] | None = None) -> NDArray[Any]:
    """Reads what `write_rows` wrote, rows [k] of `dtype`; with `mmap_mode` they stay on disk.

    Raises:
      FlairError: the file is cut off or holds something else.
      FileNotFoundError: there is no such file.
    """
    try:
        rows: NDArray[Any] = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise FlairError(f"{path}: is damaged ({error}); delete it and run the same command again") from None
    if getattr(rows, "dtype", None) != dtype or rows.ndim != 1:
        raise FlairError(f"{path}: holds something else than it should; delete it and run the same command again")
    return rows
