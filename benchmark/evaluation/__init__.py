"""Scores saved models and others' predictions on partitions and test sets, with intervals over users.

What enters is models, or scores that somebody else's made, and records. What leaves is metrics per set, per label and
per user, each with the interval that resampling users gives.
"""

__all__ = ["discriminator", "given", "passes", "predictor", "result", "sets", "text", "thresholds"]
