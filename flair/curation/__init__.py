"""Files in which somebody says something about photos: near duplicates, reviews, scores, test sets, photos put aside.

What enters is such a file, or a decision to be written down. What leaves is sets of photo ids that other rooms leave
out, keep apart or draw from.
"""

__all__ = ["exclusion", "heldout", "manifest", "reviews", "scores"]
