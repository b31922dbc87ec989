"""Features of all photos of some records, in files beside them that several runs share.

A folder `<network>-<digest>` holds, for one network with its weights, one input size and one type of numbers:
<partition>.npy         [photos, d], whole photos as in evaluation, in the order of `Records.photo_index`
train.view<k>.npy       the same with the k-th random window and flips
<partition>.labels.npy  a row per label of a photo: photo, kind (0 coarse, 1 fine-grained), column
Beside each array of features a .json says what it was made from, whose photos they are, and the CRC-32C of the array;
`flair.near_duplicates --features` reads such a pair, too.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmark.data.features import Features, LabelColumns
from benchmark.data.inputs import FeatureInputs, Inputs, PixelInputs
from benchmark.data.labels import read_photo_table
from benchmark.data.records import Records, Task
from benchmark.features.extraction import compiled, fill
from benchmark.model.identity import network_digest
from benchmark.model.trainable import body_and_head
from flair.dataset.catalog import PARTITIONS
from flair.errors import FlairError
from flair.files import checked_json, feature_file, lock, npy_file

if TYPE_CHECKING:
    import tensorflow as tf

    from benchmark.model.saved import SavedModel

_LABEL = np.dtype([("photo", "<i8"), ("kind", "u1"), ("column", "<i4")])
_KINDS = ("labels", "fine_grained_labels")
_BATCH_SIZE = 64


class Network(NamedTuple):
    """What features are computed by.

    Attributes:
      name: of the network, as --model has it.
      digest: `model.identity.network_digest` of the network below its classifier.
      image_size: (height, width) of its input.
      size: features per photo.
      compute_dtype: arithmetic of its layers.
      dtype: `float32` or `float16`, in which features are kept.
    """

    name: str
    digest: str
    image_size: tuple[int, int]
    size: int
    compute_dtype: str
    dtype: str


class FeatureCache:
    """The features of `records` by one network.

    Args:
      parent: folder for all of the records' features; None: `<records>.features` beside the records.
      network: by which they are.
      body: computes what is missing; None: that is an error.
      is_copy: the records are another machine's copy, whose times say nothing about the age of the features.
    """

    def __init__(
        self,
        parent: str | os.PathLike[str] | None,
        records: Records,
        network: Network,
        body: tf.keras.Model | None,
        is_copy: bool = False,
    ) -> None:
        self._records, self._network, self._body, self._is_copy = records, network, body, is_copy
        self._forward = None if body is None else compiled(body)
        # Every photo is read for it, and all arrays of a partition and its labels need it.
        self._table = functools.lru_cache(maxsize=1)(lambda partition: read_photo_table(records, partition))
        self._facts = {**network._asdict(), "image_size": list(network.image_size), "records": records.digest()}
        key = hashlib.sha256(json.dumps(self._facts, sort_keys=True).encode()).hexdigest()[:16]
        name = "".join(letter if letter.isalnum() else "_" for letter in network.name)
        self.folder = Path(parent or feature_dir(records)) / f"{name}-{key}"

    def inputs(self, task: Task, views: int = 0, partitions: Sequence[str] = PARTITIONS) -> FeatureInputs:
        """Features of val and test photos as they are, and of train photos to train on; computed where missing.

        Args:
          views: augmented views of each training photo; 0: as they are.
          partitions: which are wanted.

        Raises:
          FlairError: a photo cannot be decoded, or there is something else where features should be.
        """
        if self._body is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        features = {}
        for partition in partitions:
            of_partition = range(views) if views and partition == "train" else [None]
            arrays = [self._array(partition, view) for view in of_partition]
            features[partition] = Features(arrays, self._labels(partition, task), task)
        return FeatureInputs(self._records, features)

    def _array(self, partition: str, view: int | None = None) -> np.ndarray:
        name = partition if view is None else f"{partition}.view{view}"
        path = self.folder / f"{name}.npy"
        with self._alone(path):
            try:
                return self._open(path, partition)
            except FileNotFoundError:
                pass
            except feature_file.DamagedFeatures as error:
                if self._body is None:
                    raise
                print(f"{error}; its features are made anew", file=sys.stderr, flush=True)
            self._make(path, partition, view)
            return self._open(path, partition)

    def _open(self, path: Path, partition: str) -> np.ndarray:
        values, about = feature_file.read(path)
        image_ids = about.pop("image_ids")
        self._check_age(path, partition, about)
        if {name: about.get(name) for name in self._facts} != self._facts or len(image_ids) != self._count(partition):
            raise FlairError(
                f"{path}: holds features of other photos or of another network than its folder's name says; delete it, "
                "or give another --feature_dir"
            )
        return values

    def _make(self, path: Path, partition: str, view: int | None) -> None:
        from benchmark.data.opening import make_task
        from benchmark.data.pipeline import EvaluationData

        if self._forward is None:
            raise self._missing(path)
        dtype, count = np.dtype(self._network.dtype), self._count(partition)
        facts = {**self._facts, "partition": partition, "view": view, "changed": self._changed(partition)}
        growing = feature_file.growing(path, (count, self._network.size), dtype, facts)
        photos = self._records, partition, make_task(self._records, False, None), self._network.image_size, _BATCH_SIZE
        batches = (pixels for pixels, _ in EvaluationData(*photos, range(growing.num_done, count), view))
        fill(growing, self._forward, batches, dtype, f"features of {path.stem}")
        ids = enumerate(self._table(partition).image_ids)
        feature_file.finish(growing, path, [name or f"{partition}/{row}" for row, name in ids], facts)

    def _labels(self, partition: str, task: Task) -> LabelColumns:
        path = self.folder / f"{partition}.labels.npy"
        with self._alone(path):
            try:
                rows = self._open_labels(path, partition)
            except FileNotFoundError:
                rows = self._read_labels(path, partition)
            except FlairError as error:
                print(f"{error}: its labels are read anew", file=sys.stderr, flush=True)
                rows = self._read_labels(path, partition)
        rows = rows[rows["kind"] == _KINDS.index(task.feature)]
        starts = np.searchsorted(rows["photo"], np.arange(self._count(partition) + 1))
        return LabelColumns(starts, rows["column"])

    def _open_labels(self, path: Path, partition: str) -> np.ndarray:
        rows = npy_file.read_rows(path, _LABEL)
        about, expected = checked_json.read(feature_file.ids_path(path)), self._about_labels(rows)
        if {name: about.get(name) for name in expected} != expected:
            raise FlairError(f"{path}: does not belong to {feature_file.ids_path(path).name}")
        self._check_age(path, partition, about)
        return rows

    def _read_labels(self, path: Path, partition: str) -> np.ndarray:
        if self._body is None:
            raise self._missing(path)
        table = self._table(partition)
        found = [
            (photo, kind, column)
            for kind, of_photos in enumerate((table.labels, table.fine_grained_labels))
            for photo, columns in enumerate(of_photos)
            for column in columns
        ]
        rows = np.array(found, _LABEL)
        about = {**self._about_labels(rows), "changed": self._changed(partition)}
        checked_json.write(feature_file.ids_path(path), about)
        npy_file.write_rows(path, rows)
        return rows

    def _about_labels(self, rows: np.ndarray) -> dict[str, Any]:
        return {"records": self._facts["records"], "rows": len(rows), "rows_crc32c": npy_file.crc32c(rows)}

    def _changed(self, partition: str) -> int:
        """When the partition's files were changed last, in nanoseconds: their digest is over names and sizes alone."""
        return max(os.stat(path).st_mtime_ns for path in self._records.photo_index(partition).paths)

    def _check_age(self, path: Path, partition: str, about: Mapping[str, Any]) -> None:
        if not self._is_copy and about.get("changed") != self._changed(partition):
            raise feature_file.DamagedFeatures(
                f"{path}: {self._records.root} was changed since, or copied without its times (cp -a)"
            )

    def _count(self, partition: str) -> int:
        return len(self._records.photo_index(partition).offset)

    def _missing(self, path: Path) -> FlairError:
        return FlairError(f"{path}: no such file; copy this folder of features from the machine that started the run")

    def _alone(self, path: Path) -> contextlib.AbstractContextManager[Any]:
        if self._body is None:  # nothing is written
            return contextlib.nullcontext()

        def say() -> None:
            print(f"{path}: waiting for another run that computes it", flush=True)

        return lock.exclusive(self.folder, f"{self.folder}: is busy", patience=math.inf, on_wait=say)


class FeatureSource(NamedTuple):
    """Features that are computed already, as plain data: another process opens them with it."""

    parent: str | None
    network: Network
    views: int

    def open(self, records: Records, task: Task) -> FeatureInputs:
        """The features of these records, which have to be there."""
        return FeatureCache(self.parent, records, self.network, None, is_copy=True).inputs(task, self.views)


def inputs_of(
    model: tf.keras.Model,
    saved: SavedModel,
    image_size: tuple[int, int],
    feature_dir: str | None,
    records: Records,
    task: Task,
    partition: str,
    batch_size: int,
) -> Inputs:
    """What a saved model is given: photos, or what some training left for it in `feature_dir`, whatever its head.

    Raises:
      FlairError: there are no such features, or they are not of these records as they are now.
    """
    if feature_dir is None:
        return PixelInputs(records, task, image_size, batch_size)
    body, _ = body_and_head(model)
    digest, size = network_digest(body), int(body.output_shape[-1])
    for dtype in ("float32", "float16"):
        network = Network(saved.network, digest, image_size, size, saved.compute_dtype, dtype)
        cache = FeatureCache(feature_dir, records, network, None)
        if (cache.folder / f"{partition}.npy").exists():
            try:
                return cache.inputs(task, partitions=[partition])
            except feature_file.DamagedFeatures as error:
                raise FlairError(f"{error}; leave --feature_dir out, or train with it once more") from None
    raise FlairError(
        f"--feature_dir={feature_dir}: has no features of whole {partition} photos of {records.root} by this model; a "
        "training with --trainable=head leaves them there. Leave the flag out to compute them"
    )


def zeros(records: Records, task: Task, size: int) -> FeatureInputs:
    """Features that are all zero and take no memory, without labels: for timing."""

    def of(partition: str) -> Features:
        count = len(records.photo_index(partition).offset)
        values = np.broadcast_to(np.zeros((), np.float32), (count, size))
        return Features([values], LabelColumns(np.zeros(count + 1, np.int64), np.zeros(0, np.int32)), task)

    return FeatureInputs(records, {partition: of(partition) for partition in PARTITIONS})


def feature_dir(records: Records) -> Path:
    """Where the features of records are kept: `<records>.features` beside them."""
    root = Path(os.path.abspath(records.root))
    return root.with_name(f"{root.name}.features")
