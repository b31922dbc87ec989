"""`python -m benchmark.speed_main SUBJECT [flags]`: measures a part of the toolkit on this machine."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from benchmark.run.machine import header
from flair.terminal import command

# Subject -> the module whose main(argv) measures it, and what it measures.
SUBJECTS = {
    "data": ("benchmark.speed.data", "download, record files and verifying, beside doing the same work plainly"),
    "step": ("benchmark.speed.step", "one training step, with each norm and number type"),
    "central": ("benchmark.speed.central", "central training and evaluation, beside the bare step"),
    "federated": ("benchmark.speed.federated", "federated rounds, beside the bare steps"),
    "audit": ("benchmark.speed.audit", "the search for near duplicates, on photos as far apart as real ones"),
    "ray": ("benchmark.speed.ray", "federated rounds on Ray by number of workers, beside inprocess, and sizing"),
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
    if not {"-h", "--help"} & set(argv):
        print(header(), flush=True)
    code: int = importlib.import_module(SUBJECTS[argv[0]][0]).main(argv[1:])
    return code


if __name__ == "__main__":
    command.run(main)
