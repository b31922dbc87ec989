"""Federated training: flags, cohorts, the loop over rounds, scoring, metrics per client.

What enters is a runtime that executes rounds, clients and a run folder. What leaves is the best model by a validation
metric, and with privacy the statement about it.
"""

__all__ = ["checks", "client_scores", "cohort", "dry_run", "flags", "loop", "scoring", "settings"]
