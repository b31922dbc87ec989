"""`python -m benchmark.speed_main SUBJECT [flags]`: measures a part of the toolkit on this machine."""

from __future__ import annotations

import importlib
import os
import platform
import resource
import sys
from collections.abc import Sequence
from typing import Any

from flair import command

# Subject -> the module whose main(argv) measures it, and what it measures.
SUBJECTS = {
    "data": ("benchmark.speed_data", "preparing and verifying record files, beside copying the same bytes"),
    "step": ("benchmark.speed_step", "one training step, with each norm and number type"),
    "central": ("benchmark.speed_central", "central training and evaluation, beside the bare step"),
    "federated": ("benchmark.speed_federated", "federated rounds, beside the bare steps"),
}


def main(argv: Sequence[str]) -> int:
    """Hands the flags to the subject's module; returns its exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(
            "usage: python -m benchmark.speed_main SUBJECT [flags]\n\nMeasures a part of the toolkit. SUBJECT is one of"
        )
        for subject, (_module, what) in SUBJECTS.items():
            print(f"  {subject:10} {what}")
        print("\npython -m benchmark.speed_main SUBJECT --help lists the flags.")
        return command.EXIT_OK if argv else command.EXIT_USAGE
    if argv[0] not in SUBJECTS:
        print(f"benchmark.speed_main: unknown subject {argv[0]!r}; expected {', '.join(SUBJECTS)}", file=sys.stderr)
        return command.EXIT_USAGE
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    code: int = importlib.import_module(SUBJECTS[argv[0]][0]).main(argv[1:])
    return code


def machine() -> dict[str, Any]:
    """What the numbers were measured on, to stand beside them: processor, cores this process may use, memory, Python."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
    }


def peak_bytes() -> int:
    """The largest resident memory this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    command.run(main)
