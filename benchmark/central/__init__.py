"""Central training: the pooled photos of all users, on one or several devices.

What enters is a model, batches and a run folder. What leaves is the best model by a validation metric.
"""

__all__ = ["dry_run", "flags", "loop", "step"]
