"""Every metric of scored photos, and of each resample of their users."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from benchmark.evaluation.bootstrap import UserBootstrap
from benchmark.metrics import calibration
from benchmark.metrics import histogram as score_histogram
from flair.terminal.progress import Progress

# Sorting every decision for every label takes time and memory; beyond this many only the published precision is given.
EXACT_DECISIONS = 10_000_000
_COLUMNS_AT_ONCE = 64
_SUMS_AT_ONCE = 1 << 18  # cells times resamples of one matrix product: they stay in the processor's cache
_CELLS = 2 * score_histogram.NUM_BUCKETS


class ScoredPhotos(NamedTuple):
    """Scores float32 and labels uint8, both [photos, labels], losses float32 [photos], user numbers int [photos].

    Scores and labels may be memory-mapped: they are read in blocks of columns. Users are numbered from 0 on.
    """

    scores: np.ndarray
    labels: np.ndarray
    losses: np.ndarray
    users: np.ndarray
    num_users: int

    @property
    def is_exact_feasible(self) -> bool:
        """Whether average precision over every distinct score is computed, too."""
        return self.scores.size <= EXACT_DECISIONS

    def columns(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(scores, labels) of one label after the other, each [photos]."""
        for start in range(0, self.scores.shape[1], _COLUMNS_AT_ONCE):
            block = slice(start, start + _COLUMNS_AT_ONCE)
            scores, labels = np.array(self.scores[:, block].T), np.array(self.labels[:, block].T)
            yield from zip(scores, labels, strict=True)


class Replicates(NamedTuple):
    """Metrics of every resample: name -> float64 [resamples], and averaged precision float64 [resamples, labels]."""

    metrics: dict[str, np.ndarray]
    averaged_precision: np.ndarray


def histogram(photos: ScoredPhotos) -> np.ndarray:
    """`histogram.histogram` of all photos, a few labels at a time: int64 [labels, 2, 200]."""
    return np.concatenate(
        [score_histogram.histogram(scores[:, None], labels[:, None]) for scores, labels in photos.columns()]
    )


def metrics(photos: ScoredPhotos, is_binary: bool) -> dict[str, float]:
    """The published metrics, exactly as training computes them; then calibration error, exact precision, accuracy."""
    counts = histogram(photos)
    loss_sum = float(np.sum(photos.losses, dtype=np.float64))
    found = score_histogram.finalize(counts, loss_sum, len(photos.losses), is_binary)
    if is_binary:
        found["accuracy"] = float(_correct(counts[0]) / max(len(photos.losses), 1))
    excess = np.stack([_excess(scores, labels) for scores, labels in photos.columns()])
    num_photos = np.array([len(photos.losses)])
    of_label = np.stack([calibration.error_of(one[:, None], num_photos) for one in excess], axis=1)
    pooled_error = calibration.error_of(excess.sum(axis=0)[:, None], num_photos * len(excess))
    errors = calibration.combine(of_label, pooled_error, is_binary)
    found |= {name: float(value[0]) for name, value in errors.items()}
    if photos.is_exact_feasible:
        found |= score_histogram.exact_metrics(photos.scores, photos.labels, is_binary)
    return found


def replicate(
    photos: ScoredPhotos, bootstrap: UserBootstrap, is_binary: bool, progress: Progress | None = None
) -> Replicates:
    """The metrics of `metrics` in every resample.

    A label that has photos, but none in a resample, has no averaged precision there. `macro_` metrics then take the
    sample's, for the resample stands for another sample of such photos, not for one without the label.
    """
    num_labels, resamples = photos.scores.shape[1], bootstrap.num_resamples
    by_label = {name: np.empty((resamples, num_labels)) for name in ("precision", "recall", "averaged_precision")}
    has_photos = np.empty((resamples, num_labels), bool)
    exact = np.empty((resamples, num_labels if photos.is_exact_feasible else 0))
    num_photos = bootstrap.sums(np.ones(len(photos.users)), photos.users)
    pooled_excess, errors = np.zeros((calibration.NUM_BINS, resamples)), np.empty((resamples, num_labels))
    pooled = np.zeros((_CELLS, resamples))
    for column, (scores, labels) in enumerate(photos.columns()):
        cells = score_histogram.NUM_BUCKETS * labels.astype(np.int64) + score_histogram.bucket_of(scores)
        counts = bootstrap.counts(cells, photos.users, _CELLS)
        pooled += counts
        histograms = _by_resample(counts)
        has_photos[:, column] = histograms[:, 1].any(axis=1)
        for name, values in score_histogram.curves(histograms).items():
            by_label[name][:, column] = values
        cells = calibration.bin_of(scores)
        excess = bootstrap.sums_in_cells(scores - labels, cells, photos.users, calibration.NUM_BINS)
        pooled_excess += excess
        errors[:, column] = calibration.error_of(excess, num_photos)
        if photos.is_exact_feasible:
            exact[:, column] = _exact(scores, labels, photos.users, bootstrap)
        if progress is not None:
            progress.add()
    histograms = _by_resample(pooled)
    in_sample = score_histogram.curves(histogram(photos).astype(np.float64))
    loss = bootstrap.mean(photos.losses, photos.users)
    combined = score_histogram.combine(
        {name: _imputed(values, has_photos, in_sample[name]) for name, values in by_label.items()},
        score_histogram.curves(histograms),
        is_binary,
    )
    found = {"loss": loss, **combined}
    if is_binary:
        found["accuracy"] = _correct(np.moveaxis(histograms, 0, -1)) / histograms.sum(axis=(1, 2))
    pooled_error = calibration.error_of(pooled_excess, num_photos * num_labels)
    found |= calibration.combine(errors, pooled_error, is_binary)
    if photos.is_exact_feasible:
        exact_in_sample = np.array([score_histogram.pooled_average_precision(*one) for one in photos.columns()])
        found |= _exact_metrics(photos, _imputed(exact, has_photos, exact_in_sample), bootstrap, is_binary)
    return Replicates(found, np.where(has_photos, by_label["averaged_precision"], np.nan))


def _by_resample(counts: np.ndarray) -> np.ndarray:
    """[cells, resamples] to float64 [resamples, 2, 200]."""
    return np.ascontiguousarray(counts.T, np.float64).reshape(-1, 2, score_histogram.NUM_BUCKETS)


def _imputed(values: np.ndarray, has_photos: np.ndarray, in_sample: np.ndarray) -> np.ndarray:
    """Fills what a resample cannot tell with the value [labels] of the sample."""
    return np.where(has_photos, values, in_sample)


def _excess(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Sum of (score - label) of each bin of calibration: float64 [bins]."""
    difference = scores.astype(np.float64) - labels
    return np.bincount(calibration.bin_of(scores), difference, minlength=calibration.NUM_BINS)


def _correct(counts: np.ndarray) -> np.ndarray:
    """Right decisions of one label's histogram [2, 200, ...]."""
    half = score_histogram.FIRST_BUCKET_ABOVE_HALF
    return np.asarray(counts[0, :half].sum(axis=0) + counts[1, half:].sum(axis=0))


def _exact_metrics(
    photos: ScoredPhotos, by_label: np.ndarray, bootstrap: UserBootstrap, is_binary: bool
) -> dict[str, np.ndarray]:
    if is_binary:
        return {"exact_average_precision": by_label[:, 0]}
    users = np.repeat(photos.users, photos.scores.shape[1])
    micro = _exact(np.ravel(photos.scores), np.ravel(photos.labels), users, bootstrap)
    return {"macro_exact_average_precision": by_label.mean(axis=1), "micro_exact_average_precision": micro}


def _exact(scores: np.ndarray, labels: np.ndarray, users: np.ndarray, bootstrap: UserBootstrap) -> np.ndarray:
    """Average precision over every distinct score in each resample: float64 [resamples]; 0 without positives.

    Sum over the scores that a positive has of (positives with this score) x (precision from this score on), divided by
    all positives. Only those scores matter, so decisions are first counted between one of them and the next.
    """
    order = np.argsort(-scores, kind="stable")
    scores, is_positive, users = scores[order], labels[order] > 0, users[order]
    levels = np.unique(scores[is_positive])[::-1]
    # The number of levels above a decision's own or next one; what scores below all of them does not matter.
    segment = np.searchsorted(-levels, -scores, side="left")
    total, hits_before, seen_before = np.zeros((3, bootstrap.num_resamples), np.float32)
    at_once = max(1, _SUMS_AT_ONCE // bootstrap.num_resamples)
    for start in range(0, len(levels), at_once):
        size = min(at_once, len(levels) - start)
        chosen = slice(int(np.searchsorted(segment, start)), int(np.searchsorted(segment, start + size)))
        cells, hit, hit_users = segment[chosen] - start, is_positive[chosen], users[chosen]
        seen = np.cumsum(bootstrap.counts(cells, hit_users, size), axis=0)
        seen += seen_before
        hits = bootstrap.counts(cells[hit], hit_users[hit], size)
        hits_so_far = np.cumsum(hits, axis=0)
        hits_so_far += hits_before
        seen_before, hits_before = seen[-1].copy(), hits_so_far[-1]
        hits *= hits_so_far
        hits /= np.maximum(seen, 1, out=seen)
        total += hits.sum(axis=0)
    return np.divide(total, hits_before, out=np.zeros(len(total)), where=hits_before > 0)
