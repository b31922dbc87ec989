"""`python -m benchmark.features_main`: pooled features of every photo by a saved model, for `flair.near_duplicates`."""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmark.model.saved import NETWORK_HELP
from flair.dataset.catalog import PARTITIONS
from flair.dataset.metadata import Record, load_records
from flair.errors import FlairError
from flair.files import atomic, feature_file
from flair.files.regular_file import file_sha256
from flair.terminal import command
from flair.terminal.flags import make_parser, positive_int
from flair.terminal.paths import command_line, path_flag
from flair.terminal.progress import duration

if TYPE_CHECKING:
    import tensorflow as tf

DESCRIPTION = """\
Runs every photo of a dataset directory through a saved model up to its global pooling and writes the features, one row
a photo, with the ids beside them (FILE.npy and FILE.json). python -m flair.near_duplicates --features=FILE.npy lists
the squared distances of near pairs by them. A run that was stopped continues when the same command is given again."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the flags, computes the features, prints what was made; returns the exit code."""
    flags = _parse(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    start = time.monotonic()
    records = [record for record in load_records(flags.dataset_dir) if record.partition in flags.partitions]
    num_photos, num_features = write_model_features(
        Path(flags.model),
        Path(flags.dataset_dir),
        records,
        Path(flags.output_file),
        flags.eval_batch_size,
        flags.network,
    )
    seconds = time.monotonic() - start
    print(
        f"Wrote {num_features:,} features of each of {num_photos:,} photos to {flags.output_file} in "
        f"{duration(seconds)} ({num_photos / max(seconds, 1e-9):,.0f} photos/s)."
    )
    made = {"dataset_dir": flags.dataset_dir, "output_dir": "duplicates", "features": flags.output_file}
    print("Next:", command_line("python -m flair.near_duplicates", **made))
    return command.EXIT_OK


def write_model_features(
    model_file: Path,
    dataset_dir: Path,
    records: Sequence[Record],
    output: Path,
    batch_size: int,
    network: str | None = None,
) -> tuple[int, int]:
    """Writes the features of all photos; returns how many photos there are, and how many features per photo.

    Raises:
      FlairError: the model is not one of ours, or a photo cannot be read.
    """
    from benchmark.features.extraction import compiled, fill
    from benchmark.model import saved as saved_model
    from benchmark.model.trainable import body_and_head

    saved = saved_model.describe(model_file, network)
    body, _ = body_and_head(saved_model.load(saved))
    image_ids = [record.image_id for record in records]
    about = {"model": model_file.name, "model_sha256": file_sha256(model_file), "network": saved.network}
    facts = {**about, "image_ids": hashlib.sha256(repr(image_ids).encode()).hexdigest()}
    shape = len(records), int(body.output_shape[-1])
    destination = atomic.destination(output)
    growing = feature_file.growing(destination, shape, np.dtype(np.float32), facts)
    batches = _pixels(dataset_dir, records[growing.num_done :], saved.image_size, batch_size)
    fill(growing, compiled(body), batches, np.dtype(np.float32), "features")
    feature_file.finish(growing, destination, image_ids, about)
    return shape


def _pixels(
    dataset_dir: Path, records: Sequence[Record], image_size: tuple[int, int], batch_size: int
) -> Iterator[tf.Tensor]:
    """Whole photos float32 [b, height, width, 3], as in evaluation."""
    import tensorflow as tf

    from benchmark.data.augmentation import decode_evaluation
    from flair.dataset.images import read_jpeg

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def decode(photos: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(lambda photo: decode_evaluation(photo, image_size), photos, fn_output_signature=tf.float32)

    for first in range(0, len(records), batch_size):
        chosen = records[first : first + batch_size]
        yield decode(tf.constant([read_jpeg(dataset_dir, record).data for record in chosen]))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("python -m benchmark.features_main", DESCRIPTION)
    parser.add_argument(
        "--model", type=path_flag, required=True, metavar="FILE.h5", help="a saved model of this toolkit"
    )
    parser.add_argument("--network", metavar="MODULE:FUNCTION", help=NETWORK_HELP)
    parser.add_argument(
        "--output_file", was="output", type=path_flag, required=True, metavar="FILE.npy", help="file to write"
    )
    parser.add_argument(
        "--partitions",
        nargs="+",
        choices=PARTITIONS,
        default=PARTITIONS,
        help="photos of these partitions only (default: all)",
    )
    parser.add_argument(
        "--eval_batch_size",
        was="batch_size",
        type=positive_int,
        default=64,
        metavar="N",
        help="photos a batch; changes speed, never a number (default: 64)",
    )
    flags = parser.parse_args(argv)
    if not flags.output_file.endswith(".npy"):
        parser.error(f"--output_file={flags.output_file}: expected a name that ends in .npy")
    if not Path(flags.model).is_file():
        raise FlairError(f"--model={flags.model}: no such file; expected a .h5 or .keras file that training saved")
    return flags


if __name__ == "__main__":
    command.run(main, stopped=command.CONTINUES)
