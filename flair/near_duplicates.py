"""`python -m flair.near_duplicates`: photos that occur twice, or nearly so."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from flair.dataset.catalog import PARTITIONS
from flair.duplicates.rule import (
    METRICS,
    SCOPES,
    Settings,
    Thresholds,
    add_threshold_flags,
    correlation,
    num_neighbors,
    thresholds_of,
)
from flair.terminal import command
from flair.terminal.flags import finite_number, make_parser, positive_int
from flair.terminal.paths import command_line, path_flag

DESCRIPTION = """\
Finds photos that occur twice, or nearly so: equal files, equal pixels, and copies that were re-encoded, resized,
noised, slightly cropped or mirrored. Every pair is accounted for: block means exclude those that cannot be near, all
others are compared in full. Writes neighbors.json, near_duplicates.json, duplicate_pairs.json, summary.json and
summary.txt. What was computed is kept in --cache_dir by content; a run that was stopped continues when the same command
is given again. See docs/audit.md."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the flags, runs the audit, prints the summary; returns the exit code."""
    flags = _parse(argv)

    from flair.curation.exclusion import NEAR_DUPLICATES_FILE
    from flair.duplicates.audit import OUTPUT_FILES, audit
    from flair.terminal.progress import duration

    start = time.monotonic()
    print(audit(_settings(flags)))
    print(f"Wrote {', '.join(OUTPUT_FILES)} to {flags.output_dir} in {duration(time.monotonic() - start)}.")
    folder, exclude = flags.dataset_dir, Path(flags.output_dir) / NEAR_DUPLICATES_FILE
    print("Next:", command_line("python -m flair.review", dataset_dir=folder, duplicates=flags.output_dir))
    prepare = {"dataset_dir": folder, "tfrecords_dir": "tfrecords", "exclude": exclude}
    print("  or:", command_line("python prepare_tfrecords.py", **prepare))
    return command.EXIT_OK


def _settings(flags: argparse.Namespace) -> Settings:
    from flair.parallel.processes import default_num_workers

    return Settings(
        dataset_dir=Path(flags.dataset_dir),
        output_dir=Path(flags.output_dir),
        cache_dir=Path(flags.cache_dir) if flags.cache_dir else Path(flags.output_dir) / "cache",
        pairs=flags.pairs,
        partitions=flags.partitions,
        metrics=flags.metrics,
        top_k=flags.top_k,
        thresholds=thresholds_of(flags),
        features=Path(flags.features) if flags.features else None,
        feature_neighbors=flags.feature_neighbors or 0,
        mirrored=not flags.no_mirrored,
        brute_force=flags.brute_force,
        chunk_size=flags.chunk_size,
        num_workers=flags.num_workers or default_num_workers(),
    )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("python -m flair.near_duplicates", DESCRIPTION)
    add = parser.add_argument
    add("--output_dir", type=path_flag, required=True, help="folder to write to")
    add("--pairs", choices=SCOPES, default="all", help="which pairs of photos are compared (default: all)")
    add(
        "--partitions",
        type=_names(PARTITIONS),
        default=PARTITIONS,
        metavar="NAMES",
        help="look at the photos of these partitions only, separated by commas (default: train,val,test)",
    )
    add(
        "--metrics",
        type=_names(METRICS),
        metavar="NAMES",
        help="of sha256,l2,dssim,features, separated by commas; a pair is a near duplicate if it is one in each of "
        "them (default: sha256,l2,dssim, and features with --features)",
    )
    add(
        "--top_k",
        type=positive_int,
        default=30,
        metavar="N",
        help="list the N nearest of a photo in neighbors.json; duplicates are found beyond it (default: 30)",
    )
    add(
        "--features",
        type=path_flag,
        metavar="FILE.npy",
        help="features of a saved model, made by benchmark.features_main",
    )
    add(
        "--feature_neighbors",
        type=num_neighbors,
        metavar="N",
        help="also lay each photo over its N nearest by --features, whatever their pixels, to find crops down to half "
        "the width, and edits; they are listed for review (default: none)",
    )
    add_threshold_flags(parser)
    add(
        "--review_alignment",
        type=correlation,
        metavar="X",
        help="least correlation of aligned detail to review, of the nearest by features (default: "
        f"{Thresholds().review_alignment})",
    )
    add(
        "--review_dssim",
        type=finite_number,
        metavar="X",
        help=f"count reviewed pairs up to this dssim (default: {Thresholds().review_dssim})",
    )
    add("--duplicate_features", type=finite_number, metavar="X", help="a duplicate's greatest distance of features")
    add("--no_mirrored", action="store_true", help="do not look for mirrored copies (default: do)")
    add("--cache_dir", type=path_flag, help="folder for what is computed, by content (default: cache in --output_dir)")
    add(
        "--chunk_size",
        type=positive_int,
        default=4096,
        metavar="N",
        help="photos a side of a block of pairs; the result does not depend on it (default: 4096)",
    )
    add("--brute_force", action="store_true", help="compare every pair in full, to check the search on small sets")
    add(
        "--num_workers",
        type=positive_int,
        metavar="N",
        help="work with N processes; the result does not depend on it (default: the processor cores, at most 16)",
    )
    flags = parser.parse_args(argv)
    if flags.metrics is None:
        flags.metrics = METRICS if flags.features else METRICS[:3]
    if "features" in flags.metrics and not flags.features:
        parser.error(
            "--metrics=features needs --features=FILE.npy; make it with python -m benchmark.features_main "
            f"--model=MODEL.h5 --dataset_dir={flags.dataset_dir} --output_file=features.npy"
        )
    if flags.features and "features" not in flags.metrics:
        parser.error("--features is given, but features is not among --metrics; add it or leave the file out")
    for name in ("duplicate_features", "feature_neighbors"):
        if getattr(flags, name) is not None and not flags.features:
            parser.error(f"--{name} needs --features=FILE.npy")
    if flags.review_alignment is not None and not flags.feature_neighbors:
        parser.error("--review_alignment needs --feature_neighbors=N")
    usual = Thresholds()
    review_l2 = flags.review_l2 or usual.review_l2
    if (flags.duplicate_l2 or 0) > review_l2:
        parser.error(f"--duplicate_l2 is greater than --review_l2={review_l2}; pairs are searched for up to that only")
    if flags.duplicate_l2 is None and review_l2 < usual.duplicate_l2:
        flags.duplicate_l2 = review_l2
    return flags


def _names(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        if not set(names) <= set(known) or len(set(names)) < len(names):
            raise argparse.ArgumentTypeError(f"expected some of {','.join(known)}, separated by commas, found {text!r}")
        return tuple(name for name in known if name in names)

    return parse


if __name__ == "__main__":
    command.run(main, stopped=command.CONTINUES)
