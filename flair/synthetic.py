"""A miniature FLAIR of any size from a seed: `python -m flair.synthetic --dataset_dir=… --num_users=…`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from flair.errors import FlairError
from flair.miniature.dataset import make_dataset
from flair.miniature.taxonomy import DEFAULT_NUM_FINE_LABELS
from flair.terminal import command
from flair.terminal.flags import Number, Parser, Whole, positive_int, seed_number
from flair.terminal.paths import command_line, path_flag
from flair.terminal.progress import duration, size


def main(argv: Sequence[str]) -> int:
    """The command line of `python -m flair.synthetic`."""
    flags = vars(_parse(argv))
    archives_dir, num_archives = flags.pop("archives_dir"), flags.pop("num_archives")
    if archives_dir is not None or num_archives is not None:
        _check_archives(archives_dir, num_archives, flags)
    made = make_dataset(**flags)
    how = "is there already" if made.was_there else f"made in {duration(made.seconds)}"
    print(f"{made.dataset_dir}: {made.num_images:,} photos of {made.num_users:,} users, seed {flags['seed']}, {how}")
    if archives_dir is not None:
        from flair.miniature.archives import pack

        start = time.monotonic()
        num_bytes = sum(path.stat().st_size for path in pack(made.dataset_dir, archives_dir, num_archives))
        took = duration(time.monotonic() - start)
        print(f"{archives_dir}: {num_archives} archives and the labels, {size(num_bytes)}, packed in {took}")
        print("next:", command_line("python -m flair.mirror", archives_dir=archives_dir, port="8000"))
    elif not flags["metadata_only"]:
        folder = made.dataset_dir
        print("next:", command_line("python prepare_dataset.py", dataset_dir=folder, output_file="flair.hdf5"))
        print("  or:", command_line("python prepare_tfrecords.py", dataset_dir=folder, tfrecords_dir="tfrecords"))
    return command.EXIT_OK


def _check_archives(archives_dir: str | None, num_archives: int | None, flags: dict[str, object]) -> None:
    """Refuses before anything is drawn what could not be packed afterwards."""
    from flair.miniature.population import user_sizes

    if archives_dir is None or num_archives is None:
        raise FlairError("--archives_dir and --num_archives belong together; give both or neither")
    if flags["metadata_only"]:
        raise FlairError(f"--archives_dir={archives_dir}: with --metadata_only there is nothing to pack; leave one out")
    num_images = int(user_sizes(flags["num_users"], flags["num_images"]).sum())  # type: ignore[arg-type]
    if not 1 <= num_archives <= num_images:
        raise FlairError(f"--num_archives={num_archives}: expected 1 to {num_images:,}, one photo in each at least")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "python -m flair.synthetic",
        "Makes a miniature FLAIR: the same layout and statistics, photos drawn from a seed.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--dataset_dir", type=path_flag, metavar="DIR", required=True, help="new or empty folder for the dataset")
    add("--num_users", metavar="N", type=Whole(least=3), help="users; FLAIR: 51414 (default: to fit --num_images)")
    add("--num_images", metavar="N", type=Whole(least=3), help="photos; FLAIR: 429078 (default: to fit --num_users)")
    add("--seed", metavar="N", type=seed_number, default=0, help="the same seed gives the same files (default: 0)")
    add(
        "--num_fine_labels",
        metavar="N",
        type=Whole(least=17),
        default=DEFAULT_NUM_FINE_LABELS,
        help=f"fine-grained labels; FLAIR: 1628 (default: {DEFAULT_NUM_FINE_LABELS})",
    )
    add(
        "--taste_concentration",
        metavar="X",
        type=Number(above=0),
        default=3.0,
        help="Dirichlet concentration of users' tastes in labels; 1e6: all the same (default: 3)",
    )
    add(
        "--style_strength",
        metavar="X",
        type=Number(least=0),
        default=1.0,
        help="how far users' styles differ; 0: not at all, beyond 1 colours mislead (default: 1)",
    )
    add(
        "--dialect",
        metavar="P",
        type=Number(least=0, most=1),
        default=0.0,
        help="probability that a user swaps the motifs of two labels, in each of five pairs (default: 0)",
    )
    add("--metadata_only", action="store_true", help="draw no photos (default: draw them)")
    add(
        "--distinct_photos",
        metavar="N",
        type=positive_int,
        help="draw N photos, hard-link the others (default: draw all)",
    )
    add(
        "--archives_dir",
        type=path_flag,
        metavar="DIR",
        help="also pack it as Apple's server has it, into this folder (default: do not)",
    )
    add("--num_archives", metavar="N", type=positive_int, help="archives to pack, at most one a photo; FLAIR: 43")
    add("--num_workers", metavar="N", type=positive_int, help="processes that draw (default: one a core)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    command.run(main, stopped=command.CONTINUES)
