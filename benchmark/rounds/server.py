"""The server's part of a round and the clients' part of aggregation, as plain TensorFlow functions.

`server_graphs` cuts a TFF aggregator and optimizer into the graphs of a `ServerSpec`; here they are called.
Imports TensorFlow only, so that a worker process needs nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from benchmark.rounds.tff_graph import GraphFunction, GraphSpec


class ServerSpec(NamedTuple):
    """The server computation as plain data: one graph a phase, and what the flat state and measurements are called."""

    initialize: GraphSpec
    prepare: GraphSpec
    work: GraphSpec
    zero: GraphSpec
    accumulate: GraphSpec
    merge: GraphSpec
    report: GraphSpec
    update: GraphSpec
    state_names: tuple[str, ...]
    measurement_names: tuple[str, ...]
    result_names: tuple[str, ...]


class Server:
    """Runs a `ServerSpec` in this process. The state is a flat list of tensors named by `spec.state_names`."""

    def __init__(self, spec: ServerSpec) -> None:
        self.spec = spec
        self._initialize = GraphFunction(spec.initialize)
        self._prepare = GraphFunction(spec.prepare)
        self._report = GraphFunction(spec.report)
        self._update = GraphFunction(spec.update)
        self._merge = GraphFunction(spec.merge)
        self.num_weights = sum(name.startswith("weights/") for name in spec.state_names)

    def initialize(self, weights: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The state before round 0, with the given global weights (trainable ones first)."""
        state = self._initialize([])
        if len(weights) != self.num_weights:
            raise ValueError(f"expected {self.num_weights} weights, got {len(weights)}")
        return [*map(tf.convert_to_tensor, weights), *state[self.num_weights :]]

    def weights(self, state: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The global weights in `state`."""
        return list(state[: self.num_weights])

    def part(self, state: Sequence[tf.Tensor], name: str) -> list[tf.Tensor]:
        """The tensors of `state` below `name`, such as `base_optimizer`."""
        return [
            tensor for tensor, full in zip(state, self.spec.state_names, strict=True) if full.startswith(name + "/")
        ]

    def broadcast(self, state: Sequence[tf.Tensor], seed: tf.Tensor) -> list[tf.Tensor]:
        """What the aggregator sends to the clients of a round: the clipping norm, a random rotation to encode by."""
        return self._prepare(state, seed)

    def merge(self, first: Sequence[tf.Tensor], second: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Two aggregates of disjoint sets of clients as one."""
        return self._merge([*first, *second])

    def finish(
        self,
        state: Sequence[tf.Tensor],
        aggregate: Sequence[tf.Tensor],
        seed: tf.Tensor,
        normals: Callable[[int], np.ndarray] | None = None,
    ) -> tuple[list[tf.Tensor], dict[str, float]]:
        """Noise, mean and server optimizer step; returns the new state and the round's measurements.

        Args:
          seed: int64[2], for an aggregator that rounds stochastically.
          normals: how many -> float32 [so many] standard normal numbers; a private aggregator needs it.
        """
        outputs = self._update([*state, *self._report(aggregate)], seed, self._noise(normals))
        num_state = len(self.spec.state_names)
        measurements = zip(self.spec.measurement_names, outputs[num_state:], strict=True)
        return outputs[:num_state], {name: float(value) for name, value in measurements if value.shape.rank == 0}

    def _noise(self, normals: Callable[[int], np.ndarray] | None) -> list[tf.Tensor]:
        shapes = self._update.normal_shapes
        if not shapes:
            return []
        if normals is None:
            raise ValueError("this aggregator adds noise and needs normal numbers")
        sizes = [shape.num_elements() for shape in shapes]
        parts = np.split(normals(sum(sizes)), np.cumsum(sizes)[:-1])
        return [tf.constant(part.reshape(shape)) for part, shape in zip(parts, shapes, strict=True)]


class ClientAggregation:
    """The clients' side of aggregation: `accumulate(aggregate, result, broadcast)`, one client at a time."""

    def __init__(self, work: GraphSpec, zero: GraphSpec, accumulate: GraphSpec) -> None:
        self._work, self._zero, self._accumulate = GraphFunction(work), GraphFunction(zero), GraphFunction(accumulate)

    def zero(self) -> list[tf.Tensor]:
        """The aggregate of no client."""
        return self._zero([])

    def accumulate(
        self,
        aggregate: Sequence[tf.Tensor],
        result: Sequence[tf.Tensor],
        broadcast: Sequence[tf.Tensor],
        seed: tf.Tensor,
    ) -> list[tf.Tensor]:
        """Clips and encodes one client's result (`spec.result_names`) and adds it; traceable in a tf.function."""
        return self._accumulate([*aggregate, *self._work([*result, *broadcast], seed)])
