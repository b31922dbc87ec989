"""Turns a FLAIR dataset directory into one HDF5 file; see docs/formats.md."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from flair.terminal import command
from flair.terminal import flags as preparation_flags
from flair.terminal.paths import command_line, path_flag

DESCRIPTION = """\
Turns the folder that download_dataset.py wrote into one HDF5 file.

Photos are grouped by partition and user (for federated learning), or by partition only. The file appears when all of it
is there; a run that was stopped starts over when the same command is given again."""

LABEL_DELIMITER = "|"  # of ml-flair's module of this name, as the three functions below


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the flags, writes the file, prints what was made; returns the exit code."""
    parser = preparation_flags.make_parser("prepare_dataset.py", DESCRIPTION)
    parser.add_argument("--output_file", type=path_flag, required=True, help="HDF5 file to write")
    parser.add_argument(
        "--not_group_data_by_user",
        dest="by_user",
        action="store_false",
        help="group photos by partition only, for centralized training (default: by partition and user)",
    )
    parser.add_argument(
        "--image_format",
        choices=("raw", "jpeg"),
        default="raw",
        help="raw: pixels, as published; 85 GB for the full dataset. jpeg: the photos' own bytes, 6 GB; "
        "flair.hdf5 reads either as arrays (default: raw)",
    )
    parser.add_argument(
        "--label_format",
        choices=("names", "indices"),
        default="names",
        help="names: strings joined by '|', as published. indices: rows and columns, as pfl-research reads them "
        "(default: names)",
    )
    preparation_flags.add_shared_flags(parser)
    flags = parser.parse_args(argv)
    if flags.label_format == "indices" and not flags.by_user:
        parser.error("--label_format=indices is a layout by user; leave out --not_group_data_by_user")

    from flair.records.hdf5.writer import write_hdf5

    start = time.monotonic()
    outcome = write_hdf5(**vars(flags))
    print(*outcome.summary(flags.output_file, time.monotonic() - start), sep="\n")
    made = {"dataset_dir": flags.dataset_dir, "hdf5_file": flags.output_file, "exclude": flags.exclude}
    print("Next:", command_line("python -m flair.verify", **made))
    return command.EXIT_OK


def load_user_metadata(labels_file: str) -> dict[str, list[dict[str, Any]]]:
    """User id -> their records as labels_and_metadata.json has them, in its order.

    Raises:
      FlairError: a record is not as published; one line names it.
    """
    from flair.records.preparation import user_metadata

    return user_metadata(labels_file)


def preprocess_federated_dataset(image_dir: str, labels_file: str, output_file: str) -> None:
    """Writes photos of a folder and their labels to one HDF5 file by user, in this process; replaces `output_file`.

    Raises:
      FlairError: bad metadata, a bad photo, a partition without photos, too little disk space.
    """
    _preprocess(image_dir, labels_file, output_file, by_user=True)


def preprocess_central_dataset(image_dir: str, labels_file: str, output_file: str) -> None:
    """As `preprocess_federated_dataset`, not grouped by user."""
    _preprocess(image_dir, labels_file, output_file, by_user=False)


def _preprocess(image_dir: str, labels_file: str, output_file: str, by_user: bool) -> None:
    from flair.records.hdf5.writer import write_hdf5
    from flair.records.preparation import PUBLISHED_NUM_WORKERS, link_dataset_dir

    with link_dataset_dir(image_dir, labels_file) as folder:
        write_hdf5(folder, output_file, by_user=by_user, num_workers=PUBLISHED_NUM_WORKERS, overwrite=True)


if __name__ == "__main__":
    command.run(main)
