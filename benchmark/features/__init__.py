"""Features that a frozen network gives for photos, computed once and kept in memory-mapped files.

What enters is records and a network. What leaves is arrays beside the records, which training, evaluation and
personalization read in place of photos.
"""

__all__ = ["cache", "extraction"]
