"""What central and federated training share: flags of model and loss, the plan of a dry run, timing of steps.

What enters is flags and records. What leaves is a model to train, and an estimate of how long and how large.
"""

__all__ = ["best", "flags", "inputs", "loss", "plan", "start", "timing"]
