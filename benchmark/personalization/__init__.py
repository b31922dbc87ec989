"""Adapts a trained model to one user, or to a few new labels, and measures what that brings.

What enters is a saved model and records. What leaves is episodes, their scores before and after, and a summary with
intervals.
"""

__all__ = ["few_shot", "flags", "log", "run_labels", "run_users", "runner", "sources", "users"]
