"""Small settings of rounds, on which the runtimes are held against each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from benchmark.data.clients import BatchPlan
from benchmark.data.records import Task
from benchmark.rounds import config
from benchmark.rounds.config import ClientConfig, FederatedConfig, OptimizerConfig
from benchmark.rounds.runtime import Runtime

SIZE = (32, 32)
SEED = 11
UNWEIGHTED = ClientConfig(weighted=False)
MIME_LITE = FederatedConfig(
    client=ClientConfig(algorithm=config.MIME_LITE), server_optimizer=OptimizerConfig("sgd", (1.0,))
)


def small_batch_plan(task: Task) -> BatchPlan:
    """Two epochs over at most 16 photos per client."""
    return BatchPlan(task, SIZE, batch_size=4, epochs=2, max_elements=16)


def assert_equal_rounds(ours: Runtime, reference: Runtime, cohorts: Sequence[Sequence[str]]) -> None:
    """Runs the same rounds on two runtimes of equal weights; they must report the same, and train."""
    start = ours.weights()
    for round_number, cohort in enumerate(cohorts):
        mine, expected = (runtime.run_round(round_number, cohort) for runtime in (ours, reference))
        assert mine.num_examples == expected.num_examples
        assert mine.metrics == pytest.approx(expected.metrics, abs=1e-5)
        assert mine.measurements == pytest.approx(expected.measurements, abs=1e-5)
        assert mine.noise_multipliers == expected.noise_multipliers
        if expected.dp_metrics:  # TFF's own runtime has none
            assert mine.dp_metrics == pytest.approx(expected.dp_metrics, abs=1e-5)
    for one, other in zip(ours.weights(), reference.weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    moved = max(np.abs(now - then).max() for now, then in zip(ours.weights(), start, strict=True))
    assert moved > 1e-4, "nothing was trained, so that agreement means nothing"
