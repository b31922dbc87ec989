"""Finding photos by label and by user."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from flair.dataset.metadata import Record, User
from flair.errors import FlairError


def find_photos(
    records: Iterable[Record],
    *,
    labels: Collection[str] = (),
    user_id: str | None = None,
    partition: str | None = None,
) -> list[Record]:
    """The records that carry all of `labels` (coarse or fine-grained), of that user and partition, in their order.

    >>> one = Record("1@N00", "10", ("animal",), ("dog",), "train")
    >>> [len(find_photos([one], labels=labels)) for labels in (["dog", "animal"], ["dog", "plant"])]
    [1, 0]
    """
    wanted = frozenset(labels)
    return [
        record
        for record in records
        if (user_id is None or record.user_id == user_id)
        and (partition is None or record.partition == partition)
        and wanted.issubset((*record.labels, *record.fine_grained_labels))
    ]


def find_user(users: Iterable[User], user_id: str) -> User:
    """The user of that id; FlairError where there is no such user."""
    for user in users:
        if user.user_id == user_id:
            return user
    raise FlairError(f"user {user_id!r}: not in this data; expected an id such as 59769174@N00")


def by_photos(users: Sequence[User]) -> list[User]:
    """The users with the most photos first; those with equally many in their order."""
    return sorted(users, key=lambda user: -len(user.records))
