"""Metadata: what is accepted, and the one line that each kind of bad record ends in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flair.dataset.metadata import (
    Record,
    User,
    count_labels,
    limit_users,
    load_records,
    load_taxonomy,
    load_users,
    parse_record,
    photo_path,
    record_to_json,
)
from flair.errors import FlairError

GOOD = {
    "user_id": "59769174@N00",
    "image_id": "14913474848",
    "fine_grained_labels": ["bag", "document"],
    "labels": ["equipment"],
    "partition": "train",
}
MISSING = object()


def write(folder: Path, content: Any) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "labels_and_metadata.json").write_text(text, encoding="utf-8")
    return folder


def three_partitions() -> list[dict[str, Any]]:
    return [
        {**GOOD, "user_id": f"{number}@N00", "image_id": str(number), "partition": partition}
        for number, partition in enumerate(("train", "val", "test"))
    ]


def test_the_sample_is_read_as_it_is_written(flair_sample: Path) -> None:
    items = json.loads((flair_sample / "labels_and_metadata.json").read_text())
    records = load_records(flair_sample)
    assert [record_to_json(record) for record in records] == items
    assert len(records) == 35
    assert [len(user.records) for user in load_users(flair_sample)][:2] == [5, 5]
    assert sum(count_labels(records)[0].values()) == sum(len(item["labels"]) for item in items)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": MISSING}, r"record 1 \(image 1\): field 'labels' is missing"),
        ({"image_id": 7}, r"record 1: field 'image_id' must be a string, found int 7"),
        ({"user_id": None}, r"record 1 \(image 1\): field 'user_id' must be a string"),
        ({"partition": "dev"}, r"field 'partition' must be one of train, val, test, found 'dev'"),
        ({"labels": []}, r"record 1 \(image 1\): field 'labels' must be a non-empty list"),
        ({"labels": "art"}, r"field 'labels' must be a non-empty list, found 'art'"),
        ({"fine_grained_labels": [3]}, r"field 'fine_grained_labels' must hold label names"),
        ({"labels": [["art"]]}, r"field 'labels' must hold label names"),
        ({"labels": ["a|b"]}, r"field 'labels' must hold label names .* without '\|'"),
        ({"labels": [""]}, r"field 'labels' must hold label names"),
        ({"labels": ["x" * 257]}, r"record 1 \(image 1\): field 'labels' must hold label names of 1 to 256 characters"),
        pytest.param({"labels": ["x" * 10**7]}, r"record 1 \(image 1\): field 'labels' must hold label", id="long"),
        ({"labels": ["a\nb"]}, r"and control characters, found \['a\\nb'\]"),
        ({"labels": ["\x1b[2J"]}, r"and control characters"),
        pytest.param({"labels": ["a"] * 10**6}, r"image 1\): field 'labels' must hold 1,000 labels at most", id="many"),
        pytest.param({"image_id": "9" * 10**6}, r"image_id '9{40}'\.\.\. \(1,000,000 characters\) is", id="id"),
        ({"user_id": "u" * 129}, r"record 1: user_id 'u{40}'\.\.\. \(129 characters\) is not an id"),
        pytest.param({"partition": "x" * 10**6}, r"found 'x{40}'\.\.\. \(1,000,000 characters\)", id="partition"),
        ({"image_id": "1\n2", "labels": MISSING}, r"record 1: field 'labels' is missing"),
        ({"image_id": "../../etc/passwd"}, r"record 1: image_id '../../etc/passwd' is not an id"),
        ({"image_id": "a/b"}, r"image_id 'a/b' is not an id"),
        ({"user_id": ".."}, r"user_id '..' is not an id"),
        ({"user_id": "a\0b"}, r"is not an id"),
        ({"image_id": ""}, r"image_id '' is not an id"),
        ({"image_id": "0"}, r"record 1: image_id '0' was already used by record 0"),
        ({"user_id": "0@N00"}, r"record 1 \(image 1\): user '0@N00' is in partition 'val' here and in 'train' before"),
    ],
)
def test_a_bad_record_is_named_with_its_field(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    items = three_partitions()
    items[1] = {key: value for key, value in {**items[1], **change}.items() if value is not MISSING}
    with pytest.raises(FlairError, match=message) as error:
        load_records(write(tmp_path, items))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: expected a JSON list"),
        ("{}", "line 1: expected a JSON list"),
        ("[]", "the list of records is empty"),
        ("[1]", "record 0: expected an object, found int"),
        (json.dumps([GOOD], indent=1)[:-9], "line 12: not JSON"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(FlairError, match=message):
        load_records(write(tmp_path, content))


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "labels_and_metadata.json").write_bytes(b'[{"user_id": "\xff\xfe"}]')
    with pytest.raises(FlairError, match="is not UTF-8 text"):
        load_records(tmp_path)


def test_a_wrong_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(FlairError, match=r"no such directory; make it with download_dataset\.py"):
        load_records(tmp_path / "nothing")
    with pytest.raises(FlairError, match=r"has no labels_and_metadata\.json, so it is not a FLAIR dataset directory"):
        load_records(tmp_path)


def test_an_empty_partition_is_named(tmp_path: Path) -> None:
    with pytest.raises(FlairError, match="partition 'test' is empty"):
        load_users(write(tmp_path, three_partitions()[:2]))


def test_a_label_twice_counts_once() -> None:
    assert parse_record({**GOOD, "labels": ["a", "b", "a"]}, 0, Path("x")).labels == ("a", "b")


@given(
    st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda x: st.lists(x, max_size=3)),
    st.sampled_from(list(GOOD)),
)
def test_any_value_of_any_field_is_a_record_or_one_line(value: Any, field: str) -> None:
    item = {**GOOD, field: value}
    try:
        record = parse_record(item, 4, Path("file.json"))
    except FlairError as error:
        message = str(error)
    else:
        message = ""
        assert record_to_json(record) == {
            **item,
            field: value if isinstance(value, str) else list(dict.fromkeys(value)),
        }
        assert photo_path("/data", record.image_id).parent == Path("/data/small_images")
    assert not message or ("record 4" in message and field in message)


def test_taxonomy_keeps_every_coarse_label_of_a_fine_one(tmp_path: Path) -> None:
    (tmp_path / "label_relationship.txt").write_text("bag -> equipment\nbag -> art\n\nart -> art\n")
    assert load_taxonomy(tmp_path) == {"bag": {"equipment", "art"}, "art": {"art"}}
    (tmp_path / "label_relationship.txt").write_text("bag -> equipment\nbag equipment\n")
    with pytest.raises(FlairError, match="line 2: expected 'fine -> coarse', found 'bag equipment'"):
        load_taxonomy(tmp_path)
    (tmp_path / "label_relationship.txt").write_text(f"bag -> equipment\nbag -> {'x' * 10**6}\n")
    with pytest.raises(FlairError, match=r"line 2: expected labels of 1 to 256 .*'bag -> x+'\.\.\. \(1,000,007 char"):
        load_taxonomy(tmp_path)


@given(st.lists(st.sampled_from(["train", "val", "test"]), max_size=60), st.data())
def test_a_limit_takes_whole_users_from_every_partition(others: list[str], data: st.DataObject) -> None:
    partitions = ["train", "val", "test", *others]
    users = [
        User(str(n), partition, (Record(str(n), str(n), ("a",), ("b",), partition),))
        for n, partition in enumerate(partitions)
    ]
    limit = data.draw(st.integers(3, len(users) + 5))
    taken = limit_users(users, limit)
    assert len(taken) == min(limit, len(users))
    assert {user.partition for user in taken} == {"train", "val", "test"}
    assert [user for user in users if user in taken] == taken
    assert set(taken) <= set(limit_users(users, limit + 1))
    for partition in ("train", "val", "test"):
        share = partitions.count(partition) / len(users) * len(taken)
        assert abs([user.partition for user in taken].count(partition) - share) <= 2


def test_a_limit_below_one_user_a_partition_is_refused() -> None:
    users = [User(name, name, ()) for name in ("train", "val", "test")]
    with pytest.raises(FlairError, match="--limit_users=2: expected at least 3"):
        limit_users(users, 2)
