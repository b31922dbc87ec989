"""Federated training: flags, cohorts, the loop over rounds, scores of the whole and of each client.

What enters is a runtime that executes rounds, clients and a run folder. What leaves is the best model by a validation
metric, and with privacy the statement about it.
"""

__all__ = [
    "checks",
    "client_eval",
    "cohort",
    "dry_run",
    "flags",
    "loop",
    "scoring",
    "settings",
    "statements",
]
