"""Records as ml-flair's own code lays them out: `val`, `label_to_index.json`, three features, no ids."""

from __future__ import annotations

import json
from pathlib import Path

import tensorflow as tf


def write_published_records(dataset_dir: Path, tfrecords_dir: Path) -> None:
    """Writes `dataset_dir` in the published layout, with TensorFlow's own writer."""
    records = json.loads((dataset_dir / "labels_and_metadata.json").read_text())
    index = {
        kind: {name: number for number, name in enumerate(sorted({n for record in records for n in record[kind]}))}
        for kind in ("labels", "fine_grained_labels")
    }
    tfrecords_dir.mkdir(parents=True)
    (tfrecords_dir / "label_to_index.json").write_text(json.dumps(index))
    by_user: dict[tuple[str, str], list[bytes]] = {}
    for record in records:
        jpeg = (dataset_dir / "small_images" / f"{record['image_id']}.jpg").read_bytes()
        feature = {"image/encoded_jpeg": tf.train.Feature(bytes_list=tf.train.BytesList(value=[jpeg]))}
        for kind, numbers in index.items():
            values = [numbers[name] for name in record[kind]]
            feature[kind] = tf.train.Feature(int64_list=tf.train.Int64List(value=values))
        example = tf.train.Example(features=tf.train.Features(feature=feature))
        by_user.setdefault((record["partition"], record["user_id"]), []).append(example.SerializeToString())
    for (partition, user_id), examples in by_user.items():
        (tfrecords_dir / partition).mkdir(exist_ok=True)
        with tf.io.TFRecordWriter(str(tfrecords_dir / partition / f"{user_id}.tfrecords")) as writer:
            for example in examples:
                writer.write(example)
