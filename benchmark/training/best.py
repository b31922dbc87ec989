"""Which model of a training is the best, and how long one waits for a better one."""

from __future__ import annotations

from collections.abc import Mapping


def badness(metrics: Mapping[str, float], best_metric: str) -> float:
    """What the best model has least of: `loss`, or the negative of any other metric.

    >>> badness({"loss": 0.25, "f1": 0.5}, "f1")
    -0.5
    """
    return metrics[best_metric] * (1.0 if best_metric == "loss" else -1.0)


def is_over(step: int, best_step: int, early_stopping: int) -> bool:
    """Whether training ends after evaluating `step`, an epoch or a round, since none after `best_step` was better.

    `early_stopping` is how many steps one waits; 0 never ends it.

    >>> is_over(12, best_step=10, early_stopping=2), is_over(12, best_step=10, early_stopping=0)
    (True, False)
    """
    return early_stopping > 0 and step - best_step >= early_stopping
