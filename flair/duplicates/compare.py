"""Pairs of photos compared in full, pixel by pixel, in both orientations."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flair.dataset import images
from flair.dataset.metadata import Record
from flair.duplicates import alignment
from flair.duplicates.distance import Moments, dssim_of, mirror, moments, squared_distance

DISTANCE = np.dtype([("l2", "<i8"), ("mirrored", "?")])
_MAX_PHOTOS = 1024  # kept decoded by each worker, 200 MB
_MAX_MOMENTS = 64  # kept by each worker, 150 MB
_MAX_DETAILS = 128  # kept by each worker, 85 MB


class ComparedPair(NamedTuple):
    """Two photos; with `mirrored` the second one is turned left to right before they are compared."""

    first: Record
    second: Record
    mirrored: bool = False


class Context(NamedTuple):
    """Where the photos are, and whether mirrored ones are compared too."""

    dataset_dir: Path
    both_orientations: bool


def compare(context: Context, pairs: list[ComparedPair]) -> NDArray[np.void]:
    """l2 of each pair, the lesser of both orientations, and whether that is the mirrored one: DISTANCE [k]."""
    found = np.empty(len(pairs), DISTANCE)
    for row, pair in enumerate(pairs):
        one, other = _pixels(context, pair.first), _pixels(context, pair.second)
        found[row] = least_distance(one, other, context.both_orientations)
    return found


def compare_structure(context: Context, pairs: list[ComparedPair]) -> NDArray[np.float64]:
    """dssim of each pair, float64 [k]."""
    found = np.empty(len(pairs))
    for row, pair in enumerate(pairs):
        one, other = _pixels(context, pair.first), _pixels(context, pair.second)
        own, theirs = _moments_of(context, pair.first), _moments_of(context, pair.second)
        if pair.mirrored:
            other, theirs = mirror(other), theirs.mirrored()
        found[row] = dssim_of(one, own, other, theirs)
    return found


def compare_alignment(context: Context, pairs: list[ComparedPair]) -> NDArray[np.float64]:
    """The correlation of the detail of each pair where they are laid over each other, float64 [k]."""
    details = ((_detail_of(context, pair.first), _detail_of(context, pair.second)) for pair in pairs)
    return np.array([alignment.align(one, other, context.both_orientations) for one, other in details])


def least_distance(one: NDArray[np.uint8], other: NDArray[np.uint8], both_orientations: bool) -> tuple[int, bool]:
    """l2 in the nearer orientation, and whether that is the mirrored one."""
    direct = squared_distance(one, other)
    if not both_orientations:
        return direct, False
    turned = squared_distance(one, mirror(other))
    return min(direct, turned), turned < direct


def forget_photos() -> None:
    """Frees what this process keeps decoded; for the process that compares without workers."""
    _pixels.cache_clear()
    _moments_of.cache_clear()
    _detail_of.cache_clear()


@functools.lru_cache(_MAX_PHOTOS)
def _pixels(context: Context, record: Record) -> NDArray[np.uint8]:
    return images.read_pixels(context.dataset_dir, record).data


@functools.lru_cache(_MAX_MOMENTS)
def _moments_of(context: Context, record: Record) -> Moments:
    return moments(_pixels(context, record))


@functools.lru_cache(_MAX_DETAILS)
def _detail_of(context: Context, record: Record) -> alignment.Detail:
    return alignment.detail_of(_pixels(context, record))
