"""TFF's aggregator and server optimizer as plain functions: initialize, accumulate, merge, finish.

`compilation` cuts them into the graphs of a `RoundSpec`. Calling these needs TensorFlow only, so that a worker process
can do without TFF.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from benchmark.rounds.graph import GraphFunction, GraphSpec


class SecureSum(NamedTuple):
    """A tensor of integers below 2^`bits` that clients send masked, so that the server learns their sum alone."""

    shape: tuple[int, ...]
    dtype: str
    bits: int


class RoundSpec(NamedTuple):
    """A round's computations as plain data: a graph per phase, and what the flat state and measurements are called.

    `secure_sums` come last in a client's encoded result and in an aggregate. The measurements below `update/` are what
    the aggregator gave to the server optimizer. `step` is MimeLite's client step, (state, weights, gradients) -> new
    weights; None for the other algorithms.
    """

    initialize: GraphSpec
    prepare: GraphSpec
    work: GraphSpec
    zero: GraphSpec
    accumulate: GraphSpec
    merge: GraphSpec
    report: GraphSpec
    update: GraphSpec
    step: GraphSpec | None
    state_names: tuple[str, ...]
    measurement_names: tuple[str, ...]
    secure_sums: tuple[SecureSum, ...] = ()

    def secure_bits(self, cohort: int) -> int:
        """Bits that a client sends for the secure sums of a cohort, without those that agree on masks.

        A number below 2^b of each of n clients is masked modulo n (2^b - 1) + 1, in which no sum wraps around (Bonawitz
        et al. 2017, https://doi.org/10.1145/3133956.3133982).
        """
        bits = ((one.shape, (cohort * (2**one.bits - 1)).bit_length()) for one in self.secure_sums)
        return sum(math.prod(shape) * each for shape, each in bits)


class Finished(NamedTuple):
    """What a round comes to at the server.

    Attributes:
      state: of the next round.
      measurements: of aggregator and server optimizer, by slash-joined name.
      update: what the aggregator gave to the server optimizer, a tensor per weight: the mean, with its noise if any.
    """

    state: list[tf.Tensor]
    measurements: dict[str, float]
    update: list[tf.Tensor]


class Aggregation:
    """Calls the graphs of a `RoundSpec`.

    The server's state is a flat list of tensors named by `spec.state_names`; an aggregate is a flat list, too.
    """

    def __init__(self, spec: RoundSpec) -> None:
        self.spec = spec
        # Each graph is loaded when it is first asked for: a worker needs three of the eight.
        self._graph = functools.cache(lambda phase: GraphFunction(getattr(spec, phase)))
        self._num_weights = sum(name.startswith("weights/") for name in spec.state_names)

    def initialize(self, weights: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The state before round 0, with the given global weights."""
        state = self._graph("initialize")([])
        if len(weights) != self._num_weights:
            raise ValueError(f"expected {self._num_weights} weights, got {len(weights)}")
        return [*map(tf.convert_to_tensor, weights), *state[self._num_weights :]]

    def weights(self, state: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The global weights in `state`."""
        return list(state[: self._num_weights])

    def part(self, state: Sequence[tf.Tensor], name: str) -> list[tf.Tensor]:
        """The tensors of `state` below `name`, such as `base_optimizer`."""
        named = zip(self.spec.state_names, state, strict=True)
        return [tensor for full_name, tensor in named if full_name.startswith(f"{name}/")]

    def broadcast(self, state: Sequence[tf.Tensor], seed: tf.Tensor) -> list[tf.Tensor]:
        """What the aggregator sends to the clients of a round: the clip norm, a random rotation to encode by."""
        return self._graph("prepare")(state, seed)

    def zero(self) -> list[tf.Tensor]:
        """The aggregate of no client."""
        secure = [tf.zeros(one.shape, one.dtype) for one in self.spec.secure_sums]
        return [*(self._graph("zero")([]) if self.spec.zero.outputs else []), *secure]

    def accumulate(
        self,
        aggregate: Sequence[tf.Tensor],
        result: Sequence[tf.Tensor],
        broadcast: Sequence[tf.Tensor],
        seed: tf.Tensor,
    ) -> list[tf.Tensor]:
        """Clips and encodes one client's result and adds it; traceable in a tf.function.

        A result is the update, its weight and, in MimeLite, the full gradient.

        Guarantee: under differential privacy what is added has an L2 norm of at most the clip norm in `broadcast`,
        whatever the update is. Edge cases: float32 rounding may exceed the bound by one part in 10^6; an update that is
        not finite has to be left out by the caller, as `shard` does, because scaling it does not make it finite.
        """
        return self._sum("accumulate", aggregate, self._graph("work")([*result, *broadcast], seed))

    def merge(self, first: Sequence[tf.Tensor], second: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Two aggregates of disjoint sets of clients as one."""
        return self._sum("merge", first, second)

    def finish(
        self,
        state: Sequence[tf.Tensor],
        aggregate: Sequence[tf.Tensor],
        seed: tf.Tensor,
        normals: Callable[[int], np.ndarray] | None = None,
    ) -> Finished:
        """Noise, mean and server optimizer step.

        Args:
          seed: int64[2], for an aggregator that rounds stochastically.
          normals: how many -> float32 [so many] standard normal numbers; a private aggregator needs it.
        """
        plain = len(aggregate) - len(self.spec.secure_sums)
        reported = [*(self._graph("report")(aggregate[:plain]) if plain else []), *aggregate[plain:]]
        outputs = self._graph("update")([*state, *reported], seed, self._noise(normals))
        num_state = len(self.spec.state_names)
        named = list(zip(self.spec.measurement_names, outputs[num_state:], strict=True))
        update = [value for name, value in named if name.startswith("update/")]
        scalars = {
            name: float(value) for name, value in named if not name.startswith("update/") and value.shape.rank == 0
        }
        return Finished(outputs[:num_state], scalars, update)

    def load_for_clients(self) -> None:
        """Loads the graphs that clients need now, outside of any tf.function that will call them."""
        for phase in ("zero", "work", "accumulate"):
            if getattr(self.spec, phase).outputs:
                self._graph(phase)

    def _sum(self, phase: str, aggregate: Sequence[tf.Tensor], more: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        plain = len(aggregate) - len(self.spec.secure_sums)
        # What clients and server would do with masks; the sum that comes out is this one.
        secure = [one + other for one, other in zip(aggregate[plain:], more[plain:], strict=True)]
        return [*(self._graph(phase)([*aggregate[:plain], *more[:plain]]) if plain else []), *secure]

    def _noise(self, normals: Callable[[int], np.ndarray] | None) -> list[tf.Tensor]:
        shapes = self._graph("update").normal_shapes
        if not shapes:
            return []
        if normals is None:
            raise ValueError("this aggregator adds noise and needs normal numbers")
        sizes = [shape.num_elements() for shape in shapes]
        parts = np.split(normals(sum(sizes)), np.cumsum(sizes)[:-1])
        return [tf.constant(part.reshape(shape)) for part, shape in zip(parts, shapes, strict=True)]
