"""The machine that a run or a measurement ran on: processor, memory, load, versions."""

from __future__ import annotations

import contextlib
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
        "machine": {
            "platform": platform.platform(),
            "processor": _cpu("model name") or platform.processor() or "unknown",
            "cpus": os.cpu_count(),
        },
        "git_revision": _git_revision(),
    }


def machine() -> dict[str, Any]:
    """What `environment` has, and the processor's vector units, the memory and the load."""
    facts = environment()
    features = _cpu("flags").split()
    facts["machine"] |= {
        "features": [name for name in _CPU_FEATURES if name in features],
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        "load": list(os.getloadavg()),
    }
    return facts


def header() -> str:
    """Machine and versions, in two lines."""
    facts = machine()
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    of = facts["machine"]
    features = ", ".join(of["features"]) or "no AVX"
    load = ", ".join(f"{value:.1f}" for value in of["load"])
    return f"{of['processor']}, {of['cpus']} CPUs ({features}), {of['memory_gb']:.0f} GB, load {load}\n{versions}"


def peak_bytes(process: int | None = None) -> int:
    """The largest resident memory so far of this process, or of the one with a number."""
    # Not `ru_maxrss`, which a process inherits from the one that started it.
    return _status_bytes("VmHWM", process)


def anonymous_bytes() -> int:
    """Resident memory of this process that is no file's."""
    return _status_bytes("RssAnon")


def _status_bytes(key: str, process: int | None = None) -> int:
    with open(f"/proc/{process or 'self'}/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{key}:"))


def _cpu(key: str) -> str:
    """The first value of `key` in /proc/cpuinfo; empty where there is none."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        return next((line.partition(":")[2].strip() for line in file if line.startswith(key)), "")
    return ""


def _git_revision() -> str | None:
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
