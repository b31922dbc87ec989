"""A dataset directory of metadata alone: random users, labels and partitions, and no photo."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LABELS = ("animal", "art", "equipment", "food", "games", "plant", "structure")
WEIGHTS = (6, 3, 20, 12, 2, 10, 20)


def make_metadata(folder: Path, num_images: int = 600, seed: int = 0) -> list[dict[str, Any]]:
    """Writes and returns the records; about half of the photos are in test, some labels are rare."""
    rng = random.Random(seed)
    records: list[dict[str, Any]] = []
    user = 0
    while len(records) < num_images:
        user += 1
        partition = ("train", "val", "test", "test")[user % 4]
        for _ in range(rng.choice((1, 2, 3, 8, 25))):
            labels = sorted(set(rng.choices(LABELS, WEIGHTS, k=rng.choice((1, 1, 2, 3, 5)))))
            records.append(
                {
                    "user_id": f"{10_000_000 + user}@N00",
                    "image_id": str(5_000_000 + len(records) * 7 % 1009 * 1000 + len(records)),
                    "labels": labels,
                    "partition": partition,
                    "fine_grained_labels": [f"{label} {rng.randrange(3)}" for label in labels],
                }
            )
    write(folder, records)
    return records


def write(folder: Path, records: Sequence[dict[str, Any]]) -> None:
    """Makes `folder` a dataset directory of these records."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labels_and_metadata.json").write_text(json.dumps(list(records)))
