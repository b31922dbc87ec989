"""Turns a FLAIR dataset directory into TFRecords, one file a user or shards of many users; see docs/formats.md."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from flair import command

DESCRIPTION = """\
Turns the folder that download_dataset.py wrote into TFRecords for training.

The result has label_index.json and the folders train, dev and test, and the symlinks label_to_index.json and val for
code that expects the older names. It appears in --tfrecords_dir only when all of it is there; a run that was stopped
continues when the same command is given again."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the flags, writes the records, prints what was made; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="prepare_tfrecords.py", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset_dir", required=True, help="folder with labels_and_metadata.json and small_images")
    parser.add_argument("--tfrecords_dir", required=True, help="folder to write to")
    parser.add_argument(
        "--layout",
        choices=("per_user", "sharded"),
        default="per_user",
        help="per_user: one <user_id>.tfrecords a user, as published. sharded: a few hundred files with an index, "
        "easier on file systems and faster to copy (default: per_user)",
    )
    parser.add_argument(
        "--images_per_shard",
        type=command_positive_int,
        default=2000,
        help="photos after which a shard is closed, with --layout=sharded; a user is never split (default: 2000)",
    )
    parser.add_argument(
        "--limit_users",
        type=command_positive_int,
        help="write this many users only, whole, from all partitions (default: all)",
    )
    parser.add_argument(
        "--num_workers",
        type=command_positive_int,
        help="processes; the result does not depend on it (default: the processor cores, at most 16)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace other output, finished or not (default: refuse)"
    )
    flags = parser.parse_args(argv)

    from flair.progress import duration, size
    from flair.tfrecord_writer import write_tfrecords

    start = time.monotonic()
    outcome = write_tfrecords(
        flags.dataset_dir,
        flags.tfrecords_dir,
        layout=flags.layout,
        images_per_shard=flags.images_per_shard,
        limit_users=flags.limit_users,
        num_workers=flags.num_workers,
        overwrite=flags.overwrite,
    )
    elapsed = time.monotonic() - start
    what = f"{outcome.num_images:,} photos of {outcome.num_users:,} users, {size(outcome.num_bytes)}"
    if outcome.already_complete:
        print(f"{flags.tfrecords_dir}: is complete already: {what}; --overwrite makes it again")
    else:
        if outcome.skipped_images:
            print(f"Kept {outcome.skipped_images:,} photos that an earlier run had finished.")
        for line in outcome.warnings():
            print(line)
        print(f"Wrote {what} to {flags.tfrecords_dir} in {duration(elapsed)}.")
    print(f"Next: python -m benchmark.central_main --tfrecords_dir={flags.tfrecords_dir}")
    print(f"  or: python -m flair.verify --dataset_dir={flags.dataset_dir} --tfrecords_dir={flags.tfrecords_dir}")
    return command.EXIT_OK


def command_positive_int(text: str) -> int:
    """A flag's value as a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text}")
    return value


if __name__ == "__main__":
    command.run(main)
