"""How fast one training step is, with each normalization and number type, on photos that are in memory already.

A step is forward, backward and a plain gradient step. Each variant's peak memory is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from benchmark.metrics.keras import losses_of
from benchmark.model import networks
from benchmark.run.machine import peak_bytes
from benchmark.speed.harness import memory_of, ratio, take_turns
from flair.terminal.table import Columns

NUM_LABELS = 17
OURS, KERAS, NO_NORM, FROZEN = "our GroupNorm", "Keras's GroupNorm", "no norm", "frozen BatchNorm"
VARIANTS = tuple((norm, dtype) for dtype in ("float32", "bfloat16") for norm in (OURS, KERAS, NO_NORM, FROZEN))


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Prints a table of all variants; returns its rows."""
    steps = {variant: make_step(variant, flags) for variant in VARIANTS}
    clock = time.process_time if flags.clock == "cpu" else time.perf_counter
    seconds = take_turns(steps, flags.repeats, warm_up=2, clock=clock)
    rows = [
        {
            "norm": norm,
            "compute_dtype": dtype,
            "images_per_second": flags.batch_size / statistics.median(seconds[norm, dtype]),
            "median_seconds": statistics.median(seconds[norm, dtype]),
            "fastest_seconds": min(seconds[norm, dtype]),
            "ratio_to_ours": ratio(seconds[norm, dtype], seconds[OURS, dtype]),
            "ratio_to_ours_float32": ratio(seconds[norm, dtype], seconds[OURS, "float32"]),
            "peak_bytes": memory_of("step", flags, index),
        }
        for index, (norm, dtype) in enumerate(VARIANTS)
    ]
    print(
        f"{flags.model}, batch of {flags.batch_size}, {flags.image_size}x{flags.image_size}, forward + backward + SGD, "
        f"median of {flags.repeats}, {flags.clock} time"
    )
    columns = Columns("<20", "<10", ">9.1f", ">11.0f", ">9.2f", ">17.2f", ">13")
    header = ("normalization", "dtype", "images/s", "ms a step", "vs ours", "vs ours float32", "peak memory")
    print(columns.line(*header))
    for row in rows:
        cells = (row["norm"], row["compute_dtype"], row["images_per_second"], 1000 * row["median_seconds"])
        ratios = (row["ratio_to_ours"], row["ratio_to_ours_float32"])
        print(columns.line(*cells, *ratios, f"{row['peak_bytes'] / 1e9:.2f} GB"))
    return {"steps": rows}


def memory(flags: argparse.Namespace) -> int:
    """Peak memory in bytes of this process, which runs one variant alone."""
    step = make_step(VARIANTS[flags.memory_of], flags)
    for repetition in range(3):
        step(repetition)
    return peak_bytes()


def make_step(variant: tuple[str, str], flags: argparse.Namespace) -> Callable[[int], None]:
    """A compiled training step of one variant on a batch of random photos, which waits for its result."""
    tf.get_logger().setLevel("ERROR")  # a function for each variant is not retracing
    norm, dtype = variant
    size = (flags.image_size, flags.image_size)
    model = networks.build_model(
        flags.model,
        (*size, 3),
        NUM_LABELS,
        pretrained_norm=norm == FROZEN,
        compute_dtype=dtype,
        norm={KERAS: _keras_norm, NO_NORM: _no_norm}.get(norm),
    )
    images = tf.cast(tf.random.stateless_uniform((flags.batch_size, *size, 3), (1, 2), 0, 256), tf.uint8)
    labels = tf.cast(tf.random.stateless_uniform((flags.batch_size, NUM_LABELS), (3, 4)) < 0.2, tf.float32)

    @tf.function
    def step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(losses_of(labels, model(images, training=True)))
        gradients = tape.gradient(loss, model.trainable_variables)
        for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
            tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=1e-3, delta=gradient)
        return loss

    def run(_repetition: int) -> None:
        step(images, labels).numpy()  # waits for the device

    return run


def _keras_norm(name: str, groups: int, policy: tf.keras.mixed_precision.Policy) -> tf.keras.layers.Layer:
    return tf.keras.layers.GroupNormalization(groups, epsilon=1e-5, name=name, dtype=policy)


def _no_norm(_name: str, _groups: int, _policy: tf.keras.mixed_precision.Policy) -> Callable[[tf.Tensor], tf.Tensor]:
    return lambda x: x
