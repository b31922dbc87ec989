"""`python -m flair.duplicate_calibration`: which planted copies the audit's thresholds find, and which strangers."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from flair.duplicates.rule import add_threshold_flags, num_neighbors, thresholds_of
from flair.terminal import command
from flair.terminal.flags import make_parser, positive_int, seed_number
from flair.terminal.paths import command_line, path_flag

DESCRIPTION = """\
Plants copies of a dataset's photos, of even skies and of photos of the night (re-encoded, resized, noised, slightly
cropped, mirrored), and prints for each kind the share that is reviewed and the share that is called a duplicate; then
how many pairs of different photos, of each of the three, are reviewed and called duplicates. Skies and nights are drawn
from the seed. The thresholds are those of python -m flair.near_duplicates.

--output_dir keeps the photos and their copies as a dataset directory, of which benchmark.features_main makes features;
with --features the same command then says which copies they find that pixels do not."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the flags, measures, prints the tables; returns the exit code."""
    flags = _parse(argv)

    from flair.duplicates.calibration import calibrate, table
    from flair.files import atomic
    from flair.terminal.progress import duration

    start = time.monotonic()
    if flags.output_file:
        atomic.destination(flags.output_file)  # refused before the work, not after it
    planted, features = (Path(path) if path else None for path in (flags.output_dir, flags.features))
    chosen = (Path(flags.dataset_dir), flags.num_photos, flags.seed, thresholds_of(flags))
    found = calibrate(*chosen, planted, features, flags.feature_neighbors)
    print(table(found))
    if flags.output_file:
        atomic.write_json(flags.output_file, found)
        print(f"Wrote {flags.output_file}.")
    print(f"Measured in {duration(time.monotonic() - start)}.")
    if planted is not None:
        print(f"Wrote the photos and their copies to {planted}.")
        made = {"model": "MODEL.h5", "dataset_dir": flags.output_dir, "output_file": "planted.npy"}
        print("Next:", command_line("python -m benchmark.features_main", **made))
    else:
        made = {"dataset_dir": flags.dataset_dir, "output_dir": "duplicates"}
        print("Next:", command_line("python -m flair.near_duplicates", **made))
    return command.EXIT_OK


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("python -m flair.duplicate_calibration", DESCRIPTION)
    add = parser.add_argument
    add("--num_photos", type=positive_int, default=200, metavar="N", help="photos of each set (default: 200)")
    add(
        "--seed", type=seed_number, default=0, metavar="N", help="of the choice, the drawing and the noise (default: 0)"
    )
    add(
        "--output_dir",
        type=path_flag,
        metavar="DIR",
        help="also write the dataset's photos and their copies there, as a dataset directory (default: none)",
    )
    add(
        "--features",
        type=path_flag,
        metavar="FILE.npy",
        help="features of all that --output_dir wrote, by benchmark.features_main (default: none)",
    )
    add(
        "--feature_neighbors",
        type=num_neighbors,
        default=3,
        metavar="N",
        help="with --features: photos looked at by them, as in near_duplicates (default: 3)",
    )
    add_threshold_flags(parser)
    add(
        "--output_file",
        was="output",
        type=path_flag,
        metavar="FILE.json",
        help="also write the measurements to this file (default: none)",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    command.run(main)
