"""One round of federated training: what clients compute, how updates are aggregated, what the server does.

What enters is the global weights and a cohort. What leaves is new global weights, and measurements of the round.
"""

__all__ = [
    "aggregation",
    "client",
    "config",
    "dp_metrics",
    "drift",
    "group",
    "inprocess",
    "runtime",
    "server",
    "shard",
    "tff",
]
