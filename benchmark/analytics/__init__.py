"""Private federated analytics: what a population of users has, with differential privacy for each of them.

What enters is a table of photos with their users and labels, a privacy plan and a noise key. What leaves is noised
counts and quantiles with intervals, and what they spent.
"""

__all__ = ["questions", "release", "text"]
