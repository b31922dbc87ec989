"""Which photos may enter a test set, with one reason for each that may not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from flair.curation.exclusion import TRAINING_PARTITION, Exclusion
from flair.curation.reviews import NO_MARK, REFUSED_MARKS, Reviews
from flair.curation.scores import Scores
from flair.dataset.catalog import HELDOUT
from flair.dataset.metadata import Record
from flair.errors import FlairError
from flair.records.tfrecord.reader import TFRecords
from flair.terminal.progress import Progress
from flair.testsets.strata import LabelOrder

# In the order in which they are looked for: the first that applies is a photo's reason.
BLACKLISTED = "blacklisted"
TOO_FEW_ANNOTATIONS = "too few annotations"
BELOW_THRESHOLD = "below the threshold"
NEAR_DUPLICATE = "near duplicate"
UNREVIEWED = "unreviewed"
REASONS = (BLACKLISTED, TOO_FEW_ANNOTATIONS, BELOW_THRESHOLD, NEAR_DUPLICATE, UNREVIEWED)

# For `Exclusion.leaving`: from this partition all photos of a component leave when one of them is elsewhere.
_LEAVES_ALTOGETHER = "test"


class Criteria(NamedTuple):
    """What a photo must meet.

    Attributes:
      min_annotations: labels it must carry, with scores: labels of it that have a score.
      labels: it must carry one of these, None: any.
      min_score: its score for its rarest label must be this or higher, None: any.
      exclusion: near duplicates, and ids that are out anyway.
      reviews: photos marked blacklist or problematic are out; pairs marked correct the near duplicates.
      require_reviewed: only photos that a person has marked `ok`.
    """

    min_annotations: int
    labels: frozenset[str] | None
    min_score: float | None
    exclusion: Exclusion | None
    reviews: Reviews
    require_reviewed: bool


def refusals(
    candidates: Sequence[Record], partition: str, criteria: Criteria, order: LabelOrder, scores: Scores | None
) -> dict[str, str]:
    """Photo -> reason, for each of `candidates`, all photos of `partition`, that is refused."""
    refused: dict[str, str] = {}

    def refuse(reason: str, applies: Callable[[Record], bool]) -> None:
        for record in candidates:
            if record.image_id not in refused and applies(record):
                refused[record.image_id] = reason

    exclusion = criteria.exclusion or Exclusion()
    blacklist = criteria.reviews.photos_marked(*REFUSED_MARKS) | exclusion.listed
    refuse(BLACKLISTED, lambda record: record.image_id in blacklist)
    refuse(TOO_FEW_ANNOTATIONS, lambda record: _annotations(record, order, scores) < criteria.min_annotations)
    refuse(BELOW_THRESHOLD, lambda record: _is_below(record, criteria, order, scores))
    # Photos of the same partition that are refused anyway are no reason for their twins to leave.
    corrected = criteria.reviews.applied_to(exclusion)
    remaining = Exclusion(components=[component - refused.keys() for component in corrected.components])
    eligible = frozenset(record.image_id for record in candidates if record.image_id not in refused)
    twins = remaining.leaving(eligible, partition if partition == TRAINING_PARTITION else _LEAVES_ALTOGETHER)
    refuse(NEAR_DUPLICATE, lambda record: record.image_id in twins)
    if criteria.require_reviewed:
        refuse(UNREVIEWED, lambda record: criteria.reviews.photo_mark(record.image_id) == NO_MARK)
    return refused


def heldout_image_ids(tfrecords_dir: str | Path, metadata_sha256: str) -> frozenset[str]:
    """The photos that a folder of records holds in its partition `heldout`.

    Raises:
      FlairError: there is none, it was made from other metadata, or a record is damaged.
    """
    records = TFRecords(tfrecords_dir)
    if not records.has_partition(HELDOUT):
        raise FlairError(
            f"--tfrecords_dir={tfrecords_dir}: no photos were put aside there; prepare them with "
            "prepare_tfrecords.py --heldout_fraction=0.1"
        )
    if records.parameters.get("metadata_sha256") != metadata_sha256:
        raise FlairError(f"--tfrecords_dir={tfrecords_dir}: was made from other metadata than --dataset_dir has")
    users = records.users(HELDOUT)
    image_ids: set[str] = set()
    with Progress(len(users), "reading the photos put aside", "user") as progress:
        for span in users.values():
            image_ids.update(example.image_id or "" for example in records.read_user(span))
            progress.add()
    return frozenset(image_ids)


def _annotations(record: Record, order: LabelOrder, scores: Scores | None) -> int:
    labels = order.labels(record)
    if scores is None:
        return len(labels)
    # Without a score for the label that it counts for, the others are of no use.
    has_score = scores.get(record.image_id, order.rarest(record)) is not None
    return scores.count(record.image_id, labels) if has_score else 0


def _is_below(record: Record, criteria: Criteria, order: LabelOrder, scores: Scores | None) -> bool:
    if criteria.labels is not None and criteria.labels.isdisjoint(order.labels(record)):
        return True
    if criteria.min_score is None or scores is None:
        return False
    score = scores.get(record.image_id, order.rarest(record))
    return score is None or score < criteria.min_score
