"""Learning rates of every round or step, as a table: Python, TensorFlow and TFF read the same numbers."""

from __future__ import annotations

import numpy as np

SCHEDULES = ("constant", "linear", "cosine")


def learning_rates(
    base: float, total: int, schedule: str = "constant", warmup: int = 0, final: float = 0.0
) -> np.ndarray:
    """The learning rate of each of `total` rounds (or steps), float32 [total].

    It rises in a straight line over the first `warmup` rounds and reaches `base` in the last of them. After that it
    stays (`constant`) or falls to `final` at round `total`, in a straight line (`linear`) or along half a cosine
    (`cosine`, Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983).

    >>> learning_rates(0.1, 4, "linear").round(3).tolist()
    [0.10000000149011612, 0.07500000298023224, 0.05000000074505806, 0.02500000037252903]
    >>> learning_rates(1.0, 4, warmup=2).tolist()
    [0.5, 1.0, 1.0, 1.0]
    >>> learning_rates(1.0, 4, "linear", final=0.5).tolist()
    [1.0, 0.875, 0.75, 0.625]
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r} must be one of {', '.join(SCHEDULES)}")
    step = np.arange(total, dtype=np.float64)
    progress = np.clip((step - warmup) / max(total - warmup, 1), 0, 1)
    decay: dict[str, np.ndarray] = {
        "constant": np.ones_like(step),
        "linear": 1 - progress,
        "cosine": (1 + np.cos(np.pi * progress)) / 2,
    }
    rise = np.minimum((step + 1) / warmup, 1) if warmup > 0 else np.ones_like(step)
    return (base * rise * decay[schedule] + final * (1 - decay[schedule])).astype(np.float32)
