"""Small settings of rounds, on which the runtimes are held against each other."""

from __future__ import annotations

from benchmark.data.clients import BatchPlan
from benchmark.data.records import Task
from benchmark.rounds import config
from benchmark.rounds.config import ClientConfig, FederatedConfig, OptimizerConfig

SIZE = (32, 32)
SEED = 11
UNWEIGHTED = ClientConfig(weighted=False)
MIME_LITE = FederatedConfig(
    client=ClientConfig(algorithm=config.MIME_LITE), server_optimizer=OptimizerConfig("sgd", (1.0,))
)


def small_batch_plan(task: Task) -> BatchPlan:
    """Two epochs over at most 16 photos per client."""
    return BatchPlan(task, SIZE, batch_size=4, epochs=2, max_elements=16)
