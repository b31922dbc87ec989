"""Audits a private run that trained with --audit_canaries: what its models give away, beside what is claimed.

Reads the scores in the run folder, trains nothing, needs no data and no key. Exits with 3 where the audit contradicts
the claim.
"""

from __future__ import annotations

from pathlib import Path

from benchmark.privacy import audit, audit_file, audit_text
from benchmark.run import command
from benchmark.run.flags import Flags, Role, Table, number, path
from benchmark.run.names import AUDIT_FILE
from flair.errors import FlairError
from flair.terminal.paths import command_line

CONTRADICTED = 3
"""Exit code where the claim is contradicted; 1 is an error, 2 wrong usage."""

FLAGS: Table = (
    path("run_dir", None, "Run folder of federated_main --audit_canaries.", Role.PLACE, required=True),
    number(
        "confidence", audit.CONFIDENCE, "With which all that is proved holds together.", Role.RESULT, above=0.5, below=1
    ),
)


def main(flags: Flags) -> int:
    """Answers on stdout."""
    run_dir = Path(flags.run_dir)
    found = audit_file.read(run_dir / AUDIT_FILE)
    if found is None:
        raise FlairError(
            f"--run_dir={run_dir}: has no {AUDIT_FILE}; scores are taken in training, so train with "
            "benchmark.federated_main --audit_canaries=100"
        )
    result = audit.audit(*found, flags.confidence)
    print("\n".join(f"{label + ':':<38}{value}" for label, value in audit_text.rows(result)))
    print(f"audit: {audit_text.verdict(result)}")
    print("next:", command_line("python -m benchmark.report_main", run_dir))
    return CONTRADICTED if result["contradicted_by"] else 0


if __name__ == "__main__":
    command.run(main, FLAGS)
