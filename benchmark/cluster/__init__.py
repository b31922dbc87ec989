"""Rounds and scoring on Ray: several processes or machines that share a cohort.

What enters is a runtime's arguments and the address of a cluster. What leaves is the results of `benchmark.rounds`,
merged in an order that does not depend on the number of workers.
"""

__all__ = ["assignment", "cluster", "pool", "runtime", "scorer"]
