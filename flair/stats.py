"""Who photographed what: the statistics of a dataset beside the published ones.

`python -m flair.stats --dataset_dir=…` prints a table, and writes figures (PNG) and all numbers (JSON).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flair.dataset.catalog import TAXONOMY_FILE
from flair.errors import FlairError
from flair.files import atomic
from flair.terminal import command
from flair.terminal.flags import Parser, seed_number
from flair.terminal.paths import path_flag, word
from flair.terminal.progress import duration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from flair.statistics.labels import Annotations
    from flair.statistics.table import Statistics

NUMBERS_FILE = "statistics.json"


def main(argv: Sequence[str]) -> int:
    """The command line of `python -m flair.stats`."""
    flags = _parse(argv)
    start = time.monotonic()
    output_dir = Path(flags.output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise FlairError(f"--output_dir={output_dir}: is a file; expected a folder")
    from flair.dataset.metadata import load_records, load_taxonomy
    from flair.statistics.table import compute, table, to_json

    records = load_records(flags.dataset_dir)
    has_taxonomy = (Path(flags.dataset_dir) / TAXONOMY_FILE).is_file()
    taxonomy = load_taxonomy(flags.dataset_dir) if has_taxonomy else None
    annotations, statistics = compute(records, taxonomy, flags.seed)
    print(table(statistics), flush=True)
    print()
    if taxonomy is None:
        print(f"{flags.dataset_dir} has no {TAXONOMY_FILE}: no figure of the label hierarchy")
    atomic.write_json(output_dir / NUMBERS_FILE, to_json(statistics))
    names = list(_write_figures(annotations, statistics, taxonomy, output_dir))
    took = duration(time.monotonic() - start)
    print(f"{output_dir}: {', '.join(names)} and {NUMBERS_FILE}, of {len(records):,} photos, in {took}")
    folder = word(Path(flags.dataset_dir).absolute())
    print("next: look at the figures, or at the photos: make environment EXTRAS=notebooks; then, with it activated,")
    print(f"      FLAIR_DATASET_DIR={folder} jupyter notebook explore_images.ipynb")
    return command.EXIT_OK


def _write_figures(
    annotations: Annotations, statistics: Statistics, taxonomy: Mapping[str, frozenset[str]] | None, output_dir: Path
) -> Iterator[str]:
    """Draws one figure after the other and yields the names of their files."""
    from flair.statistics import figures

    draw: dict[str, Callable[[Annotations], Figure]] = {
        "coarse_labels": figures.draw_coarse_labels,
        "fine_labels": figures.draw_fine_labels,
        "labels_per_photo": figures.draw_labels_per_photo,
        "co_occurrence": figures.draw_co_occurrence,
        "photos_per_user": figures.draw_photos_per_user,
        "labels_per_user": figures.draw_labels_per_user,
        "user_labels": figures.draw_user_labels,
        "user_divergence": lambda _: figures.draw_divergence(statistics.divergence),
    }
    if taxonomy is not None:
        draw["label_hierarchy"] = lambda found: figures.draw_hierarchy(found, taxonomy)
    for name, figure in draw.items():
        figures.save(figure(annotations), output_dir / f"{name}.png")
        yield f"{name}.png"


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "python -m flair.stats",
        "Statistics of photos, users and labels beside the published ones: a table, figures and JSON.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--dataset_dir",
        type=path_flag,
        metavar="DIR",
        required=True,
        help="folder that download_dataset.py wrote; photos not needed",
    )
    add(
        "--output_dir",
        type=path_flag,
        metavar="DIR",
        default="flair_stats",
        help="folder for the figures (default: flair_stats)",
    )
    add("--seed", metavar="N", type=seed_number, default=0, help="of the shuffled control (default: 0)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    command.run(main)
