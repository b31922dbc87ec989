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
from flair.terminal.table import Columns
from flair.testsets import samplers, strata
from flair.testsets.eligibility import REASONS, Criteria, heldout_image_ids, refusals
from flair.testsets.samplers import Draw
from flair.testsets.strata import LabelOrder

_MAX_LABELS_PRINTED = 40


class Plan(NamedTuple):
    """What is asked for; the fields are the flags of `flair.sample_testset`, checked and with their defaults."""

    rule: str
    dataset_dir: str
    name: str
    testsets_dir: str
    starting_from: str | None
    revision: int | None
    seed: int
    partition: str
    num_images: int | None
    use_fine_grained_labels: bool
    reviews: str | None
    exclude: str | None
    min_annotations: int
    require_reviewed: bool
    min_positives: int
    reference: str
    match: str
    borrow: bool
    images_per_label: int | None
    scores: str | None
    min_score: float | None
    tfrecords_dir: str | None


class Resampled(NamedTuple):
    """A set, the users that its photos are of, and lines that say how it was made and what is in it."""

    testset: Testset
    num_users: int
    lines: list[str]


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
    if plan.rule == "seen_users":
        return _Rule(samplers.draw_uniform(eligible, total, plan.seed, inputs.previous_ids), {"num_images": total}, {})
    if labels is not None:
        kept = [label for label in inputs.order.order if label in labels]
        parameters = {"num_images": total, "min_positives": plan.min_positives, "labels": kept}
        if not kept:
            problem = f"no label would have {plan.min_positives} positives among {total:,} photos"
            return _Rule(Draw(frozenset(), problem), parameters, {})
        draw = samplers.draw_with_positives(
            eligible, kept, inputs.order, plan.min_positives, total, plan.seed, inputs.previous_ids
        )
        return _Rule(draw, parameters, {})
    if plan.rule == "matched":
        return _draw_matched(plan, inputs, eligible, total)
    return _draw_top(plan, inputs, eligible, total)


def _draw_matched(plan: Plan, inputs: _Inputs, eligible: Mapping[str, Record], total: int) -> _Rule:
    if plan.match == "user_size":
        stratum_of = strata.stratum_by_user_size(inputs.records, inputs.reference)
    elif plan.match == "score" and inputs.scores is not None:
        stratum_of = strata.stratum_by_score(inputs.order, inputs.scores)
    else:
        stratum_of = strata.stratum_by_labels(inputs.order)
    of_reference = strata.in_strata(inputs.reference, stratum_of)
    reference = strata.histogram(of_reference.values())
    classes = [label for label in (*inputs.order.order, strata.ALL_PHOTOS) if label in reference]
    if plan.images_per_label is None:
        wanted = strata.targets(reference, classes, total)
    else:
        wanted = {label: strata.largest_remainder(reference[label], plan.images_per_label) for label in classes}
    of_photo = strata.in_strata(eligible.values(), stratum_of)
    labels = {record.image_id: inputs.order.labels(record) for record in (*inputs.reference, *eligible.values())}
    balance = samplers.LabelBalance(labels, samplers.grouped(of_reference))
    draw = samplers.draw_matched(of_photo, wanted, balance, plan.seed, inputs.previous_ids, plan.borrow)
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


def _draw_top(plan: Plan, inputs: _Inputs, eligible: Mapping[str, Record], total: int) -> _Rule:
    counts = Counter(inputs.order.rarest(record) for record in inputs.reference)
    classes = [label for label in inputs.order.order if label in counts]
    shares = strata.largest_remainder([counts[label] for label in classes], total)
    if plan.images_per_label is not None:
        shares = [plan.images_per_label] * len(classes)
    wanted = dict(zip(classes, shares, strict=True))
    label_of = {image_id: inputs.order.rarest(record) for image_id, record in eligible.items()}

    assert inputs.scores is not None
    found = ((image_id, inputs.scores.get(image_id, label)) for image_id, label in label_of.items())
    scores = {image_id: score for image_id, score in found if score is not None}  # those without one are refused
    draw = samplers.draw_top(label_of, scores, wanted, plan.seed, inputs.previous_ids)
    parameters = {"num_images": sum(wanted.values()), "images_per_label": plan.images_per_label, "wanted": wanted}
    return _Rule(draw, parameters, {})


def _parameters(plan: Plan) -> dict[str, Any]:
    """What is the same for all rules; files by name and content."""
    plain = ("use_fine_grained_labels", "min_annotations", "min_score", "require_reviewed")
    parameters: dict[str, Any] = {name: getattr(plan, name) for name in plain}
    for name in ("reviews", "exclude", "scores"):
        path = getattr(plan, name)
        parameters[name] = None if path is None else {"file": Path(path).name, "sha256": file_sha256(Path(path))}
    return parameters


def _describe(plan: Plan, inputs: _Inputs, testset: Testset) -> Resampled:
    chosen = frozenset(testset.image_ids)
    records = [record for record in inputs.candidates if record.image_id in chosen]
    reasons = Counter(testset.refusals.values())
    refused = ", ".join(f"{reasons[reason]:,} {reason}" for reason in REASONS if reasons[reason]) or "none"
    lines = [f"Of {len(inputs.candidates):,} photos of {testset.partition}, refused: {refused}."]
    if testset.starting_from is not None:
        before = inputs.previous_ids
        lines.append(f"Kept {len(chosen & before):,} of the {len(before):,} photos of {testset.starting_from}.")
    in_set, in_reference = (
        Counter(label for record in group for label in inputs.order.labels(record))
        for group in (records, inputs.reference)
    )
    columns = Columns("<24", ">12,", ">9.1%", ">12.1%")
    reference = plan.reference if plan.rule == "matched" else plan.partition
    lines.append(columns.line("label", "in the set", "of it", f"of {reference}"))
    for label in [label for label in reversed(inputs.order.order) if in_reference[label]][:_MAX_LABELS_PRINTED]:
        shares = in_set[label] / max(1, len(records)), in_reference[label] / len(inputs.reference)
        lines.append(columns.line(label, in_set[label], *shares))
    lines += (f"Warning: {warning}" for warning in _warnings(plan, inputs, testset))
    return Resampled(testset, len({record.user_id for record in records}), lines)


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
