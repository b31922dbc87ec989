"""Server optimizers against the formulas of their papers, in NumPy; and what of a run is the server's."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from benchmark.metrics.loss import LossConfig
from benchmark.rounds.algorithm import build_optimizer
from benchmark.rounds.config import FED_AVG, FED_PROX, MIME_LITE, ClientConfig, FederatedConfig, OptimizerConfig


def test_adamw_has_its_decays():
    config = OptimizerConfig("adamw", (0.1,), epsilon=0.01, beta_2=0.99, weight_decay=0.3)
    optimizer = build_optimizer(config)
    weights = np.array([1.0, -2.0, 0.5], np.float32)
    state = optimizer.initialize(tf.TensorSpec([3], tf.float32))
    found, expected = tf.constant(weights), weights.astype(np.float64)
    first = second = np.zeros(3)
    for step, gradient in enumerate(np.random.default_rng(0).normal(size=(5, 3)), start=1):
        state, found = optimizer.next(state, found, tf.constant(gradient, tf.float32))
        first, second = 0.9 * first + 0.1 * gradient, 0.99 * second + 0.01 * gradient**2
        # Kingma and Ba's "epsilon hat", as TFF has it, and Loshchilov and Hutter's decoupled decay.
        direction = np.sqrt(1 - 0.99**step) / (1 - 0.9**step) * first / (np.sqrt(second) + 0.01)
        expected = expected - 0.1 * (direction + 0.3 * expected)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_runs_share_the_servers_graphs_where_only_their_clients_differ():
    def server(algorithm=FED_AVG, rate=0.1, momentum=0.9, **client):
        return FederatedConfig(ClientConfig(algorithm, (rate,), **client), OptimizerConfig(momentum=momentum)).server

    loss = LossConfig(4.0, 1.0, 0.05)
    assert server() == server(rate=0.2, clipnorm=1.0, loss=loss) == server(FED_PROX, proximal_strength=0.5)
    assert server() != server(weighted=False)
    # MimeLite's clients take the step of an optimizer that is the server's.
    different = [server(), server(MIME_LITE), server(MIME_LITE, rate=0.2), server(MIME_LITE, momentum=0.5)]
    assert len(set(different)) == 4
    assert server(MIME_LITE, rate=0.2, momentum=0.5).base_optimizer == OptimizerConfig("momentum", (0.2,), 0.5)
