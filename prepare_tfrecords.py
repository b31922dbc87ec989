"""Turns a FLAIR dataset directory into TFRecords, one file per user or shards of many users; see docs/formats.md."""

from __future__ import annotations

import time
from collections.abc import Sequence

from flair.terminal import command
from flair.terminal import flags as preparation_flags
from flair.terminal.paths import command_line, path_flag

DESCRIPTION = """\
Turns the folder that download_dataset.py wrote into TFRecords for training.

The result has label_index.json and the folders train, dev and test, and the symlinks label_to_index.json and val for
code that expects those names. It appears in --tfrecords_dir when all of it is there; a run that was stopped continues
when the same command is given again."""


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
    parser.add_argument(
        "--heldout_fraction",
        type=preparation_flags.fraction,
        default="0",
        metavar="F",
        help="put this fraction of each train user's photos aside, in the partition heldout that training does not "
        "read: photos of seen users (default: 0, none; of users with fewer than 1/F photos none)",
    )
    parser.add_argument(
        "--seed",
        type=preparation_flags.seed_number,
        default=0,
        help="of which photos --heldout_fraction takes (default: 0)",
    )
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


if __name__ == "__main__":
    command.run(main, stopped=command.CONTINUES)
