"""`python -m flair.export`: FLAIR for other tools, as parquet files or as a description in Croissant."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from flair.terminal import command
from flair.terminal.flags import Parser, add_heldout_flags, add_shared_flags
from flair.terminal.paths import command_line, path_flag

DESCRIPTION = """\
Writes FLAIR for other people's tools.

  --format=parquet    parquet files in Hugging Face's layout, photos byte for byte, with a dataset card and a Croissant
                      description: datasets.load_dataset, Flower and download_dataset.py --source=huggingface read it.
                      It appears in --output_dir when all of it is there; a run that was stopped continues when the same
                      command is given again.
  --format=croissant  only the description, croissant.json, with the checksum of every file: beside what it describes,
                      which is --dataset_dir, --tfrecords_dir, --hdf5_file or one --testset."""
_DESCRIBED = ("dataset_dir", "tfrecords_dir", "hdf5_file", "testset")


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the flags, exports or describes, prints what was made; returns the exit code."""
    flags = _parse(argv)
    return (_export if flags.format == "parquet" else _describe)(flags)


def _export(flags: argparse.Namespace) -> int:
    from flair.download.huggingface import check_pyarrow

    check_pyarrow("--format=parquet")
    from flair.publishing.parquet import export_parquet

    start = time.monotonic()
    outcome = export_parquet(
        flags.dataset_dir,
        flags.output_dir,
        testsets=flags.testset,
        testsets_dir=flags.testsets_dir,
        limit_users=flags.limit_users,
        exclude=flags.exclude,
        heldout_fraction=flags.heldout_fraction,
        seed=flags.seed,
        num_workers=flags.num_workers,
        overwrite=flags.overwrite,
    )
    print(*outcome.summary(flags.output_dir, time.monotonic() - start), sep="\n")
    print(f"Next: datasets.load_dataset({flags.output_dir!r}) in Python; docs/formats.md has PyTorch, Flower and JAX")
    return command.EXIT_OK


def _describe(flags: argparse.Namespace) -> int:
    from flair.curation.manifest import manifest_path
    from flair.parallel.processes import default_num_workers
    from flair.publishing import description
    from flair.terminal.counted import counted
    from flair.terminal.progress import duration, size

    start = time.monotonic()
    num_workers = flags.num_workers or default_num_workers()
    if flags.dataset_dir:
        made = description.describe_dataset(flags.dataset_dir, num_workers)
    elif flags.tfrecords_dir:
        made = description.describe_tfrecords(flags.tfrecords_dir, num_workers)
    elif flags.hdf5_file:
        made = description.describe_hdf5(flags.hdf5_file)
    else:
        made = description.describe_testset(manifest_path(flags.testset[0], flags.testsets_dir))
    users = "" if made.users is None else f" of {counted(made.users, 'user')}"
    took = duration(time.monotonic() - start)
    print(
        f"Wrote {made.path}: {counted(made.photos, 'photo')}{users}, in {counted(made.files, 'file')} of "
        f"{size(made.size)} with their checksums, in {took}."
    )
    print(f"Next: mlcroissant.Dataset({str(made.path)!r}) in Python; docs/formats.md has more")
    if flags.dataset_dir or flags.tfrecords_dir:
        print("  or:", command_line("cd", made.path.parent), "&& sha256sum --check --quiet", description.CHECKSUMS_FILE)
    return command.EXIT_OK


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("python -m flair.export", DESCRIPTION)
    add = parser.add_argument
    add("--format", choices=("parquet", "croissant"), default="parquet", help="see above (default: parquet)")
    add("--dataset_dir", type=path_flag, help="folder with labels_and_metadata.json and small_images")
    add("--output_dir", type=path_flag, help="folder of the parquet files; new, empty, or an earlier export")
    add(
        "--testset",
        type=path_flag,
        action="append",
        default=[],
        metavar="SET",
        help="also this test set of flair.sample_testset, given by its name or file, as a configuration of its name; "
        "may be repeated (default: none)",
    )
    add(
        "--testsets_dir", type=path_flag, default="testsets", help="where --testset looks for names (default: testsets)"
    )
    add("--tfrecords_dir", type=path_flag, help="with --format=croissant: describe this folder of TFRecords")
    add("--hdf5_file", type=path_flag, help="with --format=croissant: describe this HDF5 file")
    add_heldout_flags(parser)
    add_shared_flags(parser)
    flags = parser.parse_args(argv)
    _check(parser, flags)
    return flags


def _check(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> None:
    given = [name for name in _DESCRIBED if getattr(flags, name)]
    if flags.format == "parquet":
        for name in ("tfrecords_dir", "hdf5_file"):
            if name in given:
                parser.error(f"--{name} goes with --format=croissant; parquet files are made of --dataset_dir")
        if not (flags.dataset_dir and flags.output_dir):
            parser.error("--format=parquet needs --dataset_dir and --output_dir")
        return
    if len(given) != 1 or len(flags.testset) > 1:
        parser.error("--format=croissant describes one thing: give one of --" + ", --".join(_DESCRIBED))
    for name in ("output_dir", "limit_users", "exclude", "heldout_fraction", "overwrite"):
        if getattr(flags, name):
            parser.error(f"--{name} goes with --format=parquet; a description lies beside what it describes, all of it")


if __name__ == "__main__":
    command.run(main, stopped=f"{command.CONTINUES}, where it wrote parquet files")
