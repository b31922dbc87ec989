"""The metadata as arrays says what the records say."""

from __future__ import annotations

from pathlib import Path

from flair.dataset.catalog import PARTITIONS
from flair.dataset.metadata import Record, load_records
from flair.statistics.labels import encode


def test_arrays_decode_to_the_records(miniature: Path) -> None:
    records = load_records(miniature)
    annotations = encode(records)
    labels: list[list[str]] = [[] for _ in records]
    fine: list[list[str]] = [[] for _ in records]
    for pairs, found in ((annotations.coarse, labels), (annotations.fine, fine)):
        for photo, label in zip(pairs.photo.tolist(), pairs.label.tolist(), strict=True):
            found[photo].append(pairs.names[label])
    decoded = [
        Record(
            annotations.user_ids[owner],
            record.image_id,
            tuple(labels[row]),
            tuple(fine[row]),
            PARTITIONS[annotations.partition[owner]],
        )
        for row, (owner, record) in enumerate(zip(annotations.owner.tolist(), records, strict=True))
    ]
    assert decoded == records
    assert annotations.photos_per_user().sum() == annotations.num_photos == len(records)
