"""What an audit found: neighbors, components of near duplicates, and a summary whose numbers add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flair.curation.exclusion import Exclusion, connected_components
from flair.dataset.catalog import PARTITIONS
from flair.duplicates.rule import METRICS
from flair.duplicates.scope import COMPARED, RELATIONS, Scope, pair_codes
from flair.terminal.table import Columns

ALIGNMENT = "alignment"  # among the metrics of neighbors.json: 1 - the correlation of aligned detail
KINDS = ("same file", "same pixels", "near")
RULE = (
    "A component of near duplicates that has photos in several partitions leaves val and test; train keeps its photos.",
    "Of a component inside one partition one photo stays, the first by id.",
    "A component inside one user may not straddle a split of that user's photos.",
)


class Found(NamedTuple):
    """The pairs of an audit, NEAR_PAIR [k], their squared feature distances float64 [k] (NaN: unknown), and for each
    pair which of KINDS of duplicate it is: int8 [k], -1 for none.

    `aligned` are pairs to review, ALIGNED_PAIR [m]: near by features, with detail that agrees, and no duplicates yet;
    None where none were looked for.
    """

    scope: Scope
    pairs: NDArray[Any]
    features: NDArray[np.float64]
    kind: NDArray[np.int8]
    aligned: NDArray[Any] | None = None

    @property
    def duplicates(self) -> NDArray[Any]:
        """The pairs called duplicates."""
        return np.asarray(self.pairs[self.kind >= 0])


def nearest(pairs: NDArray[Any], scope: Scope, top_k: int) -> NDArray[np.bool_]:
    """Which pairs are listed: bool [2, k], for the first and for the second photo of each pair.

    Of the pairs of a photo those with the `top_k` least l2 are listed for it, equal ones by the id of the other photo.
    """
    photo = np.concatenate([pairs["first"], pairs["second"]])
    other = np.concatenate([pairs["second"], pairs["first"]])
    order = np.lexsort((_rank(scope)[other], np.tile(pairs["l2"], 2), photo))
    # The place of each entry among those of its photo, which stand together now.
    starts = np.flatnonzero(np.diff(photo[order], prepend=-1))
    position = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    listed = np.empty(len(order), bool)
    listed[order] = position < top_k
    return listed.reshape(2, -1)


def neighbors(
    found: Found, listed: NDArray[np.bool_], metrics: Collection[str]
) -> Iterator[tuple[str, dict[str, list[list[Any]]]]]:
    """Yields image_id and {metric: [[other, distance], ...]} of the `listed` pairs (see `nearest`), by id.

    Neighbors are nearest first, equal ones by id. A metric lists the pairs it was computed for; sha256 lists equal
    files and equal pixels, both at distance 0.
    """
    names = [record.image_id for record in found.scope.records]
    rank = _rank(found.scope)
    equal = (found.kind >= 0) & (found.kind < KINDS.index("near"))
    values = {
        "sha256": np.where(equal, 0.0, np.nan),
        "l2": found.pairs["l2"].astype(float),
        "dssim": found.pairs["dssim"],
        "features": found.features,
    }
    entries = {name: _sorted_entries(found.pairs, values[name], listed, rank) for name in METRICS if name in metrics}
    if found.aligned is not None:
        every = np.ones((2, len(found.aligned)), bool)
        entries[ALIGNMENT] = _sorted_entries(found.aligned, np.subtract(1.0, found.aligned["correlation"]), every, rank)
    starts = {name: np.searchsorted(rank[photo], np.arange(len(names) + 1)) for name, (photo, _, _) in entries.items()}
    for place, row in enumerate(np.argsort(rank).tolist()):
        lists = {}
        for name, (_, other, value) in entries.items():
            part = slice(starts[name][place], starts[name][place + 1])
            if part.start < part.stop:
                near = zip(other[part].tolist(), value[part].tolist(), strict=True)
                lists[name] = [[names[neighbor], distance] for neighbor, distance in near]
        if lists:
            yield names[row], lists


def _sorted_entries(
    pairs: NDArray[Any], values: NDArray[np.float64], listed: NDArray[np.bool_], rank: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float64]]:
    """Photo, other photo and distance of each listed pair that has one, by the photo's id, distance, other id."""
    sides = [np.flatnonzero(side & ~np.isnan(values)) for side in listed]
    photo = np.concatenate([pairs["first"][sides[0]], pairs["second"][sides[1]]])
    other = np.concatenate([pairs["second"][sides[0]], pairs["first"][sides[1]]])
    value = np.concatenate([values[side] for side in sides])
    order = np.lexsort((rank[other], value, rank[photo]))
    return photo[order], other[order], value[order]


def _rank(scope: Scope) -> NDArray[np.int64]:
    """The place of each photo in the order of ids, int64 [n]."""
    by_id = np.argsort(np.array([record.image_id for record in scope.records]))
    rank = np.empty(len(by_id), np.int64)
    rank[by_id] = np.arange(len(by_id))
    return rank


def components(found: Found) -> list[frozenset[str]]:
    """Connected components of the pairs called duplicates, in order of their first id."""
    names = [record.image_id for record in found.scope.records]
    pairs = found.duplicates
    return connected_components(
        (names[one], names[other]) for one, other in zip(pairs["first"].tolist(), pairs["second"].tolist(), strict=True)
    )


def near_duplicates(groups: Sequence[frozenset[str]]) -> dict[str, list[str]]:
    """{image_id: [others of its component]}, all sorted; what `flair.curation.exclusion.read_exclusion` reads."""
    others = {image_id: sorted(group - {image_id}) for group in groups for image_id in group}
    return {image_id: others[image_id] for image_id in sorted(others)}


def duplicate_pairs(found: Found) -> Iterator[dict[str, Any]]:
    """Yields every pair called a duplicate, by ids, with all that is known about it."""
    records, rank, pairs = found.scope.records, _rank(found.scope), found.pairs
    relation = found.scope.relation(pairs["first"], pairs["second"])
    rows = np.flatnonzero(found.kind >= 0)
    ranks = np.sort(np.stack([rank[pairs["first"][rows]], rank[pairs["second"][rows]]]), axis=0)
    for row in rows[np.lexsort((ranks[1], ranks[0]))].tolist():
        pair = pairs[row]
        one, other = sorted((records[pair["first"]], records[pair["second"]]), key=lambda record: record.image_id)
        distances = {"dssim": float(pair["dssim"]), "features": float(found.features[row])}
        yield {
            "image_ids": [one.image_id, other.image_id],
            "partitions": [one.partition, other.partition],
            "relation": RELATIONS[relation[row]],
            "kind": KINDS[found.kind[row]],
            "mirrored": bool(pair["mirrored"]),
            "l2": int(pair["l2"]),
            "detail_correlation": round(float(pair["correlation"]), 6),
            **{metric: value for metric, value in distances.items() if not np.isnan(value)},
        }


def summarize(found: Found, groups: Sequence[frozenset[str]], review_dssim: float) -> dict[str, Any]:
    """The counts of an audit; those of `by relation` and by kind add up to their totals."""
    scope = found.scope
    pairs, kinds = found.pairs, found.kind
    relation = scope.relation(pairs["first"], pairs["second"])
    ids = {name: {record.image_id for record in scope.records if record.partition == name} for name in PARTITIONS}
    exclusion = Exclusion(components=groups)
    leaving = {name: len(exclusion.leaving(inside, name)) for name, inside in ids.items()}
    return {
        "photos": {name: len(inside) for name, inside in ids.items()},
        "users": dict(Counter({record.user_id: record.partition for record in scope.records}.values())),
        "pairs_in_scope": scope.num_pairs(),
        "not_compared": [name for name in RELATIONS if name not in COMPARED[scope.name]],
        "pairs_to_review": {
            "total": len(pairs),
            "by relation": {name: int((relation == code).sum()) for code, name in enumerate(RELATIONS)},
            "of these within the dssim threshold, where it was computed": int((pairs["dssim"] <= review_dssim).sum()),
        },
        **_aligned_counts(found),
        "duplicate_pairs": {
            "total": int((kinds >= 0).sum()),
            "mirrored": int(pairs["mirrored"][kinds >= 0].sum()),
            "by relation": {
                name: {
                    "total": int(((kinds >= 0) & (relation == code)).sum()),
                    **{kind: int(((kinds == row) & (relation == code)).sum()) for row, kind in enumerate(KINDS)},
                }
                for code, name in enumerate(RELATIONS)
            },
            "between partitions": _between_partitions(found),
        },
        "components": _component_counts(scope, groups),
        "affected": {name: _affected(scope, groups, name, ids) for name in ("val", "test")},
        "resolution": {
            "rule": list(RULE),
            "leaving": leaving,
            "staying": {name: len(inside) - leaving[name] for name, inside in ids.items()},
        },
    }


def summary_text(summary: dict[str, Any]) -> str:
    """The summary as a page of text."""
    settings, pairs, groups = summary["settings"], summary["duplicate_pairs"], summary["components"]
    photos = ", ".join(f"{name} {count:,}" for name, count in summary["photos"].items())
    review = summary["pairs_to_review"]
    columns = Columns("<30", *[">13,"] * 4)
    lines = [
        f"Photos: {photos}. Pairs compared: {summary['pairs_in_scope']:,} ({settings['pairs']}).",
        f"Pairs to review (l2 <= {settings['thresholds']['review_l2']:,}): {review['total']:,}.",
        *_aligned_lines(summary),
        f"Pairs called duplicates: {pairs['total']:,}, {pairs['mirrored']:,} of them mirrored.",
        f"  {columns.line('', *KINDS, 'total')}",
    ]
    for name, counts in pairs["by relation"].items():
        if name in summary["not_compared"]:
            lines.append(f"  {columns.line(name, 'not compared', '', '', '')}".rstrip())
        else:
            lines.append(f"  {columns.line(name, *(counts[kind] for kind in (*KINDS, 'total')))}")
    if pairs["between partitions"]:
        between = ", ".join(f"{name} {count:,}" for name, count in pairs["between partitions"].items())
        lines.append(f"  across partitions: {between}")
    lines.append(
        f"Components: {groups['total']:,} of {groups['photos']:,} photos, the largest of {groups['largest']:,}; "
        + ", ".join(f"{name} {count:,}" for name, count in groups["by relation"].items())
    )
    for name, counts in summary["affected"].items():
        lines.append(
            f"Affected in {name}: {counts['photos']:,} photos ({counts['share']:.3%}) of {counts['users']:,} users "
            f"have a near duplicate; {counts['with one elsewhere']:,} in another partition, "
            f"{counts['with one in train']:,} in train."
        )
    leaving = ", ".join(f"{name} {count:,}" for name, count in summary["resolution"]["leaving"].items())
    rules = (f"  {sentence}" for sentence in summary["resolution"]["rule"])
    return "\n".join([*lines, "Rule:", *rules, f"  So these leave: {leaving}.", ""])


def _aligned_counts(found: Found) -> dict[str, Any]:
    if found.aligned is None:
        return {}
    far = ~np.isin(pair_codes(found.aligned), pair_codes(found.pairs))
    return {"aligned_pairs": {"total": len(far), "not within review_l2": int(far.sum())}}


def _aligned_lines(summary: dict[str, Any]) -> list[str]:
    if "aligned_pairs" not in summary:
        return []
    counts, settings = summary["aligned_pairs"], summary["settings"]
    return [
        f"Pairs to review by alignment (of the {settings['feature_neighbors']} nearest by features, correlation >= "
        f"{settings['thresholds']['review_alignment']:g}): {counts['total']:,}, {counts['not within review_l2']:,} of "
        "them not within review_l2."
    ]


def _between_partitions(found: Found) -> dict[str, int]:
    pairs = found.duplicates
    names = Counter(
        f"{PARTITIONS[one]}-{PARTITIONS[other]}"
        for one, other in zip(
            found.scope.partition[pairs["first"]], found.scope.partition[pairs["second"]], strict=True
        )
        if one != other
    )
    return dict(sorted(names.items()))


def _component_counts(scope: Scope, groups: Sequence[frozenset[str]]) -> dict[str, Any]:
    owner = {record.image_id: record for record in scope.records}
    relations = Counter(dict.fromkeys(RELATIONS, 0))
    for group in groups:
        users, partitions = {owner[i].user_id for i in group}, {owner[i].partition for i in group}
        relations[RELATIONS[0 if len(partitions) > 1 else 1 if len(users) > 1 else 2]] += 1
    sizes = Counter(len(group) for group in groups)
    return {
        "total": len(groups),
        "photos": sum(len(group) for group in groups),
        "largest": max(sizes, default=0),
        "by size": {str(size): sizes[size] for size in sorted(sizes)},
        "by relation": dict(relations),
    }


def _affected(
    scope: Scope, groups: Sequence[frozenset[str]], partition: str, ids: dict[str, set[str]]
) -> dict[str, Any]:
    own, train = ids[partition], ids["train"]
    inside = [(group & own, group) for group in groups if group & own]
    users = {record.image_id: record.user_id for record in scope.records if record.partition == partition}
    photos = sum(len(members) for members, _ in inside)
    return {
        "photos": photos,
        "share": round(photos / len(own), 6) if own else 0.0,
        "users": len({users[image_id] for members, _ in inside for image_id in members}),
        "with one elsewhere": sum(len(members) for members, group in inside if group - own),
        "with one in train": sum(len(members) for members, group in inside if group & train),
    }
