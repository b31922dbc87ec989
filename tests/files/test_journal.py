"""What a journal trusts: everything after a kill, only what was flushed after a crash of the machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from flair.errors import FlairError
from flair.files import journal
from flair.files.journal import Journal, Position

START = Position(0, 100)


@pytest.fixture
def data(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "data", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def reopened(path: Path, data: int) -> Position:
    again = Journal(path, data)
    again.close()
    return again.position


def test_a_killed_run_is_trusted_to_its_last_task(tmp_path: Path, data: int) -> None:
    path = tmp_path / "journal"
    Journal.create(path, START)
    first = Journal(path, data)
    assert first.position == START
    first.add(Position(1, 150))
    first.flush()
    first.add(Position(2, 210))
    assert reopened(path, data) == Position(2, 210)
    assert reopened(path, data) == Position(2, 210)


def test_after_a_crash_of_the_machine_only_flushed_tasks_count(
    tmp_path: Path, data: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    Journal.create(path, START)
    first = Journal(path, data)
    first.add(Position(1, 150))
    first.flush()
    first.add(Position(2, 210))
    (tmp_path / "boot_id").write_text("another\n")
    monkeypatch.setattr(journal, "_BOOT_ID", tmp_path / "boot_id")
    assert reopened(path, data) == Position(1, 150)


def test_notes_are_those_of_the_tasks_that_count(tmp_path: Path, data: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal"
    Journal.create(path, START)
    first = Journal(path, data)
    first.add(Position(1, 150), ["a", "b"])
    first.flush()
    first.add(Position(2, 210), ["c"])
    first.close()
    with open(path, "a") as file:
        file.write("note d\nnote e")  # of a task that was not finished
    killed = Journal(path, data)
    assert killed.notes == ["a", "b", "c"]
    killed.close()
    (tmp_path / "boot_id").write_text("another\n")
    monkeypatch.setattr(journal, "_BOOT_ID", tmp_path / "boot_id")
    crashed = Journal(path, data)
    assert (crashed.position, crashed.notes) == (Position(1, 150), ["a", "b"])
    crashed.add(Position(2, 200))  # done again, from other data
    crashed.close()
    again = Journal(path, data)
    assert (again.position, again.notes) == (Position(2, 200), ["a", "b"])
    again.close()


@pytest.mark.parametrize("torn", ["writ", "written 3", "written 3 x\n", "written 3 250", "\xff\xfe", "boot\n"])
def test_a_torn_line_is_not_a_position(tmp_path: Path, data: int, torn: str) -> None:
    path = tmp_path / "journal"
    Journal.create(path, START)
    first = Journal(path, data)
    first.add(Position(2, 210))
    with open(path, "a", encoding="latin-1") as file:
        file.write(torn)
    assert reopened(path, data) == Position(2, 210)
    assert reopened(path, data) == Position(2, 210)


def test_a_journal_without_a_position_is_refused(tmp_path: Path, data: int) -> None:
    (tmp_path / "journal").write_text("written 1\n")
    with pytest.raises(FlairError, match="add --overwrite to start over"):
        Journal(tmp_path / "journal", data)


def test_behind_a_changed_byte_nothing_is_trusted(tmp_path: Path, data: int) -> None:
    path = tmp_path / "journal"
    Journal.create(path, START)
    first = Journal(path, data)
    ends = {0: 100}
    for task in range(1, 6):
        ends[task] = 100 + 50 * task
        first.add(Position(task, ends[task]), [f"note{task}"])
    first.close()
    good = path.read_bytes()
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        try:
            again = Journal(path, data)
        except FlairError:
            assert place < good.index(b"\n") + 1
            continue
        again.close()
        tasks, end = again.position
        assert end == ends[tasks] and again.notes == [f"note{task}" for task in range(1, tasks + 1)]
        continued = Journal(path, data)
        continued.add(Position(tasks + 1, 999))
        continued.close()
        assert reopened(path, data) == Position(tasks + 1, 999)
