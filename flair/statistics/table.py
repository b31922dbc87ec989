"""The statistics of a dataset beside the published ones: as plain data for programs, and as a table for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flair.dataset import catalog
from flair.dataset.catalog import Distribution
from flair.dataset.metadata import Record
from flair.statistics.divergence import Divergence, by_size, measure
from flair.statistics.labels import (
    COARSE_HEAD,
    FINE_HEAD,
    Annotations,
    LabelCount,
    count_labels,
    describe,
    encode,
    labels_per_photo,
    labels_per_user,
    partition_sizes,
    short,
)
from flair.terminal.table import Columns

_PUBLISHED = {
    "coarse labels of a photo": catalog.COARSE_LABELS_PER_IMAGE,
    "fine-grained labels of a photo": catalog.FINE_LABELS_PER_IMAGE,
    "photos of a user": catalog.IMAGES_PER_USER,
    "different coarse labels of a user": catalog.COARSE_LABELS_PER_USER,
    "different fine-grained labels of a user": catalog.FINE_LABELS_PER_USER,
}


class Statistics(NamedTuple):
    """All numbers of a dataset.

    Attributes:
      users, photos: of each partition.
      distributions: five counts by name, as in ml-flair's notebook.
      coarse, fine: labels, the most frequent first.
      divergence: of each user from the population.
      unused: fine-grained labels of the taxonomy that no photo carries; None without a taxonomy.
    """

    users: dict[str, int]
    photos: dict[str, int]
    distributions: dict[str, Distribution]
    coarse: list[LabelCount]
    fine: list[LabelCount]
    divergence: Divergence
    unused: list[str] | None


def compute(
    records: Sequence[Record], taxonomy: Mapping[str, frozenset[str]] | None = None, seed: int = 0
) -> tuple[Annotations, Statistics]:
    """The records as arrays, and their statistics; `seed` is that of the shuffled control."""
    annotations = encode(records)
    users, photos = partition_sizes(annotations)
    values = (
        labels_per_photo(annotations.coarse, annotations.num_photos),
        labels_per_photo(annotations.fine, annotations.num_photos),
        annotations.photos_per_user(),
        labels_per_user(annotations, annotations.coarse),
        labels_per_user(annotations, annotations.fine),
    )
    fine = count_labels(annotations, annotations.fine)
    return annotations, Statistics(
        users,
        photos,
        dict(zip(_PUBLISHED, map(describe, values), strict=True)),
        count_labels(annotations, annotations.coarse),
        fine,
        measure(annotations, seed),
        None if taxonomy is None else sorted(set(taxonomy) - {label.name for label in fine}),
    )


def to_json(statistics: Statistics) -> dict[str, Any]:
    """The statistics and the published ones as plain JSON values; divergences as means of users of like size."""
    return {
        "users": statistics.users,
        "photos": statistics.photos,
        "distributions": {name: found._asdict() for name, found in statistics.distributions.items()},
        "labels": [label._asdict() for label in statistics.coarse],
        "fine_grained_labels": [label._asdict() for label in statistics.fine],
        "fine_grained_labels_on_no_photo": statistics.unused,
        "divergence": [group._asdict() for group in by_size(statistics.divergence)],
        "published": {
            "users": catalog.NUM_USERS,
            "photos": catalog.NUM_IMAGES,
            "distributions": {name: found._asdict() for name, found in _PUBLISHED.items()},
            "labels": catalog.COARSE_LABEL_COUNTS,
            "fine_grained_labels": catalog.HEAD_FINE_LABEL_COUNTS,
        },
    }


def sections(statistics: Statistics) -> dict[str, str]:
    """The statistics as text, the published ones beside them: name of the section -> its lines."""
    parts = {
        "partitions": _partitions(statistics),
        "distributions": _distributions(statistics),
        "labels": _coarse(statistics),
        "fine_grained_labels": _fine(statistics),
        "divergence": _divergence(statistics.divergence),
    }
    return {name: "\n".join(lines) for name, lines in parts.items()}


def table(statistics: Statistics) -> str:
    """All sections in one text."""
    return "\n\n".join(sections(statistics).values())


def _partitions(statistics: Statistics) -> Iterator[str]:
    columns = Columns("<12", *[">12,"] * 4)
    yield columns.line("partition", "users", "published", "photos", "published")
    counts = [statistics.users, catalog.NUM_USERS, statistics.photos, catalog.NUM_IMAGES]
    for name in catalog.PARTITIONS:
        yield columns.line(name, *(numbers[name] for numbers in counts))
    yield columns.line("all", *(sum(numbers.values()) for numbers in counts))


def _distributions(statistics: Statistics) -> Iterator[str]:
    columns = Columns("<41", ">9,.3f", ">9,.3f", *[">9,g"] * 5)
    yield columns.line("", "mean", "sd", "least", "25%", "median", "75%", "most")
    for name, found in statistics.distributions.items():
        yield columns.line(name, *found)
        yield columns.line("    published", *_PUBLISHED[name])


def _coarse(statistics: Statistics) -> Iterator[str]:
    total, published_total = sum(statistics.photos.values()), sum(catalog.NUM_IMAGES.values())
    columns = Columns("<16", ">10,", ">8.1%", ">12,", ">8.1%", ">10,")
    yield columns.line("coarse label", "photos", "share", "published", "share", "users")
    for label in statistics.coarse[:COARSE_HEAD]:
        published = catalog.COARSE_LABEL_COUNTS.get(label.name)
        there = (published, published / published_total) if published else (None, None)
        yield columns.line(short(label.name), label.photos, label.photos / total, *there, label.users)
    if len(statistics.coarse) > COARSE_HEAD:
        yield f"and {len(statistics.coarse) - COARSE_HEAD:,} more"
    present = {label.name for label in statistics.coarse}
    missing = [name for name in catalog.COARSE_LABEL_COUNTS if name not in present]
    if missing:
        yield f"on no photo: {', '.join(missing)}"


def _fine(statistics: Statistics) -> Iterator[str]:
    columns = Columns("<24", ">10,", ">10,", "<3", "<20", ">10,")
    yield columns.line("fine-grained", "photos", "users", "", "published", "photos")
    published = list(catalog.HEAD_FINE_LABEL_COUNTS.items())
    for rank, (name, photos) in enumerate(published[:FINE_HEAD]):
        label = statistics.fine[rank] if rank < len(statistics.fine) else None
        here = (short(label.name), label.photos, label.users) if label else (None, None, None)
        yield columns.line(*here, "", name, photos)
    rare = [sum(label.photos < limit for label in statistics.fine) for limit in (2, 10, 100)]
    yield (
        f"{len(statistics.fine):,} fine-grained labels (published: {catalog.NUM_FINE_LABELS:,}); on one photo only: "
        f"{rare[0]:,}, on fewer than 10: {rare[1]:,}, on fewer than 100: {rare[2]:,}"
    )
    if statistics.unused is not None:
        yield f"in the taxonomy, but on no photo: {len(statistics.unused):,}"


def _divergence(divergence: Divergence) -> Iterator[str]:
    yield "how far users' coarse labels are from the population's (mean Jensen-Shannon divergence, bits)"
    columns = Columns("<20", ">10,", ">14.3f", ">18.3f")
    yield columns.line("photos of a user", "users", "as they are", "photos shuffled")
    for group in by_size(divergence):
        sizes = f"{group.least:,}" if group.least == group.most else f"{group.least:,} to {group.most:,}"
        yield columns.line(sizes, group.num_users, group.users, group.shuffled)
