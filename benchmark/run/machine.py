"""The machine that a measurement ran on: processor, memory, load, versions."""

from __future__ import annotations

import os
from typing import Any

from benchmark.run.folder import environment

_CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def machine() -> dict[str, Any]:
    """`folder.environment` with the processor's vector units, the memory and the load."""
    facts = environment()
    flags = _cpu_flags()
    facts["machine"] |= {
        "features": [name for name in _CPU_FEATURES if name in flags],
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        "load": list(os.getloadavg()),
    }
    return facts


def header() -> str:
    """Machine and versions, in two lines."""
    facts = machine()
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    features = ", ".join(facts["machine"]["features"]) or "no AVX"
    load = ", ".join(f"{value:.1f}" for value in facts["machine"]["load"])
    return (
        f"{facts['machine']['processor']}, {facts['machine']['cpus']} CPUs ({features}), "
        f"{facts['machine']['memory_gb']:.0f} GB, load {load}\n{versions}"
    )


def peak_bytes(process: int | None = None) -> int:
    """Largest resident memory so far of a process by its number (None: this one).

    Not `ru_maxrss`, which a process inherits from the one that started it.
    """
    with open(f"/proc/{process or 'self'}/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((set(line.split(":")[1].split()) for line in file if line.startswith("flags")), set())
    except OSError:
        return set()
