"""Photos in strata: a class and one of five bins each, and totals divided among them by largest remainder.

The bins, the rounding and the borrowing are those of ImageNetV2's "matched frequency" set (Recht, Roelofs, Schmidt,
Shankar, "Do ImageNet Classifiers Generalize to ImageNet?", ICML 2019, https://arxiv.org/abs/1902.10811, section 3).
There every photo has one class; FLAIR's photos carry several labels, and each counts for its rarest.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from flair.curation.scores import Scores
from flair.dataset.metadata import Record

BIN_EDGES = (0.2, 0.4, 0.6, 0.8)
NUM_BINS = len(BIN_EDGES) + 1
ALL_PHOTOS = "all photos"  # the one class where labels do not matter

Histogram = dict[str, list[int]]


class Stratum(NamedTuple):
    """A class and a bin, 0 to 4."""

    label: str
    bin: int


class LabelOrder:
    """Labels from the rarest to the most frequent, by the number of photos that carry them, then by name."""

    def __init__(self, records: Iterable[Record], fine_grained: bool = False) -> None:
        self._fine_grained = fine_grained
        counts = Counter(label for record in records for label in self.labels(record))
        self.order = tuple(sorted(counts, key=lambda label: (counts[label], label)))
        self._rank = {label: rank for rank, label in enumerate(self.order)}

    def labels(self, record: Record) -> tuple[str, ...]:
        """The labels of a photo, of the kind that is asked for."""
        return record.fine_grained_labels if self._fine_grained else record.labels

    def rarest(self, record: Record) -> str:
        """The label that a photo counts for."""
        return min(self.labels(record), key=self._rank.__getitem__)


def bin_of(value: float) -> int:
    """The bin of a number from 0 to 1; an edge belongs to the higher bin.

    >>> [bin_of(value) for value in (0.0, 0.19, 0.2, 0.6, 1.0)]
    [0, 0, 1, 3, 4]
    """
    return bisect.bisect_right(BIN_EDGES, value)


def largest_remainder(counts: Sequence[int], total: int) -> list[int]:
    """Divides `total` in the proportions of `counts`; what rounding leaves goes to the largest remainders.

    Ties go to the higher index. Without any counts nothing is divided.

    >>> largest_remainder([1, 1, 1], 10)
    [3, 3, 4]
    """
    whole = sum(counts)
    if whole == 0:
        return [0] * len(counts)
    shares = [divmod(count * total, whole) for count in counts]
    result = [quotient for quotient, _ in shares]
    ranked = sorted(range(len(counts)), key=lambda index: (shares[index][1], index), reverse=True)
    for index in ranked[: total - sum(result)]:
        result[index] += 1
    return result


def stratum_by_labels(order: LabelOrder) -> Callable[[Record], Stratum | None]:
    """Class: the rarest label. Bin: the share this label has of the photo's labels, 1 / their number."""
    return lambda record: Stratum(order.rarest(record), bin_of(1 / len(order.labels(record))))


def stratum_by_score(order: LabelOrder, scores: Scores) -> Callable[[Record], Stratum | None]:
    """Class: the rarest label. Bin: the photo's score for it; None where it has none."""

    def stratum(record: Record) -> Stratum | None:
        label = order.rarest(record)
        score = scores.get(record.image_id, label)
        return None if score is None else Stratum(label, bin_of(score))

    return stratum


def stratum_by_user_size(records: Iterable[Record], reference: Sequence[Record]) -> Callable[[Record], Stratum | None]:
    """One class. Bin: the share of the reference's photos whose user has fewer photos than this one's.

    `records` are all of the dataset: a user's size is the number of their photos there.
    """
    sizes = Counter(record.user_id for record in records)
    of_reference = sorted(sizes[record.user_id] for record in reference)

    def stratum(record: Record) -> Stratum:
        fewer = bisect.bisect_left(of_reference, sizes[record.user_id])
        return Stratum(ALL_PHOTOS, bin_of(fewer / len(of_reference)))

    return stratum


def in_strata(records: Iterable[Record], stratum_of: Callable[[Record], Stratum | None]) -> dict[str, Stratum]:
    """The stratum of each photo that has one."""
    found = ((record.image_id, stratum_of(record)) for record in records)
    return {image_id: stratum for image_id, stratum in found if stratum is not None}


def histogram(strata: Iterable[Stratum]) -> Histogram:
    """Photos of each class in each of the five bins."""
    result: Histogram = {}
    for stratum in strata:
        result.setdefault(stratum.label, [0] * NUM_BINS)[stratum.bin] += 1
    return result


def targets(reference: Mapping[str, Sequence[int]], classes: Sequence[str], total: int) -> Histogram:
    """`total` divided first among the classes, then within each among its bins, as in the reference."""
    shares = largest_remainder([sum(reference[label]) for label in classes], total)
    return {label: largest_remainder(reference[label], share) for label, share in zip(classes, shares, strict=True)}
