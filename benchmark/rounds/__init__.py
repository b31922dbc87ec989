"""One round of federated training: what clients compute, how updates are aggregated, what the server does.

What enters is the global weights and a cohort. What leaves is new global weights, and measurements of the round.
"""

__all__ = [
    "config",
    "inprocess",
    "local_training",
    "round_server",
    "runtime",
    "server",
    "share_training",
    "tff",
    "tff_graph",
]
