"""FedProx whose mu follows the loss: less of it while the loss falls, more when it rises.

Li et al. 2020, appendix C.3.3, https://arxiv.org/abs/1812.06127, with the rules of pfl-research's
`AdaptMuOnMetricCallback`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class ProximalConfig:
    """How mu adapts: `metric` is the column of metrics.csv that it follows, in the rounds that have one.

    `start` is the first mu; it rises by `step`, to 1 at most, where the loss did not fall, and falls by `step`, to 0 at
    least, when the loss has fallen `patience` times in a row, and every time after these.
    """

    metric: str
    start: float
    step: float = 0.1
    patience: int = 1


class ProximalState(NamedTuple):
    """The mu of the next round, the loss that it was last adapted to, and how often the loss has fallen in a row."""

    strength: float
    loss: float = math.inf
    falls: int = 0

    def after(self, loss: float, config: ProximalConfig) -> ProximalState:
        """The state after a loss.

        >>> config, state = ProximalConfig("val_loss", 0.3, patience=2), ProximalState(0.3)
        >>> for loss in (0.9, 0.8, 0.7, 0.7): state = state.after(loss, config); print(round(state.strength, 3))
        0.3
        0.2
        0.1
        0.2
        """
        if loss < self.loss:
            falls = self.falls + 1
            falling = falls >= config.patience
            return ProximalState(max(0.0, self.strength - config.step) if falling else self.strength, loss, falls)
        return ProximalState(min(1.0, self.strength + config.step), loss, 0)
