"""How much memory shuffled training batches take beyond TensorFlow; `central` runs it in a process of its own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmark.run.machine import peak_bytes
from flair.terminal.flags import positive_int
from flair.terminal.paths import path_flag


def main(argv: Sequence[str]) -> int:
    """Goes once through the training photos and prints by how many bytes the process grew."""
    parser = argparse.ArgumentParser("python -m benchmark.speed.pipeline", description=__doc__)
    parser.add_argument("--tfrecords_dir", type=path_flag, required=True, help="records to read")
    parser.add_argument("--batch_size", type=positive_int, required=True, help="photos a batch")
    parser.add_argument("--image_size", type=positive_int, required=True, help="height and width, in pixels")
    flags = parser.parse_args(argv)
    import tensorflow as tf

    from benchmark.data.opening import make_task, open_records
    from benchmark.data.pipeline import TrainingData

    for _ in tf.data.Dataset.range(2).map(lambda number: number + 1, tf.data.AUTOTUNE):
        pass
    before = peak_bytes()
    records = open_records(flags.tfrecords_dir)
    size = (flags.image_size, flags.image_size)
    task = make_task(records, False, None)
    for _ in TrainingData(records, "train", task, flags.batch_size, size, seed=0).batches(0):
        pass
    print(peak_bytes() - before)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
