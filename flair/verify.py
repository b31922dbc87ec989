"""`python -m flair.verify`: is a dataset directory whole, and do record files hold exactly what is in it?"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from flair.checks.findings import Check
from flair.errors import FlairError
from flair.terminal import command
from flair.terminal.flags import add_exclude_flag, make_parser, positive_int
from flair.terminal.paths import command_line, path_flag

DESCRIPTION = """\
Checks the folder that download_dataset.py wrote, and record files made from it, and prints a line a check: OK, or FAIL
with a count and the first examples. It looks at everything and stops at nothing; it exits 1 if any check failed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the flags, runs the checks, prints them; returns 0 if all are OK, else 1."""
    flags = _parse(argv)

    from flair.files import atomic
    from flair.parallel.processes import default_num_workers
    from flair.terminal.progress import duration

    start = time.monotonic()
    if flags.output_file:
        atomic.destination(flags.output_file)  # refused before the work, not after it
    checks = []
    for check in run_checks(
        Path(flags.dataset_dir),
        tfrecords_dir=Path(flags.tfrecords_dir) if flags.tfrecords_dir else None,
        hdf5_file=Path(flags.hdf5_file) if flags.hdf5_file else None,
        expected=flags.expected,
        exclude=Path(flags.exclude) if flags.exclude else None,
        num_workers=flags.num_workers or default_num_workers(),
    ):
        print(check.line(), flush=True)
        checks.append(check)
    failed = sum(not check.ok for check in checks)
    if flags.output_file:
        asked = ("dataset_dir", "tfrecords_dir", "hdf5_file", "exclude", "expected")
        report = {name: getattr(flags, name) for name in asked}
        report |= {"failed_checks": failed, "checks": [check.to_json() for check in checks]}
        atomic.write_json(flags.output_file, report)
        print(f"Report: {flags.output_file}")
    print(f"{failed} failed checks of {len(checks)}, in {duration(time.monotonic() - start)}")
    print(_next_command(flags, failed))
    return command.EXIT_FAILED if failed else command.EXIT_OK


def _next_command(flags: argparse.Namespace, failed: int) -> str:
    if not failed and flags.tfrecords_dir:
        return "Next: " + command_line("python -m benchmark.central_main", tfrecords_dir=flags.tfrecords_dir)
    if not failed:
        made = {"dataset_dir": flags.dataset_dir, "tfrecords_dir": "tfrecords"}
        return "Next: " + command_line("python prepare_tfrecords.py", **made)
    download = command_line("python download_dataset.py", dataset_dir=flags.dataset_dir)
    return f"Next: {download} if its photos or metadata failed; prepare record files that failed again with --overwrite"


def run_checks(
    dataset_dir: Path,
    *,
    tfrecords_dir: Path | None = None,
    hdf5_file: Path | None = None,
    expected: str | None = None,
    exclude: Path | None = None,
    num_workers: int = 1,
) -> Iterator[Check]:
    """Yields the checks of a dataset directory, and of record files made from it, each when it is done.

    A file that is missing or cannot be read, or a folder or a circle of links in its place, is a failed check, and the
    others go on.

    Raises:
      FlairError: the file `exclude` cannot be used.
    """
    from flair.checks.dataset import check_labels, check_photos, check_published_numbers, check_records
    from flair.curation.exclusion import read_exclusion
    from flair.dataset.metadata import group_by_user

    exclusion = None if exclude is None else read_exclusion(exclude)
    record_checks, metadata = check_records(dataset_dir)
    yield from record_checks
    if metadata is None:
        yield check_labels(dataset_dir, [])[0]  # whether the taxonomy can be read
        yield _not_compared(["photos"] + ["TFRecords"] * bool(tfrecords_dir) + ["HDF5 file"] * bool(hdf5_file))
        return
    yield from check_labels(dataset_dir, metadata.records)
    if expected == "flair":
        yield from check_published_numbers(dataset_dir, metadata.records)
    yield from _to_the_end("photos", lambda: check_photos(dataset_dir, metadata, num_workers))
    users = group_by_user(metadata.records)
    if tfrecords_dir is not None:
        from flair.checks.tfrecords import check_tfrecords

        yield from _to_the_end(
            "TFRecords", lambda: check_tfrecords(dataset_dir, tfrecords_dir, users, num_workers, exclusion)
        )
    if hdf5_file is not None:
        from flair.checks.hdf5 import check_hdf5

        yield from _to_the_end("HDF5", lambda: check_hdf5(dataset_dir, hdf5_file, users, num_workers, exclusion))


def _not_compared(parts: Sequence[str]) -> Check:
    check = Check("what needs the metadata is checked", "parts", len(parts))
    for part in parts:
        check.fail(f"{part} not checked")
    return check


def _to_the_end(part: str, checks: Callable[[], list[Check]]) -> list[Check]:
    """The checks of one part; one that failed where they broke off, so that the other parts have their turn."""
    try:
        return checks()
    except (FlairError, OSError) as error:
        check = Check(f"{part}: checked to the end", "parts", 1)
        check.fail(command.explain_os_error(error) if isinstance(error, OSError) else str(error))
        return [check]


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("python -m flair.verify", DESCRIPTION)
    parser.add_argument("--tfrecords_dir", type=path_flag, help="also check this folder of TFRecords (default: none)")
    parser.add_argument("--hdf5_file", type=path_flag, help="also check this HDF5 file (default: none)")
    parser.add_argument(
        "--expected",
        choices=("flair",),
        help="also compare with the published numbers of the full dataset (default: do not)",
    )
    add_exclude_flag(parser, "record files are expected to lack")
    parser.add_argument(
        "--output_file",
        was="report",
        type=path_flag,
        metavar="FILE.json",
        help="also write the checks to this file (default: none)",
    )
    parser.add_argument(
        "--num_workers",
        type=positive_int,
        metavar="N",
        help="work with N processes (default: the processor cores, at most 16)",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    command.run(main)
