"""The machine that a run or a measurement ran on: processor, memory, load, versions."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from flair import __version__

_PACKAGES = ("numpy", "tensorflow", "tensorflow-federated", "tensorflow-privacy", "dp-accounting", "ray")
_CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def environment() -> dict[str, Any]:
    """Versions and machine: toolkit, Python, packages, processor, git revision, command line."""
    versions = {"flair-toolkit": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "command": [os.fsencode(argument).decode("utf-8", "replace") for argument in sys.argv],
        "versions": versions,
        "machine": {"platform": platform.platform(), "processor": _processor(), "cpus": os.cpu_count()},
        "git_revision": _git_revision(),
    }


def machine() -> dict[str, Any]:
    """`environment` with the processor's vector units, the memory and the load."""
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


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _git_revision() -> str | None:
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
