"""Trains every combination of some flags' values with several seeds.

What enters is a grid of flag values and the training command's own flags. What leaves is one run folder per
combination and seed, and a table of means and deviations.
"""

__all__ = ["grid", "runs", "table"]
