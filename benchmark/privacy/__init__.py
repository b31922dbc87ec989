"""User-level differential privacy: how much noise, from which key, and what may be said afterwards.

What enters is a request: epsilon or noise, delta, cohort, rounds. What leaves is a privacy plan, the noise of each
round, and a statement with its caveats.
"""

__all__ = [
    "accounting",
    "adaptive",
    "audit",
    "audit_file",
    "audit_text",
    "caveats",
    "comparison",
    "local",
    "noise",
    "noise_key",
    "plan",
    "planner",
    "request",
    "rounding",
    "spending",
    "statement",
]
