"""`python -m benchmark.speed_main SUBJECT [flags]`: measures a part of the toolkit on this machine."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from benchmark.run.machine import header, machine
from benchmark.speed import flags as speed_flags
from flair.files import atomic
from flair.terminal import command

# Subject -> what it measures; benchmark.speed.SUBJECT does.
SUBJECTS = {
    "data": "download, record files and verifying, beside doing the same work plainly",
    "step": "one training step, with each norm and number type",
    "central": "central training and evaluation, beside the bare step",
    "federated": "federated rounds, beside the bare steps",
    "client_eval": "looking at single clients while a run trains, beside its rounds",
    "few_weights": "private rounds of a head on cached features, at FLAIR's size",
    "audit": "the search for near duplicates, on photos as far apart as real ones",
    "ray": "federated rounds on Ray by number of workers, beside inprocess, and sizing",
}


def main(argv: Sequence[str]) -> int:
    """Measures the subject and prints what its module says, with --output_file into a file, too."""
    if not argv or argv[0] in ("-h", "--help"):
        print(
            "usage: python -m benchmark.speed_main SUBJECT [flags]\n\nMeasures a part of the toolkit. SUBJECT is one of"
        )
        for subject, what in SUBJECTS.items():
            print(f"  {subject:11} {what}")
        print("\npython -m benchmark.speed_main SUBJECT --help lists the flags.")
        return command.EXIT_OK if argv else command.EXIT_USAGE
    if argv[0] not in SUBJECTS:
        print(f"benchmark.speed_main: unknown subject {argv[0]!r}; expected {', '.join(SUBJECTS)}", file=sys.stderr)
        return command.EXIT_USAGE
    flags = speed_flags.parse(argv[0], argv[1:])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    measuring = importlib.import_module(f"benchmark.speed.{argv[0]}")
    if getattr(flags, "memory_of", None) is not None:  # this is the process of its own: see harness.memory_of
        print(measuring.memory(flags))
        return command.EXIT_OK
    print(header(), flush=True)
    report = measuring.measure(flags)
    if flags.output_file:
        atomic.write_json(flags.output_file, {**machine(), "flags": vars(flags), **report})
        print(f"JSON: {flags.output_file}")
    return command.EXIT_OK


if __name__ == "__main__":
    command.run(main)
