"""The table of a partition's labels against its metadata, and damage that is named."""

from __future__ import annotations

import numpy as np
import pytest

from benchmark.data.labels import read_photo_table
from benchmark.data.opening import open_records
from benchmark.personalization.run_users import user_divergences
from flair.dataset.metadata import load_users
from flair.errors import FlairError
from flair.records.tfrecord import example
from flair.records.tfrecord.frames import frame


@pytest.mark.parametrize("partition", ["train", "val", "test"])
def test_rows_are_the_metadata(miniature, tfrecords, partition):
    records = open_records(tfrecords)
    table = read_photo_table(records, partition)
    users = {user.user_id: user for user in load_users(miniature) if user.partition == partition}
    assert table.users == sorted(users)
    names = sorted(records.labels, key=records.labels.__getitem__)
    fine = sorted(records.fine_grained_labels, key=records.fine_grained_labels.__getitem__)
    for user_id, rows in zip(table.users, table.rows_by_user(), strict=True):
        stored = users[user_id].records
        assert [table.image_ids[row] for row in rows] == [record.image_id for record in stored]
        assert [{names[c] for c in table.labels[row]} for row in rows] == [set(record.labels) for record in stored]
        assert [{fine[c] for c in table.fine_grained_labels[row]} for row in rows] == [
            set(record.fine_grained_labels) for record in stored
        ]
    index = records.photo_index(partition)
    np.testing.assert_array_equal(table.owner, index.user)
    payload = records.read_photos(partition, [len(table.owner) - 1])[0]
    assert example.decode(payload).image_id == table.image_ids[-1]


def test_divergences_are_zero_for_equals_and_grow_with_difference(tfrecords):
    records = open_records(tfrecords)
    table = read_photo_table(records, "train")
    found = user_divergences(table, len(records.labels))
    assert found.shape == (len(table.users),)
    assert ((found > 0) & (found < 1)).all()
    same = table._replace(labels=[(0, 3)] * len(table.labels))
    np.testing.assert_allclose(user_divergences(same, len(records.labels)), 0, atol=1e-12)


def test_labels_of_another_label_file_are_named(tfrecords, tmp_path):
    for name in ("label_index.json",):
        (tmp_path / name).write_text((tfrecords / name).read_text())
    (tmp_path / "test").mkdir()
    photo = example.Example(b"jpeg", (99,), (0,), "5", "1@N00")
    (tmp_path / "test" / "1@N00.tfrecords").write_bytes(frame(example.encode(photo)))
    with pytest.raises(FlairError, match=r"record 0 of user 1@N00 has a label column outside 0 to"):
        read_photo_table(open_records(tmp_path), "test")
