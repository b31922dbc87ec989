"""Opens what holds the photos, whatever its format, and says which of its labels to predict."""

from __future__ import annotations

import os
from pathlib import Path

from benchmark.data.records import Records, Task, TFRecordRecords
from flair.errors import FlairError


def open_records(tfrecords_dir: str | os.PathLike[str]) -> Records:
    """Opens a folder of TFRecords, an HDF5 file that prepare_dataset.py wrote, or a folder in which TFDS built FLAIR.

    Raises:
      FlairError: it is none of these, or its labels are damaged.
    """
    if Path(tfrecords_dir).is_file():
        from benchmark.data.hdf5 import HDF5Records

        return HDF5Records(tfrecords_dir)
    from benchmark.data.tfds import TFDSRecords, is_tfds_data_dir

    if is_tfds_data_dir(tfrecords_dir):
        return TFDSRecords(tfrecords_dir)
    return TFRecordRecords(tfrecords_dir)


def make_task(records: Records, use_fine_grained_labels: bool, binary_label: str | None) -> Task:
    """The columns to predict.

    Raises:
      FlairError: there is no such label (the known ones are listed), or no labels at all.
    """
    feature = "fine_grained_labels" if use_fine_grained_labels else "labels"
    columns = records.fine_grained_labels if use_fine_grained_labels else records.labels
    names = tuple(sorted(columns, key=columns.__getitem__))
    if not names:
        raise FlairError(f"{records.root}: its label file lists no {feature}; prepare the records again")
    if binary_label is None:
        return Task(feature, names, len(names), image_format=records.image_format)
    if binary_label not in columns:
        known = ", ".join(names[:40]) + (f" and {len(names) - 40} more" if len(names) > 40 else "")
        kind = "fine-grained" if use_fine_grained_labels else "coarse"
        raise FlairError(f"--binary_label={binary_label}: no such {kind} label; the labels are {known}")
    return Task(feature, (binary_label,), len(names), columns[binary_label], records.image_format)
