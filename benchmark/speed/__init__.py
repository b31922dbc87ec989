"""Measures the toolkit's speed against the same work done plainly.

What enters is sizes and repetitions. What leaves is medians, ratios and the table that the README quotes.
"""

__all__ = ["flags", "sizing"]
