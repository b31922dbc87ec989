"""Compiles TFF's aggregator and server optimizer into the plain TensorFlow graphs of a round.

A TFF aggregation process and a TFF finalizer are composed into one federated computation

    (state@SERVER, client_results@CLIENTS) -> (new_state@SERVER, measurements@SERVER)

and compiled with `tff.backends.mapreduce.get_map_reduce_form_for_computation`, which cuts any such computation into
prepare (what the server sends), work (clip and encode one client's result), zero, accumulate, merge, report and update
(noise, decode, optimizer step). Any TFF aggregator therefore works unchanged, and accumulation needs the memory of one
aggregate whatever the cohort. MapReduceForm: https://www.tensorflow.org/federated/api_docs/python/tff/backends/mapreduce
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from benchmark.rounds.aggregation import RoundSpec, SecureSum
from benchmark.rounds.graph import GraphFunction, GraphSpec

_WEIGHT_TYPE = tff.TensorType(np.float32)
_PHASES = ("prepare", "work", "zero", "accumulate", "merge", "report", "update")


def compile_round(
    weights: Sequence[tf.TensorSpec],
    aggregator: tff.aggregators.WeightedAggregationFactory | tff.aggregators.UnweightedAggregationFactory,
    server_optimizer: tff.learning.optimizers.Optimizer,
    base_optimizer: tff.learning.optimizers.Optimizer | None = None,
) -> RoundSpec:
    """Compiles aggregator and server optimizer for a model of the given weights.

    Args:
      weights: specs of the weights that train; a client's update has the same shapes.
      aggregator: any TFF aggregation factory, weighted (by examples) or unweighted.
      server_optimizer: applied to the aggregate by `tff.learning.templates.build_apply_optimizer_finalizer`.
      base_optimizer: MimeLite's global optimizer, whose state follows the mean full gradient of the cohort
        (Karimireddy et al. 2020, Algorithm 1, https://arxiv.org/abs/2008.03606); None for the other algorithms.
    """
    types = tuple(tff.TensorType(spec.dtype.as_numpy_dtype, spec.shape.as_list()) for spec in weights)
    weights_type = tff.types.to_type(tff.learning.models.ModelWeights(types, ()))
    update_type = weights_type.trainable
    weighted = isinstance(aggregator, tff.aggregators.WeightedAggregationFactory)
    aggregation = aggregator.create(update_type, _WEIGHT_TYPE) if weighted else aggregator.create(update_type)
    finalizer = tff.learning.templates.build_apply_optimizer_finalizer(server_optimizer, weights_type)
    mime = None if base_optimizer is None else _MimeLite(base_optimizer, weights, update_type)

    @tff.tensorflow.computation
    def zero_weights():  # type: ignore[no-untyped-def]
        return tff.learning.models.ModelWeights(tuple(tf.zeros(spec.shape, spec.dtype) for spec in weights), ())

    @tff.federated_computation
    def initialize():  # type: ignore[no-untyped-def]
        state = collections.OrderedDict(
            weights=tff.federated_eval(zero_weights, tff.SERVER),
            aggregator=aggregation.initialize(),
            finalizer=finalizer.initialize(),
        )
        if mime is not None:
            state["base_optimizer"] = tff.federated_eval(mime.initialize, tff.SERVER)
            state["gradient_aggregator"] = mime.aggregation.initialize()
        return tff.federated_zip(state)

    result_type = collections.OrderedDict(update=update_type, weight=_WEIGHT_TYPE)
    if mime is not None:
        result_type["full_gradient"] = update_type

    @tff.federated_computation(initialize.type_signature.result, tff.FederatedType(result_type, tff.CLIENTS))
    def next_round(state, results):  # type: ignore[no-untyped-def]
        aggregated = (
            aggregation.next(state.aggregator, results.update, results.weight)
            if weighted
            else aggregation.next(state.aggregator, results.update)
        )
        finalized = finalizer.next(state.finalizer, state.weights, aggregated.result)
        new_state = collections.OrderedDict(
            weights=finalized.result, aggregator=aggregated.state, finalizer=finalized.state
        )
        if mime is not None:
            gradient = mime.aggregation.next(state.gradient_aggregator, results.full_gradient, results.weight)
            new_state["base_optimizer"] = tff.federated_map(mime.update, (state.base_optimizer, gradient.result))
            new_state["gradient_aggregator"] = gradient.state
        measurements = collections.OrderedDict(
            aggregator=aggregated.measurements, finalizer=finalized.measurements, update=aggregated.result
        )
        return tff.federated_zip(new_state), tff.federated_zip(measurements)

    form = tff.backends.mapreduce.get_map_reduce_form_for_computation(next_round)
    state_type, measurement_type = form.update.type_signature.result
    return RoundSpec(
        initialize=_graph_spec(tff.backends.mapreduce.get_state_initialization_computation(initialize)),
        **{phase: _graph_spec(getattr(form, phase)) for phase in _PHASES},
        step=None if mime is None else _graph_spec(mime.step),
        state_names=tuple(_flat_names(state_type)),
        measurement_names=tuple(_flat_names(measurement_type)),
        secure_sums=_secure_sums(form),
    )


def _secure_sums(form: tff.backends.mapreduce.MapReduceForm) -> tuple[SecureSum, ...]:
    """What clients send to secure sums, which a `MapReduceForm` keeps apart from what is accumulated."""
    _, bitwidth, *others = form.work.type_signature.result
    if any(len(other) for other in others):
        raise ValueError("only secure sums of a given number of bits can be simulated")
    types = tff.structure.flatten(bitwidth)
    bits = GraphFunction(_graph_spec(form.secure_sum_bitwidth))([]) if types else []
    return tuple(
        SecureSum(tuple(one.shape), np.dtype(one.dtype).name, int(each)) for one, each in zip(types, bits, strict=True)
    )


class _MimeLite:
    """MimeLite's global optimizer: the mean full gradient drives its state, and clients take its step."""

    def __init__(
        self, optimizer: tff.learning.optimizers.Optimizer, weights: Sequence[tf.TensorSpec], update_type: tff.Type
    ) -> None:
        # Of a round without any usable client the mean is zero, not a state that is NaN ever after.
        self.aggregation = tff.aggregators.MeanFactory(no_nan_division=True).create(update_type, _WEIGHT_TYPE)
        self.initialize = tff.tensorflow.computation(lambda: optimizer.initialize(tuple(weights)))
        state_type = self.initialize.type_signature.result

        @tff.tensorflow.computation(state_type, update_type)
        def update(state, gradient):  # type: ignore[no-untyped-def]
            zeros = tf.nest.map_structure(tf.zeros_like, gradient)
            return optimizer.next(state, zeros, gradient)[0]

        @tff.tensorflow.computation(state_type, update_type, update_type)
        def step(state, weights, gradients):  # type: ignore[no-untyped-def]
            return optimizer.next(state, weights, gradients)[1]

        self.update, self.step = update, step


def _graph_spec(computation: tff.Computation) -> GraphSpec:
    """The GraphDef and flat bindings inside a TFF TensorFlow computation."""
    block = tff.framework.serialize_computation(computation).tensorflow
    graph_def = tf.compat.v1.GraphDef()
    block.graph_def.Unpack(graph_def)
    inputs = _flat_bindings(block.parameter) if block.HasField("parameter") else []
    serialized, outputs = graph_def.SerializeToString(deterministic=True), _flat_bindings(block.result)
    return GraphSpec(serialized, tuple(inputs), tuple(outputs), block.initialize_op)


def _flat_bindings(binding: Any) -> list[str]:
    kind = binding.WhichOneof("binding")
    if kind == "tensor":
        return [binding.tensor.tensor_name]
    if kind == "struct":
        return [name for element in binding.struct.element for name in _flat_bindings(element)]
    if kind is None:
        return []
    raise ValueError(f"a server computation takes and gives tensors only, found a {kind}")


def _flat_names(type_spec: tff.Type, prefix: str = "") -> list[str]:
    """Slash-joined names of the tensors of a TFF type, in flat order."""
    if not isinstance(type_spec, tff.StructType):
        return [prefix]
    return [
        name
        for index, (key, element) in enumerate(tff.structure.iter_elements(type_spec))
        for name in _flat_names(element, f"{prefix}/{key or index}" if prefix else str(key or index))
    ]
