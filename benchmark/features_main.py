"""`python -m benchmark.features_main`: pooled features of every photo by a saved model, for `flair.near_duplicates`."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmark.model.saved import NETWORK_HELP
from flair.dataset.catalog import PARTITIONS
from flair.dataset.metadata import Record, load_records
from flair.errors import FlairError
from flair.files import atomic
from flair.files.regular_file import file_sha256
from flair.terminal import command
from flair.terminal.flags import make_parser, positive_int
from flair.terminal.paths import command_line, path_flag
from flair.terminal.progress import Progress, duration

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
        Path(flags.model), Path(flags.dataset_dir), records, Path(flags.output), flags.batch_size, flags.network
    )
    seconds = time.monotonic() - start
    print(
        f"Wrote {num_features:,} features of each of {num_photos:,} photos to {flags.output} in {duration(seconds)} "
        f"({num_photos / max(seconds, 1e-9):,.0f} photos/s)."
    )
    made = {"dataset_dir": flags.dataset_dir, "output_dir": "duplicates", "features": flags.output}
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
    from benchmark.model import saved as saved_model
    from flair.dataset.images import read_jpeg
    from flair.duplicates.features import write_features
    from flair.files.parts import PartStore

    saved = saved_model.describe(model_file, network)
    digest = file_sha256(model_file)
    compute, num_features, layer = _pooling(saved_model.load(saved), saved.image_size)
    image_ids = [record.image_id for record in records]
    key = hashlib.sha256(json.dumps([digest, batch_size, image_ids]).encode()).hexdigest()[:24]
    unfinished = atomic.beside(atomic.destination(output), "unfinished")
    store = PartStore(unfinished / key, np.dtype(np.float32))
    done = store.done * batch_size
    try:
        with Progress(len(records), "features", "photo", done=min(done, len(records))) as progress:
            for first in range(done, len(records), batch_size):
                batch = records[first : first + batch_size]
                store.add(compute([read_jpeg(dataset_dir, record).data for record in batch]).reshape(-1))
                progress.add(len(batch))
    finally:
        store.save()
    values = store.rows().reshape(-1, num_features)
    about = {"model": model_file.name, "model_sha256": digest, "layer": layer, "network": saved.network}
    write_features(output, values, image_ids, about)
    store.discard()
    unfinished.rmdir()
    return len(values), num_features


def _pooling(model: object, image_size: tuple[int, int]) -> tuple[Callable[[list[bytes]], np.ndarray], int, str]:
    """JPEGs -> features float32 [b, d], d, and the layer that gives them."""
    import tensorflow as tf

    from benchmark.data.augmentation import decode_whole
    from benchmark.model.networks import features_of

    assert isinstance(model, tf.keras.Model)
    pooled = features_of(model)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def compiled(photos: tf.Tensor) -> tf.Tensor:
        pixels = tf.map_fn(lambda photo: decode_whole(photo, image_size), photos, fn_output_signature=tf.uint8)
        return tf.cast(pooled(pixels, training=False), tf.float32)

    num_features, layer = int(pooled.output_shape[-1]), str(pooled.layers[-1].name)
    return lambda photos: compiled(tf.constant(photos)).numpy(), num_features, layer


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("python -m benchmark.features_main", DESCRIPTION)
    parser.add_argument(
        "--model", type=path_flag, required=True, metavar="FILE.h5", help="a saved model of this toolkit"
    )
    parser.add_argument("--network", metavar="MODULE:FUNCTION", help=NETWORK_HELP)
    parser.add_argument("--output", type=path_flag, required=True, metavar="FILE.npy", help="file to write")
    parser.add_argument(
        "--partitions",
        nargs="+",
        choices=PARTITIONS,
        default=PARTITIONS,
        help="photos of these partitions only (default: all)",
    )
    parser.add_argument("--batch_size", type=positive_int, default=64, metavar="N", help="photos at once (default: 64)")
    flags = parser.parse_args(argv)
    if not flags.output.endswith(".npy"):
        parser.error(f"--output={flags.output}: expected a name that ends in .npy")
    if not Path(flags.model).is_file():
        raise FlairError(f"--model={flags.model}: no such file; expected a .h5 file that training saved")
    return flags


if __name__ == "__main__":
    command.run(main, stopped=command.CONTINUES)
