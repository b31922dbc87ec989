"""Finds photos that show the same scene twice, without missing a pair that the rule names.

What enters is the photos of a dataset directory, and optionally features of them. What leaves is
`near_duplicates.json`: the pairs, the groups they make, and what was searched.
"""

__all__ = ["audit", "calibration", "features", "rule"]
