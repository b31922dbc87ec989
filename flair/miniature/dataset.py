"""Makes a miniature FLAIR in FLAIR's layout: metadata, taxonomy, photos, and the recipe of all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from flair.dataset.catalog import ATTRIBUTION_FILE, METADATA_FILE, TAXONOMY_FILE
from flair.dataset.metadata import records_of
from flair.errors import FlairError
from flair.files import atomic, json_text
from flair.miniature.taxonomy import DEFAULT_NUM_FINE_LABELS, make_taxonomy, relationship_text

RECIPE_FILE = "synthetic.json"
_RECIPE_VERSION = 1  # raised whenever the same settings give other photos or records than before
_FEW_PHOTOS = 500  # drawn in less time than worker processes need to start
_ATTRIBUTION = (
    "The photos, users and labels of this folder are synthetic: drawn by `python -m flair.synthetic`, taken by no\n"
    "one. They stand in for FLAIR (Song, Granqvist, Talwar, 2022, https://arxiv.org/abs/2207.08869) in trials and\n"
    "tests. Use them for any purpose; no result on them says anything about FLAIR itself.\n"
)


class Made(NamedTuple):
    """What `make_dataset` made, or found made already (`was_there`)."""

    dataset_dir: Path
    num_users: int
    num_images: int
    seconds: float
    was_there: bool


def make_dataset(
    dataset_dir: str | Path,
    *,
    num_users: int | None = None,
    num_images: int | None = None,
    seed: int = 0,
    num_fine_labels: int = DEFAULT_NUM_FINE_LABELS,
    taste_concentration: float = 3.0,
    style_strength: float = 1.0,
    dialect: float = 0.0,
    metadata_only: bool = False,
    distinct_photos: int | None = None,
    num_workers: int | None = None,
) -> Made:
    """Writes a synthetic dataset in FLAIR's layout: metadata, taxonomy, photos, attribution, and its own settings.

    `population.make_users` and `photos.Painter` say how users, labels and photos are made.

    Args:
      dataset_dir: a new or empty folder. An unfinished dataset of the same settings is continued, a finished one kept.
      num_users: users; `num_images`: photos. One follows from the other by FLAIR's distribution of user sizes.
      seed: from 0. Same settings, same files, whatever the number of workers and, with the same versions of NumPy,
        Pillow and libjpeg, whatever the machine.
      num_fine_labels: at least 17.
      taste_concentration: of the Dirichlet distribution of users' tastes, above 0; at 1e6 all want the same labels.
      style_strength: how far users' styles differ, from 0 (all look alike); well above 1 colours mislead.
      dialect: probability, from 0 to 1, that a user swaps the motifs of two labels, for each of five pairs: a reason to
        personalize that is not in the label frequencies.
      metadata_only: draw no photos.
      distinct_photos: draw this many photos and hard-link all others to them in turn. These then show other labels
        than they carry: for measuring speed at full scale, not for training.
      num_workers: processes that draw; by default one per core, and this one alone for fewer than 500 photos.

    Raises:
      FlairError: fewer than 3 users or photos, fewer photos than users, or a folder that holds anything else.
    """
    from flair.miniature.population import make_users, user_sizes

    start = time.monotonic()
    sizes = user_sizes(num_users, num_images)
    taxonomy = make_taxonomy(num_fine_labels)
    # All that decides the content of the dataset; kept beside it.
    recipe = {
        "version": _RECIPE_VERSION,
        "seed": seed,
        "num_users": len(sizes),
        "num_images": int(sizes.sum()),
        "num_fine_labels": num_fine_labels,
        "taste_concentration": float(taste_concentration),
        "style_strength": float(style_strength),
        "dialect": float(dialect),
        "metadata_only": metadata_only,
        "distinct_photos": distinct_photos,
    }
    folder = Path(dataset_dir)
    was_there = _claim(folder, recipe)
    if not was_there:
        from flair.miniature.files import write_metadata, write_photos

        users = make_users(sizes, taxonomy, seed, taste_concentration)
        records = list(records_of(users))
        atomic.write_text(folder / TAXONOMY_FILE, relationship_text(taxonomy))
        atomic.write_text(folder / ATTRIBUTION_FILE, _ATTRIBUTION)
        if not metadata_only:
            from flair.miniature.photos import Painter
            from flair.parallel.processes import default_num_workers

            if num_workers is None:
                is_small = min(len(records), distinct_photos or math.inf) < _FEW_PHOTOS
                num_workers = 1 if is_small else default_num_workers()
            painter = Painter(taxonomy, seed, style_strength, dialect)
            write_photos(folder, records, painter, distinct_photos, num_workers)
        write_metadata(folder / METADATA_FILE, records)
    return Made(folder, len(sizes), int(sizes.sum()), time.monotonic() - start, was_there)


def _claim(folder: Path, recipe: Mapping[str, object]) -> bool:
    """Makes `folder` ours for `recipe`, or raises; True when the dataset is there already."""
    path = folder / RECIPE_FILE
    if folder.exists() and not folder.is_dir():
        raise FlairError(f"--dataset_dir={folder}: is a file; expected a new or empty folder")
    if not path.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise FlairError(
                f"--dataset_dir={folder}: holds files that this command did not make; choose a new or empty folder"
            )
        atomic.write_json(path, recipe)
        return False
    try:
        found = json_text.read(path)
    except json_text.BadJson:
        found = None
    if not isinstance(found, dict):
        raise FlairError(f"{path}: is damaged; choose a new folder, or delete this one and run the same command again")
    others = [f"{name} {found.get(name)}" for name, value in recipe.items() if found.get(name) != value]
    if others:
        raise FlairError(
            f"--dataset_dir={folder}: holds a synthetic dataset of other settings ({', '.join(others)}); "
            "choose a new folder, or delete this one"
        )
    return (folder / METADATA_FILE).exists()
