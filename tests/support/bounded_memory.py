"""Holds work to a bound on its memory: a file that declares gigabytes fails the test, not the machine."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

_ADDRESSES = 4 << 30  # headroom that threads may reserve and never touch


@contextlib.contextmanager
def bounded_memory(most_bytes: int = 200_000_000) -> Iterator[None]:
    """Fails if the process ever holds `most_bytes` more than at the start; beyond 4 GiB allocations fail at once."""
    Path("/proc/self/clear_refs").write_text("5")  # the highest residence so far becomes that of now
    before = _status("VmHWM")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + _ADDRESSES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert _status("VmHWM") - before < most_bytes


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
