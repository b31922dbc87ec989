"""A TFF TensorFlow computation as a plain TensorFlow function: no TFF runtime, no TFF import, any device.

TFF serializes every computation to a GraphDef with named inputs and outputs. `GraphSpec` is that, as plain data (so
that it can be sent to another process); `GraphFunction` imports it and calls it on flat lists of tensors.

Random operations that draw from a process-wide stream are given their numbers by the caller instead, because a resumed
run must draw what an unbroken run draws. The normal numbers of `DifferentiallyPrivateFactory` become inputs: who knows
them can take the noise away, so that they come from a cipher (`benchmark.privacy.noise`) and not from a TensorFlow
generator. Uniform ones (the stochastic rounding of `compression_aggregator`) are rewritten to their stateless forms
with a seed argument, the same Philox generator (https://www.tensorflow.org/guide/random_numbers) under an explicit key.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

_import_numbers = itertools.count()
_SEED_INPUT = "flair_toolkit_seed"
_NORMAL = "RandomStandardNormal"
_STATELESS = {"RandomUniform": "StatelessRandomUniform", "TruncatedNormal": "StatelessTruncatedNormal"}
_STATEFUL_RANDOM = {_NORMAL, *_STATELESS, "RandomUniformInt", "Multinomial", "RandomShuffle", "RandomPoissonV2"}


class GraphSpec(NamedTuple):
    """A serialized TensorFlow computation: GraphDef bytes and the names of its inputs and outputs, in flat order."""

    graph_def: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    initialize_op: str


class GraphFunction:
    """Calls a `GraphSpec` on flat tensors: `outputs = function(inputs, seed, normals)`.

    Args of a call:
      inputs: one `tf.Tensor` per input of the computation, in flat order.
      seed: int64 tensor or array of shape [2]; used only where the computation draws uniform numbers.
      normals: one float32 tensor of standard normal numbers per shape in `normal_shapes`.

    Raises:
      ValueError: the graph has a random operation that nothing can be put in place of, so that runs could not be
        repeated.
    """

    def __init__(self, spec: GraphSpec) -> None:
        graph_def = tf.compat.v1.GraphDef.FromString(spec.graph_def)
        _rename_functions(graph_def)
        normal_names = _replace_normals(graph_def)
        self._is_random = _replace_uniforms(graph_def)
        wrapped = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph_def, name=""), [])
        graph = wrapped.graph
        self.normal_shapes = [graph.get_tensor_by_name(name).shape for name in normal_names]
        seeds = [f"{_SEED_INPUT}:0"] if self._is_random else []
        feeds = [graph.get_tensor_by_name(name) for name in (*spec.inputs, *seeds, *normal_names)]
        pruned = wrapped.prune(feeds, [graph.get_tensor_by_name(name) for name in spec.outputs])
        # A pruned function called from Python formats the values of all its arguments into an error it then drops:
        # a third of a second for the weights of ResNet-18.
        specs = [tf.TensorSpec(feed.shape, feed.dtype) for feed in feeds]
        self._function = tf.function(lambda *arguments: pruned(*arguments)).get_concrete_function(*specs)
        self._initialize = (
            wrapped.prune([], graph.get_operation_by_name(spec.initialize_op)) if spec.initialize_op else None
        )

    def __call__(
        self, inputs: Sequence[tf.Tensor], seed: tf.Tensor | np.ndarray | None = None, normals: Sequence[tf.Tensor] = ()
    ) -> list[tf.Tensor]:
        if self._initialize is not None:
            self._initialize()
        seeds = []
        if self._is_random:
            if seed is None:
                raise ValueError("this computation draws random numbers and needs a seed")
            seeds = [tf.convert_to_tensor(seed, tf.int64)]
        if len(normals) != len(self.normal_shapes):
            raise ValueError(f"this computation adds noise {len(self.normal_shapes)} times, got {len(normals)} tensors")
        return list(self._function(*inputs, *seeds, *normals))


def _rename_functions(graph_def: tf.compat.v1.GraphDef) -> None:
    """Gives library functions new names, because those of two imported graphs must not clash."""
    suffix = f"_import{next(_import_numbers)}"
    renamed = {f.signature.name: f.signature.name + suffix for f in graph_def.library.function}
    for function in graph_def.library.function:
        function.signature.name = renamed[function.signature.name]
    for gradient in graph_def.library.gradient:
        gradient.function_name = renamed.get(gradient.function_name, gradient.function_name)
        gradient.gradient_func = renamed.get(gradient.gradient_func, gradient.gradient_func)
    for node in itertools.chain(graph_def.node, *(function.node_def for function in graph_def.library.function)):
        node.op = renamed.get(node.op, node.op)
        for attribute in node.attr.values():
            for reference in [attribute.func, *attribute.list.func]:
                if reference.name in renamed:
                    reference.name = renamed[reference.name]


def _replace_normals(graph_def: tf.compat.v1.GraphDef) -> list[str]:
    """Makes inputs of the operations that draw normal numbers; the inputs' names."""
    nodes = sorted((node for node in graph_def.node if node.op == _NORMAL), key=lambda node: str(node.name))
    for node in nodes:
        # Its own argument, a constant, says what shape it has.
        source = next(other for other in graph_def.node if other.name == node.input[0].partition(":")[0].lstrip("^"))
        if source.op != "Const" or node.attr["dtype"].type != tf.float32.as_datatype_enum:
            raise ValueError(f"random operation {node.op} ({node.name}) is not float32 of a constant shape")
        _make_input(node, tf.float32, tf.make_ndarray(source.attr["value"].tensor).tolist())
    return [f"{node.name}:0" for node in nodes]


def _replace_uniforms(graph_def: tf.compat.v1.GraphDef) -> bool:
    """Makes the other random operations functions of a seed, which becomes an input; whether there are any."""
    for function in graph_def.library.function:
        for node in function.node_def:
            if node.op in _STATEFUL_RANDOM:
                raise ValueError(f"random operation {node.op} inside function {function.signature.name}")
    nodes = [node for node in graph_def.node if node.op in _STATEFUL_RANDOM]
    if nodes:
        _make_input(graph_def.node.add(name=_SEED_INPUT), tf.int64, [2])
    int64 = tf.int64.as_datatype_enum
    for index, node in enumerate(nodes):
        if node.op not in _STATELESS:
            raise ValueError(f"random operation {node.op} ({node.name}) has no stateless form")
        # Each operation adds its own number to the seed, so that no two draw the same.
        offset = graph_def.node.add(name=f"{_SEED_INPUT}_offset_{index}", op="Const")
        offset.attr["dtype"].type = int64
        offset.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(np.array([0, index], np.int64)))
        own_seed = graph_def.node.add(name=f"{_SEED_INPUT}_{index}", op="AddV2", input=[_SEED_INPUT, offset.name])
        own_seed.attr["T"].type = int64
        (shape, *control), dtype, shape_type = node.input, node.attr["dtype"].type, node.attr["T"].type
        node.op = _STATELESS[node.op]
        del node.input[:]
        node.input.extend([shape, own_seed.name, *control])
        node.attr.clear()
        node.attr["dtype"].type, node.attr["T"].type, node.attr["Tseed"].type = dtype, shape_type, int64
    return bool(nodes)


def _make_input(node: tf.compat.v1.NodeDef, dtype: tf.DType, shape: list[int]) -> None:
    node.op = "Placeholder"
    del node.input[:]
    node.attr.clear()
    node.attr["dtype"].type = dtype.as_datatype_enum
    node.attr["shape"].shape.CopyFrom(tf.TensorShape(shape).as_proto())
