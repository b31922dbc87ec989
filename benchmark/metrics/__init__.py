"""The published metrics, from histograms of scores that can be added up.

What enters is logits and labels. What leaves is averaged precision and its companions, over photos or over users.
"""

__all__ = ["histogram", "keras", "spread"]
