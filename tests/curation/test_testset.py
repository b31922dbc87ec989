"""Manifests of test sets: what is read, what is refused, and that nothing is overwritten."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flair.curation.manifest import Testset, manifest_path, read_testset, write_testset
from flair.errors import FlairError

SET = Testset(
    "flair-b-0",
    "test",
    ("1", "22", "3@N00"),
    rule="threshold",
    parameters={"num_images": 3},
    seed=4,
    time="2026-11-20T12:00:00+00:00",
    refusals={"5": "blacklisted"},
    metadata_sha256="ab",
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = write_testset(SET, tmp_path / "sets")
    assert path == tmp_path / "sets" / "flair-b-0.json" == manifest_path("flair-b-0", tmp_path / "sets")
    assert read_testset(path) == SET
    invalid = replace(SET, name="flair-b-1", is_valid=False, problem="too few", revision=1, starting_from="flair-b-0")
    assert read_testset(write_testset(invalid, tmp_path)) == invalid


def test_of_many_writers_one_wins_and_no_other_file_stays(tmp_path: Path) -> None:
    program = (
        "import sys; from flair.curation.manifest import *; "
        "write_testset(Testset('flair-b-0', 'test', tuple(map(str, range(20000))), seed=int(sys.argv[2])), sys.argv[1])"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(seed)], stderr=subprocess.PIPE, text=True)
        for seed in range(4)
    ]
    messages = [writer.communicate(timeout=60)[1] for writer in writers]
    (winner,) = (seed for seed, writer in enumerate(writers) if writer.returncode == 0)
    assert all("never overwritten" in message for seed, message in enumerate(messages) if seed != winner)
    assert [file.name for file in tmp_path.iterdir()] == ["flair-b-0.json"]
    assert read_testset(tmp_path / "flair-b-0.json").seed == winner


def test_a_dangling_link_is_not_overwritten_either(tmp_path: Path) -> None:
    (tmp_path / "flair-b-0.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FlairError, match="exists"):
        write_testset(SET, tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_manifest_made_by_hand_is_read(tmp_path: Path) -> None:
    (tmp_path / "mine-0.json").write_text('{"name": "mine-0", "partition": "val", "image_ids": ["9", "10"]}')
    testset = read_testset(tmp_path / "mine-0.json")
    assert (testset.name, testset.partition, testset.image_ids, testset.is_valid) == (
        "mine-0",
        "val",
        ("10", "9"),
        True,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../x"}, "no name of a test set"),
        ({"name": "test"}, "no name of a test set"),
        ({"name": 3}, "must be of type str"),
        ({"partition": "dev"}, "expected one of train, val, test, heldout"),
        ({"image_ids": "1"}, "must be of type list"),
        ({"image_ids": [1]}, "must hold strings"),
        ({"image_ids": ["../1"]}, "not an id"),
        ({"image_ids": ["1", "1"]}, "occurs twice"),
        ({"is_valid": "yes"}, "must be of type bool"),
        ({"revision": True}, "must be of type int"),
        ({"revision": -5}, "expected 0 to"),
        ({"revision": 10**12}, "expected 0 to"),
        ({"revision": 10**30}, "is larger than 64 bits"),
        ({"format": "other"}, "its format is"),
        ({"format_version": 2}, "this version reads 1"),
    ],
)
def test_a_malformed_manifest_is_named_in_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write_testset(SET, tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FlairError, match=message) as error:
        read_testset(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", "nonsense", "[" * 100_000, '"x"'])
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(FlairError, match="is not a test set"):
        read_testset(tmp_path / "x.json")


def test_a_missing_manifest_names_those_that_are_there(tmp_path: Path) -> None:
    write_testset(SET, tmp_path)
    with pytest.raises(FlairError, match=r"has flair-b-0"):
        read_testset(tmp_path / "flair-c-0.json")
