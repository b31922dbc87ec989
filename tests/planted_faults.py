"""How many canaries an audit needs: faults planted in the noise and the clipping of small runs, and honest runs.

    python tests/planted_faults.py --epsilon=2 --runs=20 --canaries=10,30,100,300

prints, for every fault and number of canaries, how many runs were contradicted, and by what.
"""

from __future__ import annotations

import argparse
import collections
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmark.privacy.audit import audit
from flair.terminal.table import fitted
from tests.support.canaries import FAULTS, audited


def main() -> None:
    """Runs all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epsilon", type=float, default=2.0, help="that the runs claim")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--canaries", default="10,30,100,300")
    given = parser.parse_args()
    lines = [["planted", "canaries", "runs", "contradicted", "bound", "noise", "influence", "largest bound"]]
    for fault in (None, *FAULTS):
        for canaries in map(int, given.canaries.split(",")):
            by: collections.Counter[str] = collections.Counter()
            largest = 0.0
            for seed in range(given.runs):
                found = audit(*audited(seed, canaries, fault, given.epsilon))
                by.update(found["contradicted_by"])
                by["any"] += bool(found["contradicted_by"])
                largest = max(largest, found["bound"])
            counts = [by[name] for name in ("any", "bound", "noise", "influence")]
            lines.append([fault or "nothing", *map(str, (canaries, given.runs, *counts)), f"{largest:.2f}"])
            print(lines[-1], file=sys.stderr, flush=True)
    print(fitted(lines))
    print(
        f"{(len(lines) - 1) * given.runs} runs that claim epsilon {given.epsilon:g}; next: read docs/privacy_audit.md"
    )


if __name__ == "__main__":
    main()
