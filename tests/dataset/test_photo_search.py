"""Finding photos by label and by user, against looking at every record."""

from __future__ import annotations

from pathlib import Path

import pytest

from flair.dataset.metadata import group_by_user, load_records
from flair.dataset.notebooks import by_photos, find_photos, find_user
from flair.errors import FlairError


def test_all_conditions_hold_at_once(miniature: Path) -> None:
    records = load_records(miniature)
    user = by_photos(group_by_user(records))[0]
    fine = user.records[0].fine_grained_labels[-1]
    found = find_photos(records, labels=[user.records[0].labels[0], fine], user_id=user.user_id)
    assert user.records[0] in found
    assert found == [
        record
        for record in user.records
        if user.records[0].labels[0] in (*record.labels, *record.fine_grained_labels)
        and fine in (*record.labels, *record.fine_grained_labels)
    ]
    assert find_photos(records) == records
    assert {record.partition for record in find_photos(records, partition="val")} == {"val"}
    assert find_photos(records, labels=["no such label"]) == []


def test_users_come_by_the_number_of_their_photos(miniature: Path) -> None:
    users = by_photos(group_by_user(load_records(miniature)))
    counts = [len(user.records) for user in users]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]
    assert find_user(users, users[-1].user_id) is users[-1]
    with pytest.raises(FlairError, match="user 'nobody': not in this data"):
        find_user(users, "nobody")
