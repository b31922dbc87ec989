"""`python -m flair.sample_testset`: a test set re-sampled under a stated rule, and its manifest."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from flair.terminal import command
from flair.terminal.flags import Parser, Whole, finite_number, positive_int, seed_number
from flair.terminal.paths import command_line, path_flag

DESCRIPTION = """\
Draws a test set from a partition under a stated rule, and writes its manifest, testsets/<name>-<revision>.json: the
photos, the rule, its parameters and seed, and a reason for every photo that was refused. A manifest is never
overwritten: what changes becomes the next revision (--starting_from).

  threshold   photos of labels with enough positives only, drawn uniformly; each of these labels has enough in the set
  matched     label (or user-size, or score) histogram equal to a reference partition's, in five bins
  top         the photos with the highest scores
  seen_users  photos of train users that prepare_tfrecords.py --heldout_fraction put aside

Photos count for their rarest label. Where a rule cannot be fulfilled the manifest says is_valid: false and why, and
the command exits 1. See docs/testsets.md."""
RULES = ("threshold", "matched", "top", "seen_users")


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the flags, draws the set, writes and describes it; returns 0, or 1 where the rule cannot be fulfilled."""
    flags = _parse(argv)

    from flair.curation.manifest import write_testset
    from flair.terminal.progress import duration
    from flair.testsets.drawing import Plan, resample

    start = time.monotonic()
    result = resample(Plan(**{name: value for name, value in vars(flags).items() if name in Plan._fields}))
    path = write_testset(result.testset, flags.testsets_dir)
    print(*result.lines, sep="\n")
    testset = result.testset
    what = f"{len(testset.image_ids):,} photos of {result.num_users:,} users"
    if not testset.is_valid:
        print(f"INVALID: {testset.problem}")
        print(f"Wrote {path}, marked is_valid: false, with {what}, in {duration(time.monotonic() - start)}.")
        print(command_line("Next: the same command with", starting_from=testset.name), "and other parameters")
        return command.EXIT_FAILED
    print(f"Wrote {path}: {what}, in {duration(time.monotonic() - start)}.")
    records = flags.tfrecords_dir or "TFRECORDS"
    partitions = f"test,{path if Path(flags.testsets_dir) != Path('testsets') else testset.name}"
    evaluate = {"tfrecords_dir": records, "models": "MODEL.h5", "partitions": partitions}
    print("Next:", command_line("python -m benchmark.evaluate_main", **evaluate))
    print("  or:", command_line("python -m flair.review", dataset_dir=flags.dataset_dir, testset=path))
    return command.EXIT_OK


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("python -m flair.sample_testset", DESCRIPTION)
    add = parser.add_argument
    add("rule", choices=RULES, help="how photos are drawn")
    add("--dataset_dir", type=path_flag, required=True, help="folder with labels_and_metadata.json")
    add("--name", required=True, help="name of the set, as flair-b; its revision is added")
    add(
        "--testsets_dir",
        was="output_dir",
        type=path_flag,
        default="testsets",
        help="folder of the manifests (default: testsets)",
    )
    add(
        "--starting_from",
        type=path_flag,
        metavar="SET",
        help="name or file of the revision whose photos are kept where still eligible",
    )
    add(
        "--revision",
        type=Whole(least=0, most=999_999_999),
        metavar="N",
        help="number of this revision (default: 0, or the next one)",
    )
    add("--seed", type=seed_number, default=0, help="of everything random (default: 0)")
    add(
        "--partition",
        choices=("train", "val", "test", "heldout"),
        help="where the photos come from (default: test; for seen_users: heldout)",
    )
    add(
        "--num_images",
        type=positive_int,
        metavar="N",
        help="photos in the set (default: half as many as --partition has, or --reference for matched; "
        "for seen_users: all that are eligible)",
    )
    add("--use_fine_grained_labels", action="store_true", help="labels are the fine-grained ones (default: the coarse)")
    eligible = parser.add_argument_group("which photos are eligible")
    add = eligible.add_argument
    add("--reviews", type=path_flag, metavar="FILE", help="reviews.json of flair.review (default: none)")
    add(
        "--exclude",
        type=path_flag,
        metavar="FILE.json",
        help="near_duplicates.json of flair.near_duplicates, or a JSON list of image ids, which count as blacklisted "
        "(default: none)",
    )
    add(
        "--min_annotations",
        type=positive_int,
        default=1,
        metavar="N",
        help="labels a photo must carry; with --scores, labels that have a score (default: 1)",
    )
    add(
        "--require_reviewed",
        action="store_true",
        help="only photos marked ok in --reviews (default: unmarked ones too)",
    )
    rules = parser.add_argument_group("rules")
    add = rules.add_argument
    add(
        "--min_positives",
        type=positive_int,
        metavar="N",
        help="threshold: positives that a label needs in the set (default: 5)",
    )
    add("--reference", choices=("train", "val", "test", "heldout"), help="matched: whose histogram (default: test)")
    add(
        "--match",
        choices=("labels", "user_size", "score"),
        help="matched: the histogram, of each label's share of a photo's labels, of user sizes or of --scores "
        "(default: labels)",
    )
    add("--borrow", action="store_true", help="matched: an empty bin may borrow from the next higher (default: no)")
    add(
        "--images_per_label",
        type=positive_int,
        metavar="N",
        help="matched, top: N photos of each label instead of --num_images",
    )
    add(
        "--scores",
        type=path_flag,
        metavar="FILE",
        help="a score of each photo for each label, JSON or CSV (default: none)",
    )
    add(
        "--min_score",
        type=finite_number,
        metavar="X",
        help="score that a photo needs for its rarest label (default: none)",
    )
    add("--tfrecords_dir", type=path_flag, help="prepared records: for seen_users and heldout (default: none)")
    flags = parser.parse_args(argv)
    _check(parser, flags)
    return flags


def _check(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> None:
    of_rule = {
        "min_positives": ("threshold",),
        "reference": ("matched",),
        "match": ("matched",),
        "borrow": ("matched",),
        "images_per_label": ("matched", "top"),
    }
    for name, rules in of_rule.items():
        if getattr(flags, name) and flags.rule not in rules:
            parser.error(f"--{name} goes with {' and '.join(rules)}, not with {flags.rule}")
    flags.partition = flags.partition or ("heldout" if flags.rule == "seen_users" else "test")
    if flags.rule == "seen_users" and flags.partition != "heldout":
        parser.error(f"--partition={flags.partition}: seen_users draws from heldout")
    if "heldout" in (flags.partition, flags.reference) and not flags.tfrecords_dir:
        parser.error(
            "--tfrecords_dir is needed: records in which prepare_tfrecords.py --heldout_fraction=0.1 put photos aside"
        )
    if flags.rule == "top" and not flags.scores:
        parser.error("top needs --scores=FILE")
    if flags.match == "score" and not flags.scores:
        parser.error("--match=score needs --scores=FILE")
    if flags.min_score is not None and not flags.scores:
        parser.error("--min_score needs --scores=FILE")
    if flags.require_reviewed and not flags.reviews:
        parser.error("--require_reviewed needs --reviews=FILE")
    if flags.images_per_label and flags.num_images:
        parser.error("--images_per_label and --num_images exclude each other")
    if flags.images_per_label and flags.match == "user_size":
        parser.error("--images_per_label does not go with --match=user_size, which has no labels")
    flags.min_positives = flags.min_positives or 5
    flags.reference = flags.reference or "test"
    flags.match = flags.match or "labels"


if __name__ == "__main__":
    command.run(main)
