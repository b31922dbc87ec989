"""The statistics of a dataset beside the published ones: as plain data for programs, and as a table for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flair.dataset import catalog
from flair.dataset.annotations import Annotations, encode
from flair.dataset.catalog import Distribution
from flair.dataset.metadata import Record
from flair.statistics.divergence import Divergence, by_size, measure
from flair.statistics.labels import (
    COARSE_HEAD,
    LabelCount,
    count_labels,
    describe,
    labels_per_photo,
    labels_per_user,
    partition_sizes,
)

HEAD = 20  # as many fine-grained labels as ml-flair lists
_LONGEST_NAME = 40
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
    yield f"{'partition':<12}{'users':>12}{'published':>12}{'photos':>12}{'published':>12}"
    for name in catalog.PARTITIONS:
        yield _counts(
            name, statistics.users[name], catalog.NUM_USERS[name], statistics.photos[name], catalog.NUM_IMAGES[name]
        )
    yield _counts(
        "all",
        sum(statistics.users.values()),
        sum(catalog.NUM_USERS.values()),
        sum(statistics.photos.values()),
        sum(catalog.NUM_IMAGES.values()),
    )


def _counts(name: str, *counts: int) -> str:
    return f"{name:<12}" + "".join(f"{count:>12,}" for count in counts)


def _distributions(statistics: Statistics) -> Iterator[str]:
    header = ("mean", "sd", "least", "25%", "median", "75%", "most")
    yield f"{'':<41}" + "".join(f"{name:>9}" for name in header)
    for name, found in statistics.distributions.items():
        yield f"{name:<41}" + _numbers(found)
        yield f"{'    published':<41}" + _numbers(_PUBLISHED[name])


def _numbers(distribution: Distribution) -> str:
    mean, sd, *others = distribution
    return f"{mean:>9,.3f}{sd:>9,.3f}" + "".join(f"{value:>9,g}" for value in others)


def _coarse(statistics: Statistics) -> Iterator[str]:
    total, published_total = sum(statistics.photos.values()), sum(catalog.NUM_IMAGES.values())
    yield f"{'coarse label':<16}{'photos':>10}{'share':>8}{'published':>12}{'share':>8}{'users':>10}"
    for label in statistics.coarse[:COARSE_HEAD]:
        published = catalog.COARSE_LABEL_COUNTS.get(label.name)
        there = f"{published:>12,}{published / published_total:>8.1%}" if published else f"{'-':>12}{'-':>8}"
        yield f"{_short(label.name):<16}{label.photos:>10,}{label.photos / total:>8.1%}{there}{label.users:>10,}"
    if len(statistics.coarse) > COARSE_HEAD:
        yield f"and {len(statistics.coarse) - COARSE_HEAD:,} more"
    present = {label.name for label in statistics.coarse}
    missing = [name for name in catalog.COARSE_LABEL_COUNTS if name not in present]
    if missing:
        yield f"on no photo: {', '.join(missing)}"


def _fine(statistics: Statistics) -> Iterator[str]:
    yield f"{'fine-grained':<24}{'photos':>10}{'users':>10}   {'published':<20}{'photos':>10}"
    published = list(catalog.HEAD_FINE_LABEL_COUNTS.items())
    for rank, (name, photos) in enumerate(published[:HEAD]):
        label = statistics.fine[rank] if rank < len(statistics.fine) else None
        here = (
            f"{_short(label.name):<24}{label.photos:>10,}{label.users:>10,}"
            if label
            else f"{'-':<24}{'-':>10}{'-':>10}"
        )
        yield f"{here}   {name:<20}{photos:>10,}"
    rare = [sum(label.photos < limit for label in statistics.fine) for limit in (2, 10, 100)]
    yield (
        f"{len(statistics.fine):,} fine-grained labels (published: {catalog.NUM_FINE_LABELS:,}); on one photo only: "
        f"{rare[0]:,}, on fewer than 10: {rare[1]:,}, on fewer than 100: {rare[2]:,}"
    )
    if statistics.unused is not None:
        yield f"in the taxonomy, but on no photo: {len(statistics.unused):,}"


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _divergence(divergence: Divergence) -> Iterator[str]:
    yield "how far users' coarse labels are from the population's (mean Jensen-Shannon divergence, bits)"
    yield f"{'photos of a user':<20}{'users':>10}{'as they are':>14}{'photos shuffled':>18}"
    for group in by_size(divergence):
        sizes = f"{group.least:,}" if group.least == group.most else f"{group.least:,} to {group.most:,}"
        yield f"{sizes:<20}{group.num_users:>10,}{group.users:>14.3f}{group.shuffled:>18.3f}"
