"""How fast one training step is: forward, backward and a plain gradient step, on photos that are in memory already.

All variants take turns within a repetition, so that a busy machine slows them alike; medians are over repetitions.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from benchmark.run.machine import machine, number_of, peak_bytes
from flair.files import atomic
from flair.terminal.flags import positive_int
from flair.terminal.paths import path_flag

if TYPE_CHECKING:
    import tensorflow as tf

NUM_LABELS = 17
OURS, KERAS, NO_NORM, FROZEN = "our GroupNorm", "Keras's GroupNorm", "no norm", "frozen BatchNorm"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
VARIANTS = tuple((norm, dtype) for dtype in ("float32", "bfloat16") for norm in (OURS, KERAS, NO_NORM, FROZEN))


def main(argv: Sequence[str]) -> int:
    """Parses the flags, measures, prints a table (and JSON with --json)."""
    flags = _parse(argv)
    if flags.memory_of is not None:
        print(_peak_memory(flags, VARIANTS[flags.memory_of]))
        return 0
    seconds = measure({variant: make_step(variant, flags) for variant in VARIANTS}, flags.repeats, CLOCKS[flags.clock])
    memory = {variant: _memory_of(flags, index) for index, variant in enumerate(VARIANTS)}
    rows = [
        {
            "norm": norm,
            "compute_dtype": dtype,
            "images_per_second": flags.batch_size / statistics.median(seconds[norm, dtype]),
            "median_seconds": statistics.median(seconds[norm, dtype]),
            "fastest_seconds": min(seconds[norm, dtype]),
            "ratio_to_ours": ratio(seconds[norm, dtype], seconds[OURS, dtype]),
            "ratio_to_ours_float32": ratio(seconds[norm, dtype], seconds[OURS, "float32"]),
            "peak_bytes": memory[norm, dtype],
        }
        for norm, dtype in VARIANTS
    ]
    print(_format(rows, flags))
    if flags.json:
        atomic.write_json(flags.json, {**machine(), "flags": vars(flags), "steps": rows})
        print(f"JSON: {flags.json}")
    return 0


def ratio(seconds: Sequence[float], baseline: Sequence[float]) -> float:
    """Speed relative to a baseline: the median over repetitions of the quotient of times measured side by side.

    >>> ratio([1.0, 2.0, 4.0], [2.0, 4.0, 8.0])
    2.0
    """
    return statistics.median(b / s for s, b in zip(seconds, baseline, strict=True))


def measure(
    steps: dict[Any, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[Any, list[float]]:
    """Seconds of each step in each repetition; the first two of each are not counted."""
    seconds: dict[Any, list[float]] = {name: [] for name in steps}
    for repetition in range(-2, repeats):
        for name, step in steps.items():
            started = clock()
            step()
            if repetition >= 0:
                seconds[name].append(clock() - started)
    return seconds


def make_step(variant: tuple[str, str], flags: argparse.Namespace) -> Callable[[], None]:
    """A compiled training step of one variant on a batch of random photos, which waits for its result."""
    import tensorflow as tf

    from benchmark.metrics.keras import losses_of
    from benchmark.model import networks

    tf.get_logger().setLevel("ERROR")  # one function a variant is no retracing
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

    return lambda: step(images, labels).numpy()


def _keras_norm(name: str, groups: int, policy: tf.keras.mixed_precision.Policy) -> tf.keras.layers.Layer:
    import tensorflow as tf

    return tf.keras.layers.GroupNormalization(groups, epsilon=1e-5, name=name, dtype=policy)


def _no_norm(_name: str, _groups: int, _policy: tf.keras.mixed_precision.Policy) -> Callable[[tf.Tensor], tf.Tensor]:
    return lambda x: x


def _peak_memory(flags: argparse.Namespace, variant: tuple[str, str]) -> int:
    step = make_step(variant, flags)
    for _ in range(3):
        step()
    return peak_bytes()


def _memory_of(flags: argparse.Namespace, index: int) -> int:
    """Peak memory of a process that runs this variant alone."""
    sizes = (f"--batch_size={flags.batch_size}", f"--image_size={flags.image_size}")
    return number_of("benchmark.speed.step", f"--memory_of={index}", f"--model={flags.model}", *sizes)


def _format(rows: Sequence[dict[str, Any]], flags: argparse.Namespace) -> str:
    lines = [
        f"{flags.model}, batch of {flags.batch_size}, {flags.image_size}x{flags.image_size}, forward + backward + SGD, "
        f"median of {flags.repeats}, {flags.clock} time",
        f"{'normalization':<20}{'dtype':<10}{'images/s':>9}{'ms a step':>11}{'vs ours':>9}{'vs ours float32':>17}"
        f"{'peak memory':>13}",
    ]
    for row in rows:
        lines.append(
            f"{row['norm']:<20}{row['compute_dtype']:<10}{row['images_per_second']:>9.1f}"
            f"{1000 * row['median_seconds']:>11.0f}{row['ratio_to_ours']:>9.2f}{row['ratio_to_ours_float32']:>17.2f}"
            f"{row['peak_bytes'] / 1e9:>10.2f} GB"
        )
    return "\n".join(lines)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmark.speed_main step",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", default="resnet18", help="network, resnet18 or cnn")
    parser.add_argument("--batch_size", type=positive_int, default=16, help="photos a step")
    parser.add_argument("--image_size", type=positive_int, default=224, help="height and width of the input, in pixels")
    parser.add_argument("--repeats", type=positive_int, default=15, help="repetitions, of which medians are taken")
    parser.add_argument(
        "--clock", choices=tuple(CLOCKS), default="wall", help="cpu: seconds of all cores, steadier on a busy machine"
    )
    parser.add_argument("--json", type=path_flag, help="write the numbers to this file too")
    parser.add_argument("--memory_of", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.exit(main(sys.argv[1:]))
