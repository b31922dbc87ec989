"""Whether a disk has the room that a long command is going to need, asked before it starts."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from flair.errors import FlairError
from flair.terminal.progress import size as say_size


def require(needs: Iterable[tuple[Path, float]]) -> None:
    """Checks that each folder's disk has room for the bytes that are to be written there; a disk's needs add up.

    Raises:
      FlairError: a disk has too little room.
    """
    needed: dict[int, float] = defaultdict(float)
    place: dict[int, Path] = {}
    for folder, num_bytes in needs:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        device = os.stat(existing).st_dev
        needed[device] += num_bytes
        place.setdefault(device, existing)
    for device, num_bytes in needed.items():
        free = shutil.disk_usage(place[device]).free
        if free < num_bytes:
            raise FlairError(
                f"--dataset_dir: the disk of {place[device]} has {say_size(free)} free, but about "
                f"{say_size(num_bytes)} are needed; free some space, or choose another disk"
            )
