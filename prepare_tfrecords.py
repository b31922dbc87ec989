"""Turns a FLAIR dataset directory into TFRecords, one file per user or shards of many users; see docs/formats.md."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flair.terminal import command
from flair.terminal import flags as preparation_flags
from flair.terminal.paths import command_line, path_flag

if TYPE_CHECKING:
    import tensorflow as tf

DESCRIPTION = """\
Turns the folder that download_dataset.py wrote into TFRecords for training.

The result has label_index.json and the folders train, dev and test, and the symlinks label_to_index.json and val for
code that expects those names. It appears in --tfrecords_dir when all of it is there; a run that was stopped continues
when the same command is given again."""

# Of ml-flair's module of this name, as the three functions below; `flair.records.tfrecord.example` has them, too.
KEY_IMAGE_BYTES, KEY_LABELS, KEY_FINE_GRAINED_LABELS = "image/encoded_jpeg", "labels", "fine_grained_labels"
KEY_IMAGE_DECODED = "image/decoded"  # of no file


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the flags, writes the records, prints what was made; returns the exit code."""
    parser = preparation_flags.make_parser("prepare_tfrecords.py", DESCRIPTION)
    parser.add_argument("--tfrecords_dir", type=path_flag, required=True, help="folder to write to")
    parser.add_argument(
        "--layout",
        choices=("per_user", "sharded"),
        default="per_user",
        help="per_user: one <user_id>.tfrecords a user, as published. sharded: a few hundred files with an index, "
        "easier on file systems and quicker to copy (default: per_user)",
    )
    parser.add_argument(
        "--images_per_shard",
        type=preparation_flags.positive_int,
        default=2000,
        metavar="N",
        help="with --layout=sharded, close a shard after N photos; a user is never split (default: 2000)",
    )
    parser.add_argument(
        "--feature_names",
        choices=("flair", "tff"),
        default="flair",
        help="flair: as ml-flair names the features. tff: as tff.simulation.datasets.flair.load_data reads them, which "
        "this toolkit reads, too (default: flair)",
    )
    preparation_flags.add_heldout_flags(parser)
    preparation_flags.add_shared_flags(parser)
    flags = parser.parse_args(argv)

    from flair.records.tfrecord.writer import write_tfrecords

    start = time.monotonic()
    outcome = write_tfrecords(**vars(flags))
    print(*outcome.summary(flags.tfrecords_dir, time.monotonic() - start), sep="\n")
    print("Next:", command_line("python -m benchmark.central_main", tfrecords_dir=flags.tfrecords_dir))
    made = {"dataset_dir": flags.dataset_dir, "tfrecords_dir": flags.tfrecords_dir, "exclude": flags.exclude}
    print("  or:", command_line("python -m flair.verify", **made))
    return command.EXIT_OK


def load_user_metadata_and_label_counters(
    labels_file: str,
) -> tuple[dict[str, list[dict[str, Any]]], Counter[str], Counter[str]]:
    """User id -> their records in the order of the file, and how many photos carry each coarse and each fine label.

    Raises:
      FlairError: a record is not as published; one line names it.
    """
    from flair.records.preparation import user_metadata

    users = user_metadata(labels_file)
    records = [record for of_user in users.values() for record in of_user]
    coarse, fine = (
        Counter(label for record in records for label in record[kind]) for kind in (KEY_LABELS, KEY_FINE_GRAINED_LABELS)
    )
    return users, coarse, fine


def create_example(image_bytes: bytes, labels: list[int], fine_grained_labels: list[int]) -> tf.train.Example:
    """A JPEG and the columns of its labels as a `tf.train.Example`, without the ids that this command adds."""
    import tensorflow as tf

    from flair.records.tfrecord.example import Example, encode

    return tf.train.Example.FromString(encode(Example(image_bytes, tuple(labels), tuple(fine_grained_labels))))


def preprocess_federated_dataset(image_dir: str, labels_file: str, tfrecords_dir: str) -> None:
    """Writes photos of a folder and their labels as TFRecords, a file a user, in this process; replaces what is there.

    Raises:
      FlairError: bad metadata, a bad photo, a partition without photos, another kind of folder, too little disk space.
    """
    from flair.records.preparation import PUBLISHED_NUM_WORKERS, link_dataset_dir
    from flair.records.tfrecord.writer import write_tfrecords

    with link_dataset_dir(image_dir, labels_file) as folder:
        write_tfrecords(folder, tfrecords_dir, num_workers=PUBLISHED_NUM_WORKERS, overwrite=True)


if __name__ == "__main__":
    command.run(main, stopped=command.CONTINUES)
