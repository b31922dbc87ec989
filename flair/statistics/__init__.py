"""Counts of labels and users, how far users differ, and figures of both.

What enters is the metadata. What leaves is tables and PNG files.
"""

__all__ = ["divergence", "figures", "labels", "table"]
