"""How a metric is distributed over users: mean, percentiles, and the best and worst tenth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def distribution(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Mean, 10th, 50th and 90th percentile, and the means of the lowest and highest tenth of the users.

    >>> {name: round(value, 2) for name, value in distribution(range(1, 101)).items()}
    {'mean': 50.5, 'p10': 10.9, 'p50': 50.5, 'p90': 90.1, 'lowest_decile': 5.5, 'highest_decile': 95.5}
    """
    ordered = np.sort(np.asarray(values, np.float64))
    tenth = max(1, len(ordered) // 10)
    return {
        "mean": float(ordered.mean()),
        **{f"p{p}": float(np.percentile(ordered, p)) for p in (10, 50, 90)},
        "lowest_decile": float(ordered[:tenth].mean()),
        "highest_decile": float(ordered[-tenth:].mean()),
    }
