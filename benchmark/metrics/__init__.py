"""The published metrics, from histograms of scores that can be added up, and the losses that training minimizes.

What enters is logits and labels. What leaves is averaged precision and its companions, over photos or over users, or a
loss and its gradient.
"""

__all__ = ["calibration", "histogram", "keras", "loss", "spread"]
