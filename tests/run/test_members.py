"""A table in gzip members: readable as one file, cut back to any step, whatever a kill left behind."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import pytest

from benchmark.run import members
from benchmark.run.folder import RunFolder
from flair.errors import FlairError

HEADER = ("round", "client", "loss")


def _fill(path: Path, *steps: int) -> list[bytes]:
    """The file after each step."""
    found = []
    for step in steps:
        members.append(path, HEADER, [(step, f"a,{step}", 1 / step), (step, "b", None)])
        found.append(path.read_bytes())
    return found


def test_any_gzip_reads_all_members_as_one_table(tmp_path: Path) -> None:
    path = tmp_path / "clients.csv.gz"
    _fill(path, 3, 6)
    rows = list(csv.DictReader(io.StringIO(gzip.decompress(path.read_bytes()).decode())))
    assert [row["client"] for row in rows] == ["a,3", "b", "a,6", "b"]
    assert rows == list(members.read(path))
    assert float(rows[0]["loss"]) == 1 / 3 and rows[1]["loss"] == ""


def test_it_is_cut_back_exactly_wherever_the_writing_was_stopped(tmp_path: Path) -> None:
    path = tmp_path / "clients.csv.gz"
    whole = _fill(path, 3, 6, 9)
    for step, kept in ((9, 3), (8, 2), (6, 2), (3, 1)):
        path.write_bytes(whole[2])
        members.cut_back(path, step)
        assert path.read_bytes() == whole[kept - 1]
    for length in range(len(whole[1]), len(whole[2])):  # killed within the third
        path.write_bytes(whole[2][:length])
        members.cut_back(path, 9)
        assert path.read_bytes() == whole[1]
    assert _fill(path, 9) == [whole[2]]
    for length in (0, 5, len(whole[0]) - 1):
        path.write_bytes(whole[0][:length])
        members.cut_back(path, 9)
        assert not path.exists()
    members.cut_back(path, 0)


def test_a_continued_run_forgets_the_clients_after_its_checkpoint(tmp_path: Path) -> None:
    with RunFolder(tmp_path, [], "round") as run:
        run.start_at(0)
        for step in (2, 4):
            run.add_clients(HEADER, [(step, "a", 0.5)])
    with RunFolder(tmp_path, [], "round") as run:
        run.start_at(3)
    assert [row["round"] for row in members.read(tmp_path / "clients.csv.gz")] == ["2"]
    with RunFolder(tmp_path, [], "round", overwrite=True):
        assert not (tmp_path / "clients.csv.gz").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:20] + b"\0" + data[21:],
        lambda data: b"no gzip",
        lambda data: data + gzip.compress(b"x,a,1\n"),
        lambda data: data + gzip.compress(b"3,a,1\n"),
        lambda data: gzip.compress(b""),
        lambda data: gzip.compress(b"\xff\n1\n"),
    ],
    ids=["a byte changed", "something else", "no step", "a step twice", "empty member", "no text"],
)
def test_damage_is_refused_in_one_line(tmp_path: Path, damage) -> None:
    path = tmp_path / "clients.csv.gz"
    _fill(path, 3)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(FlairError, match="is damaged") as caught:
        members.cut_back(path, 9)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
