"""What every runtime offers, and what a round comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from benchmark.privacy.audit import CanaryScores
from benchmark.rounds.drift import Drift


@dataclass(frozen=True)
class RoundResult:
    """One round as it went.

    Attributes:
      metrics: training metrics over the cohort, each batch scored before its step (`loss`, `macro_precision`, ...).
      measurements: of aggregator and server optimizer, by slash-joined name (clipping norm, ...).
      num_examples: photos shown, epochs counted.
      noise_multipliers: of the Gaussian queries that the aggregator answered, from TFF's record of the round.
      refused_clients: clients whose update was not finite or longer than `MAX_UPDATE_NORM`, and therefore left out,
        where the runtime can tell.
      dp_metrics: of a private round, made of clean updates and therefore not private; none of TFF's own runtime.
      drift: of the clients' updates, where the round was asked for it; not private either.
    """

    metrics: dict[str, float]
    measurements: dict[str, float]
    num_examples: int
    noise_multipliers: tuple[float, ...] = ()
    refused_clients: tuple[str, ...] = ()
    dp_metrics: dict[str, float] = field(default_factory=dict)
    drift: Drift | None = None

    @property
    def update_rejected(self) -> bool:
        """Whether the server optimizer refused a non-finite aggregate."""
        return self.measurements.get("finalizer/update_non_finite", 0.0) > 0


class Runtime(Protocol):
    """Executes rounds of a federated algorithm.

    Attributes:
      proximal_strength: FedProx's mu of the next round; TFF's own runtime keeps the configuration's.
    """

    proximal_strength: float

    def run_round(
        self, round_number: int, cohort: Sequence[str], looked_at: Sequence[int] | None = None
    ) -> RoundResult:
        """Trains the cohort from the current global weights and updates them.

        Args:
          looked_at: places in the cohort of the clients whose cosines `RoundResult.drift` is to have; None: no drift.
        """
        ...

    def weights(self) -> list[np.ndarray]:
        """The global weights, which are those that train, in the Keras model's order."""
        ...

    def state(self) -> list[np.ndarray]:
        """Everything that the next round depends on besides seed and data, or what names it where it is on disk."""
        ...

    def restore(self, state: Sequence[np.ndarray]) -> None:
        """Continues from `state()` of another process."""
        ...

    def forget(self, round_number: int) -> None:
        """Removes what no `state()` after so many rounds, or more, needs; nobody restores earlier ones any more."""
        ...

    def canary_scores(self) -> CanaryScores | None:
        """What an audited run has recorded so far, None of another."""
        ...

    def close(self) -> None:
        """Ends whatever the runtime started."""
        ...


def next_clip_norm(measurements: dict[str, float]) -> float | None:
    """The clipping norm that the aggregator will use in the next round, if it says so."""
    endings = ("/clip", "/current_clip", "/clipping_norm")
    return next((value for name, value in measurements.items() if name.endswith(endings)), None)
