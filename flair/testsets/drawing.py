"""From flags to a test set: reads what is named, finds who is eligible, draws by the rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flair.curation.exclusion import Exclusion, read_exclusion
from flair.curation.manifest import Testset, check_absent, check_set_name, manifest_path, now, read_testset
from flair.curation.reviews import NO_REVIEWS, Reviews, read_reviews
from flair.curation.scores import Scores, read_scores
from flair.dataset.catalog import HELDOUT
from flair.dataset.metadata import Record, load_records, metadata_path
from flair.errors import FlairError
from flair.files.regular_file import file_sha256
from flair.testsets import samplers, strata
from flair.testsets.eligibility import REASONS, Criteria, heldout_image_ids, refusals
from flair.testsets.samplers import Draw
from flair.testsets.strata import LabelOrder

_MAX_LABELS_PRINTED = 40


class Plan(NamedTuple):
    """What is asked for; the fields are the flags of `flair.sample_testset`."""

    rule: str
    dataset_dir: str
    name: str
    testsets_dir: str = "testsets"
    starting_from: str | None = None
    revision: int | None = None
    seed: int = 0
    partition: str = "test"
    num_images: int | None = None
    use_fine_grained_labels: bool = False
    reviews: str | None = None
    exclude: str | None = None
    min_annotations: int = 1
    require_reviewed: bool = False
    min_positives: int = 5
    reference: str = "test"
    match: str = "labels"
    borrow: bool = False
    images_per_label: int | None = None
    scores: str | None = None
    min_score: float | None = None
    tfrecords_dir: str | None = None


class Resampled(NamedTuple):
    """A set, and what there is to say about its making.

    `frequencies` has for each label: its name, photos in the set, share of the set, share of `reference`.
    """

    testset: Testset
    num_users: int
    num_candidates: int
    refused: dict[str, int]
    num_kept: int
    num_previous: int
    reference: str
    frequencies: list[tuple[str, int, float, float]]
    warnings: list[str]


class _Inputs(NamedTuple):
    records: list[Record]
    candidates: list[Record]
    reference: list[Record]
    order: LabelOrder
    reviews: Reviews
    exclusion: Exclusion | None
    scores: Scores | None
    previous: Testset | None

    @property
    def previous_ids(self) -> frozenset[str]:
        return frozenset(() if self.previous is None else self.previous.image_ids)


class _Rule(NamedTuple):
    draw: Draw
    parameters: dict[str, Any]
    histogram: dict[str, Any]


def resample(plan: Plan) -> Resampled:
    """Draws the set that `plan` asks for; nothing is written.

    Raises:
      FlairError: an input is missing or malformed, the manifest exists already, or the inputs do not fit together.
    """
    previous = None
    if plan.starting_from is not None:
        previous = read_testset(manifest_path(plan.starting_from, plan.testsets_dir))
    revision = plan.revision if plan.revision is not None else 0 if previous is None else previous.revision + 1
    name = check_set_name(f"{plan.name}-{revision}")
    check_absent(manifest_path(name, plan.testsets_dir))
    inputs = _read(plan, previous)
    # Half of the partition (or reference), whoever is refused: so that a refusal changes one photo, not the size.
    total = plan.num_images or (None if plan.rule == "seen_users" else -(-len(inputs.reference) // 2))
    labels = _frequent_labels(plan, inputs, total or 0) if plan.rule == "threshold" else None
    criteria = Criteria(
        plan.min_annotations, labels, plan.min_score, inputs.exclusion, inputs.reviews, plan.require_reviewed
    )
    refused = refusals(inputs.candidates, plan.partition, criteria, inputs.order, inputs.scores)
    eligible = {record.image_id: record for record in inputs.candidates if record.image_id not in refused}
    rule = _draw(plan, inputs, eligible, total or len(eligible), labels)
    problem = rule.draw.problem or (None if rule.draw.image_ids else "no photo is eligible")
    testset = Testset(
        name=name,
        partition=plan.partition,
        image_ids=tuple(sorted(rule.draw.image_ids)),
        is_valid=problem is None,
        rule=plan.rule,
        parameters=_parameters(plan) | rule.parameters,
        seed=plan.seed,
        time=now(),
        revision=revision,
        starting_from=None if previous is None else previous.name,
        refusals=refused,
        problem=problem,
        histogram=rule.histogram,
        metadata_sha256=file_sha256(metadata_path(plan.dataset_dir)),
    )
    return _describe(plan, inputs, testset)


def _read(plan: Plan, previous: Testset | None) -> _Inputs:
    if previous is not None and previous.partition != plan.partition:
        raise FlairError(
            f"--starting_from={plan.starting_from}: its photos are of {previous.partition}, those of this set of "
            f"{plan.partition}; choose a set of the same partition"
        )
    records = load_records(plan.dataset_dir)
    known = {record.image_id for record in records}
    reviews = NO_REVIEWS if plan.reviews is None else read_reviews(plan.reviews)
    exclusion = None if plan.exclude is None else read_exclusion(plan.exclude)
    if exclusion is not None and exclusion.ids and known.isdisjoint(exclusion.ids):
        raise FlairError(f"--exclude={plan.exclude}: none of its images is in the dataset; expected a file made for it")
    scores = None if plan.scores is None else read_scores(plan.scores)
    if scores is not None and known.isdisjoint(scores.photos()):
        raise FlairError(f"--scores={plan.scores}: none of its photos is in the dataset; expected a file made for it")
    if scores is not None and plan.match == "score" and not 0 <= scores.range()[0] <= scores.range()[1] <= 1:
        raise FlairError(f"--scores={plan.scores}: --match=score needs scores from 0 to 1, found {scores.range()}")
    order = LabelOrder(records, plan.use_fine_grained_labels)
    candidates = _members(plan, records, plan.partition)
    reference = candidates if plan.rule != "matched" else _members(plan, records, plan.reference)
    return _Inputs(records, candidates, reference, order, reviews, exclusion, scores, previous)


def _members(plan: Plan, records: Sequence[Record], partition: str) -> list[Record]:
    if partition != HELDOUT:
        members = [record for record in records if record.partition == partition]
    else:
        assert plan.tfrecords_dir is not None
        image_ids = heldout_image_ids(plan.tfrecords_dir, file_sha256(metadata_path(plan.dataset_dir)))
        members = [record for record in records if record.image_id in image_ids]
    if not members:
        raise FlairError(f"--partition={partition}: has no photo in {plan.dataset_dir}")
    return sorted(members, key=lambda record: record.image_id)


def _frequent_labels(plan: Plan, inputs: _Inputs, total: int) -> frozenset[str]:
    """Labels that would have enough positives in a uniform draw of that size."""
    counts = Counter(label for record in inputs.candidates for label in inputs.order.labels(record))
    share = total / len(inputs.candidates)
    return frozenset(label for label, count in counts.items() if count * share >= plan.min_positives)


def _draw(
    plan: Plan, inputs: _Inputs, eligible: Mapping[str, Record], total: int, labels: frozenset[str] | None
) -> _Rule:
    previous = inputs.previous_ids
    if plan.rule == "seen_users":
        return _Rule(samplers.draw_uniform(eligible, total, plan.seed, previous), {"num_images": total}, {})
    if labels is not None:
        kept = [label for label in inputs.order.order if label in labels]
        parameters = {"num_images": total, "min_positives": plan.min_positives, "labels": kept}
        if not kept:
            problem = f"no label would have {plan.min_positives} positives among {total:,} photos"
            return _Rule(Draw(frozenset(), problem), parameters, {})
        draw = samplers.draw_with_positives(
            eligible, labels, inputs.order, plan.min_positives, total, plan.seed, previous
        )
        return _Rule(draw, parameters, {})
    if plan.rule == "matched":
        return _draw_matched(plan, inputs, eligible, total, previous)
    return _draw_top(plan, inputs, eligible, total, previous)


def _draw_matched(
    plan: Plan, inputs: _Inputs, eligible: Mapping[str, Record], total: int, previous: frozenset[str]
) -> _Rule:
    if plan.match == "user_size":
        stratum_of = strata.stratum_by_user_size(inputs.records, inputs.reference)
    elif plan.match == "score" and inputs.scores is not None:
        stratum_of = strata.stratum_by_score(inputs.order, inputs.scores)
    else:
        stratum_of = strata.stratum_by_labels(inputs.order)
    of_reference = {record.image_id: stratum_of(record) for record in inputs.reference}
    reference = strata.histogram(of_reference.values())
    classes = [label for label in (*inputs.order.order, strata.ALL_PHOTOS) if label in reference]
    if plan.images_per_label is None:
        wanted = strata.targets(reference, classes, total)
    else:
        wanted = {label: strata.largest_remainder(reference[label], plan.images_per_label) for label in classes}
    found = {image_id: stratum_of(record) for image_id, record in eligible.items()}
    of_photo = {image_id: stratum for image_id, stratum in found.items() if stratum is not None}
    records = {record.image_id: record for record in (*inputs.reference, *eligible.values())}
    groups = samplers.grouped({name: stratum for name, stratum in of_reference.items() if stratum is not None})
    balance = samplers.LabelBalance(lambda name: inputs.order.labels(records[name]), groups)
    draw = samplers.draw_matched(of_photo, wanted, balance, plan.seed, previous, plan.borrow)
    chosen = strata.histogram(of_photo[image_id] for image_id in draw.image_ids)
    candidates, none = strata.histogram(of_photo.values()), [0] * strata.NUM_BINS
    table = {
        label: {
            "candidates": candidates.get(label, none),
            "reference": reference[label],
            "wanted": wanted[label],
            "chosen": chosen.get(label, none),
        }
        for label in classes
    }
    parameters = {
        "num_images": sum(map(sum, wanted.values())),
        "images_per_label": plan.images_per_label,
        "reference": plan.reference,
        "match": plan.match,
        "borrow": plan.borrow,
    }
    return _Rule(draw, parameters, table)


def _draw_top(
    plan: Plan, inputs: _Inputs, eligible: Mapping[str, Record], total: int, previous: frozenset[str]
) -> _Rule:
    counts = Counter(inputs.order.rarest(record) for record in inputs.reference)
    classes = [label for label in inputs.order.order if label in counts]
    shares = strata.largest_remainder([counts[label] for label in classes], total)
    if plan.images_per_label is not None:
        shares = [plan.images_per_label] * len(classes)
    wanted = dict(zip(classes, shares, strict=True))
    label_of = {image_id: inputs.order.rarest(record) for image_id, record in eligible.items()}

    def score(image_id: str) -> float:
        value = None if inputs.scores is None else inputs.scores.get(image_id, label_of[image_id])
        assert value is not None  # photos without one are refused
        return value

    draw = samplers.draw_top(label_of, score, wanted, plan.seed, previous)
    parameters = {"num_images": sum(wanted.values()), "images_per_label": plan.images_per_label, "wanted": wanted}
    return _Rule(draw, parameters, {})


def _parameters(plan: Plan) -> dict[str, Any]:
    """What is the same for all rules; files by name and content."""
    parameters: dict[str, Any] = {
        "use_fine_grained_labels": plan.use_fine_grained_labels,
        "min_annotations": plan.min_annotations,
        "min_score": plan.min_score,
        "require_reviewed": plan.require_reviewed,
    }
    for name in ("reviews", "exclude", "scores"):
        path = getattr(plan, name)
        parameters[name] = None if path is None else {"file": Path(path).name, "sha256": file_sha256(Path(path))}
    return parameters


def _describe(plan: Plan, inputs: _Inputs, testset: Testset) -> Resampled:
    chosen = frozenset(testset.image_ids)
    records = [record for record in inputs.candidates if record.image_id in chosen]
    in_set, in_reference = (
        Counter(label for record in group for label in inputs.order.labels(record))
        for group in (records, inputs.reference)
    )
    names = [label for label in reversed(inputs.order.order) if in_reference[label]][:_MAX_LABELS_PRINTED]
    reasons = Counter(testset.refusals.values())
    return Resampled(
        testset=testset,
        num_users=len({record.user_id for record in records}),
        num_candidates=len(inputs.candidates),
        refused={reason: reasons[reason] for reason in REASONS},
        num_kept=len(chosen & inputs.previous_ids),
        num_previous=len(inputs.previous_ids),
        reference=plan.reference if plan.rule == "matched" else plan.partition,
        frequencies=[
            (label, in_set[label], in_set[label] / max(1, len(records)), in_reference[label] / len(inputs.reference))
            for label in names
        ],
        warnings=_warnings(plan, inputs, testset),
    )


def _warnings(plan: Plan, inputs: _Inputs, testset: Testset) -> list[str]:
    warnings = []
    if plan.rule == "top":
        warnings.append(
            f"the photos have the highest scores of {plan.scores}: the set favours models that made these scores"
        )
    known = {record.image_id for record in inputs.records}
    strangers = len(inputs.reviews.photos.keys() - known)
    if strangers:
        warnings.append(f"--reviews={plan.reviews}: {strangers:,} of its photos are not in the dataset")
    if inputs.previous is not None and inputs.previous.metadata_sha256 not in (None, testset.metadata_sha256):
        warnings.append(f"{inputs.previous.name} was made from other metadata than {plan.dataset_dir} has now")
    return warnings
