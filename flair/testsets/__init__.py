"""Draws test sets under a stated rule.

What enters is the metadata, and who is to be left out and why. What leaves is a manifest: the photos, the rule, and a
reason for each photo that was refused.
"""

__all__ = ["drawing"]
