"""Builds FLAIR as a data set of TensorFlow Datasets (TFDS) from the folder that download_dataset.py wrote.

Splits are the partitions. Within one, photos lie user after user, users in the order of their ids and photos of a user
in that of the metadata, so that one user, one partition or everything is a slice (`train[3:8]`, `train`, `all`);
`info.metadata["users"][partition][user_id]` is the slice [start, stop). A photo has several labels, so that a label is
no slice of the photos; a file beside them has the places of its photos. A photo is the JPEG that prepare_tfrecords.py
stores, byte for byte. Nothing is downloaded. The API is that of https://www.tensorflow.org/datasets/add_dataset.

Needs the optional package tensorflow-datasets; nothing else imports this module before it is known to be there.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import types
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tensorflow_datasets as tfds
from absl import logging

from benchmark.data.records import photo_places
from benchmark.data.slices import (
    LABEL_FEATURES,
    Shard,
    StreamTable,
    equal_streams,
    interleaved,
    label_rows_path,
    read_label_rows,
    write_label_rows,
)
from flair.curation.heldout import hold_out
from flair.dataset import images
from flair.dataset.catalog import HELDOUT, IMAGE_SIZE, METADATA_FILE, PARTITIONS, TAXONOMY_FILE
from flair.dataset.metadata import User, label_index, load_taxonomy, load_users, records_of
from flair.errors import FlairError
from flair.files.regular_file import file_sha256
from flair.records.tfrecord.frames import read_payloads
from flair.records.tfrecord.reader import Span
from flair.terminal.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf

COMMAND = "tfds build benchmark/flair_tfds.py --manual_dir=DATASET_DIR --data_dir=TFDS_DATA_DIR"
CITATION = """\
@article{song2022flair,
  title={FLAIR: Federated Learning Annotated Image Repository},
  author={Song, Congzheng and Granqvist, Filip and Talwar, Kunal},
  journal={Advances in Neural Information Processing Systems},
  volume={35}, pages={37792--37805}, year={2022}
}
"""
LICENSE = """\
FLAIR's annotations are Apple's, under CC BY-NC 4.0 (https://creativecommons.org/licenses/by-nc/4.0/): not for
commercial purposes. Every photo belongs to its owner under the licence that ATTRIBUTION.txt in the downloaded folder
names; check it yourself before you show one.
"""
_DESCRIPTION = """\
Photos of Flickr users with human labels, for federated learning: a multi-label data set (17 coarse labels, 1,628
fine-grained ones) whose users own their photos. Examples are sorted by user; info.metadata["users"] says which slice
of a split is whose.
"""
# TFDS sorts what it writes through files on disk, of which it fills a thousand, each read as a whole: keys spread over
# 200 of them take a 200th of a partition into memory at once, and are few enough to be open together.
_KEY_SPACE, _NUM_BUCKETS = 1 << 128, 200


class FlairBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Apple's FLAIR, sorted by user; `benchmark.flair_tfds.Flair` is the one that TFDS knows by name.

    Features: `image` (the JPEG; decoded uint8 [256, 256, 3]), `image_id` and `user_id` (text), `labels` and
    `fine_grained_labels` (class labels, one or more; the names are those found in the metadata, sorted, which are the
    columns of `label_index.json`, too).
    """

    name = "flair"
    shows_progress = False  # in lines of our own, for a command that has turned TFDS's bars off
    # Decimal text and seed, `fraction` and `seed`, of photos that `flair.curation.heldout` puts aside; empty: none.
    heldout: Mapping[str, str | int] = types.MappingProxyType({})

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012  TFDS declares it so
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""
    The folder that `python download_dataset.py --dataset_dir=DATASET_DIR` writes (or `python -m flair.synthetic`): with
    {METADATA_FILE}, {TAXONOMY_FILE} and small_images/. Then: {COMMAND}
    """

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(IMAGE_SIZE, IMAGE_SIZE, 3), encoding_format="jpeg"),
                "image_id": tfds.features.Text(),
                "user_id": tfds.features.Text(),
                **{name: tfds.features.Sequence(tfds.features.ClassLabel()) for name in LABEL_FEATURES},
            }
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=features,
            supervised_keys=("image", "labels"),
            disable_shuffling=True,
            homepage="https://github.com/apple/ml-flair",
            citation=CITATION,
            license=LICENSE,
            metadata=tfds.core.MetadataDict(),
        )

    def _download_and_prepare(self, dl_manager: Any, download_config: Any, **options: Any) -> None:
        if download_config.max_examples_per_split is not None:
            raise FlairError(
                "--max_examples_per_split would cut users apart; for a small data set, build from a miniature "
                "(python -m flair.synthetic)"
            )
        super()._download_and_prepare(dl_manager, download_config, **options)
        files = [Path(path) for split in self.info.splits.values() for path in split.filepaths]
        files += [label_rows_path(self.data_dir, partition) for partition in self.info.splits]
        self.info.metadata["shard_sha256"] = {path.name: file_sha256(path) for path in files}

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        dataset_dir = Path(dl_manager.manual_dir)
        if not (dataset_dir / METADATA_FILE).is_file():
            raise FlairError(
                f"--manual_dir={dataset_dir}: has no {METADATA_FILE}; give the folder that download_dataset.py wrote"
            )
        users = sorted(load_users(dataset_dir), key=lambda user: user.user_id)
        for feature in LABEL_FEATURES:
            names = (name for record in records_of(users) for name in getattr(record, feature))
            self.info.features[feature].feature.names = [_checked_name(name) for name in label_index(names)]
        by_partition = {name: [user for user in users if user.partition == name] for name in PARTITIONS}
        if self.heldout:
            by_partition |= self._hold_out(by_partition["train"])
        present = [name for name in (METADATA_FILE, TAXONOMY_FILE) if (dataset_dir / name).is_file()]
        self.info.metadata.update(
            users={name: _slices(members) for name, members in by_partition.items()},
            label_slices={
                name: write_label_rows(label_rows_path(self.data_dir, name), records_of(members))
                for name, members in by_partition.items()
            },
            heldout=dict(self.heldout),
            label_names={feature: self.info.features[feature].feature.names for feature in LABEL_FEATURES},
            source_sha256={name: file_sha256(dataset_dir / name) for name in present},
        )
        if TAXONOMY_FILE in present:
            taxonomy = load_taxonomy(dataset_dir)
            self.info.metadata["taxonomy"] = {name: sorted(taxonomy[name]) for name in sorted(taxonomy)}
        return {name: self._generate_examples(dataset_dir, members) for name, members in by_partition.items()}

    def _generate_examples(self, dataset_dir: Path, users: Sequence[User]) -> Iterator[tuple[int, dict[str, Any]]]:
        records = list(records_of(users))
        shown = Progress(len(records), f"TFDS {users[0].partition}", "photo") if self.shows_progress else None
        with shown or contextlib.nullcontext():
            for number, record in enumerate(records):
                jpeg = images.read_jpeg(dataset_dir, record)
                if jpeg.converted:
                    logging.warning("grayscale photo %s is stored as RGB", record.image_id)
                key = number * _NUM_BUCKETS // len(records) * (_KEY_SPACE // _NUM_BUCKETS) + number
                ids_and_labels = {name: getattr(record, name) for name in ("image_id", "user_id", *LABEL_FEATURES)}
                yield key, {"image": jpeg.data, **ids_and_labels}
                if shown:
                    shown.add()

    def _hold_out(self, users: Sequence[User]) -> dict[str, list[User]]:
        split = hold_out(users, Fraction(self.heldout["fraction"]), int(self.heldout["seed"]))
        if not split.heldout:
            raise FlairError(f"--heldout_fraction={self.heldout['fraction']}: no train user has enough photos for that")
        return {"train": split.users, HELDOUT: split.heldout}

    def users(self, partition: str) -> Mapping[str, Sequence[int]]:
        """User id -> [start, stop) of the partition's photos, in order.

        Raises:
          FlairError: nothing is built there, or there is no such partition.
        """
        if not self.is_prepared():
            raise FlairError(f"{self.data_dir}: FLAIR is not built there; build it with `{COMMAND}`")
        users: Mapping[str, Mapping[str, Sequence[int]]] = self.info.metadata["users"]
        if partition not in users:
            hint = "; build it again with --heldout_fraction" if partition == HELDOUT else ""
            raise FlairError(f"partition {partition!r}: expected one of {', '.join(users)}{hint}")
        return users[partition]

    def as_user_dataset(self, partition: str, user_id: str, **options: Any) -> tf.data.Dataset:
        """One user's photos, in order, as dictionaries of the features; FlairError where there is no such user.

        `options` are those of TFDS's `as_dataset`, as `decoders={"image": tfds.decode.SkipDecoding()}` for JPEG bytes.
        """
        try:
            start, stop = self.users(partition)[user_id]
        except KeyError:
            raise FlairError(f"{self.data_dir}: partition {partition!r} has no user {user_id!r}") from None
        return self.as_dataset(split=f"{partition}[{start}:{stop}]", **options)

    def label_rows(self, partition: str, label: str, feature: str = "labels") -> np.ndarray:
        """Places int64 [photos] of the photos with a label, ascending: the one at `row` is the slice `[row:row + 1]`.

        `feature` is `labels` or `fine_grained_labels`.

        Raises:
          FlairError: no photo of the partition has such a label, or the file of places is damaged.
        """
        num_photos = max(stop for _, stop in self.users(partition).values())
        if "label_slices" not in self.info.metadata:
            raise FlairError(
                f"{self.data_dir}: an earlier version built it, without the places of labels; build it again with "
                "python -m benchmark.tfds_main --overwrite"
            )
        try:
            slice_ = self.info.metadata["label_slices"][partition][feature][label]
        except KeyError:
            raise FlairError(f"{self.data_dir}: no photo of {partition!r} has {label!r} among its {feature}") from None
        return read_label_rows(label_rows_path(self.data_dir, partition), slice_, num_photos)

    def as_label_dataset(
        self, partition: str, label: str, feature: str = "labels", decoders: Any = None
    ) -> tf.data.Dataset:
        """The photos with a label, in order, as dictionaries of the features; only these are read, each at its place.

        What is given and refused is as of `label_rows`; `decoders` are those of TFDS's `as_dataset`.
        """
        import tensorflow as tf

        rows = self.label_rows(partition, label, feature).tolist()
        places = _photo_places(tuple(self.shards(partition)))

        def read() -> Iterator[bytes]:
            for path, offset, length in (places[row] for row in rows):
                yield from read_payloads(path, offset, length)

        serialized = tf.data.Dataset.from_generator(read, output_signature=tf.TensorSpec([], tf.string))
        decode = functools.partial(self.info.features.deserialize_example, decoders=decoders)
        photos = serialized.map(decode, tf.data.AUTOTUNE, deterministic=True)
        return photos.apply(tf.data.experimental.assert_cardinality(len(rows))).prefetch(tf.data.AUTOTUNE)

    def as_partition_dataset(
        self,
        partition: str,
        *,
        seed: int = 0,
        first_epoch: int = 0,
        num_epochs: int = 1,
        batch_size: int | None = None,
        cycle_length: int = 64,
        shuffle_buffer: int = 4096,
        decoders: Any = None,
    ) -> tf.data.Dataset:
        """All photos of a partition once per epoch, in an order in which neighbors are of different users.

        `cycle_length` shards are read in turns, a photo of each, in a random order of shards; where there are fewer
        shards (or more), the partition is read in as many slices of equal length. Then every `shuffle_buffer` photos
        (some 14 KB each) are shuffled. The order is a function of (seed, epoch) alone.

        Args:
          batch_size: photos per batch, labels as ragged tensors; None: single photos.
          decoders: as of TFDS's `as_dataset`.

        Raises:
          FlairError: nothing is built there, or the partition does not exist.
        """
        self.users(partition)
        import tensorflow as tf

        table = StreamTable(equal_streams(self.shards(partition), cycle_length))
        serialized = interleaved(table, seed, range(first_epoch, first_epoch + num_epochs), shuffle_buffer)
        decode = functools.partial(self.info.features.deserialize_example, decoders=decoders)
        photos = serialized.map(decode, tf.data.AUTOTUNE, deterministic=True)
        if batch_size is not None:
            photos = photos.ragged_batch(batch_size)
        return photos.prefetch(tf.data.AUTOTUNE)

    def shards(self, partition: str) -> list[Shard]:
        """The partition's files and how many photos each has.

        Raises FlairError where they are no TFRecord files, or lie outside of the data set's folder.
        """
        split, folder = self.info.splits[partition], Path(self.data_dir).resolve()
        if self.info.file_format.value != "tfrecord":
            raise FlairError(
                f"{folder}: is built with --file_format={self.info.file_format.value}; build it again without that"
            )
        shards = [Shard(Path(path), count) for path, count in zip(split.filepaths, split.shard_lengths, strict=True)]
        for shard in shards:
            if shard.path.resolve().parent != folder:
                raise FlairError(f"{folder}: dataset_info.json names {shard.path}, which is not there; build it again")
        return shards

    def verify_checksums(self) -> None:
        """Compares every file to its SHA-256 in `info.metadata`; FlairError where one is missing or was changed."""
        for name, sha256 in self.info.metadata["shard_sha256"].items():
            path = Path(self.data_dir) / Path(name).name
            if not path.is_file() or file_sha256(path) != sha256:
                raise FlairError(f"{path}: is not what was built; build it again with `{COMMAND} --overwrite`")


@functools.lru_cache(maxsize=4)
def _photo_places(shards: tuple[Shard, ...]) -> list[tuple[Path, int, int]]:
    """File, offset and length in bytes of every record, from their headers."""
    return [(shard.path, *place) for shard in shards for place in photo_places(Span(shard.path, None))]


def _slices(users: Sequence[User]) -> dict[str, tuple[int, int]]:
    borders = itertools.accumulate((len(user.records) for user in users), initial=0)
    return {user.user_id: slice_ for user, slice_ in zip(users, itertools.pairwise(borders), strict=True)}


def _checked_name(name: str) -> str:
    # TFDS keeps the names in a text file, one per line, and strips them when it reads that.
    if name != name.strip() or len(name.splitlines()) != 1:
        raise FlairError(f"label {name!r}: begins or ends with a space or has several lines; TFDS cannot store that")
    return name
