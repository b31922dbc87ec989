"""Sets to evaluate on: what --exclude takes away from them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from benchmark.data.opening import make_task, open_records
from benchmark.evaluation.sets import EvaluationSet, choose_sets, load_sets
from flair.curation.exclusion import Exclusion, read_exclusion
from flair.dataset.metadata import load_records
from flair.records.hdf5.writer import write_hdf5
from flair.records.tfrecord.writer import write_tfrecords


def _photos(records: Path, exclusion: Exclusion | None) -> set[str]:
    opened = open_records(records)
    (found,) = load_sets(opened, make_task(opened, False, None), choose_sets(["test"], "none"), exclusion)
    return set(found.image_ids)


def test_ids_of_other_peoples_records_stay_one_cell_each() -> None:
    """Ids with commas, quotes and line ends made a file of ids that was of other photos, or could not be read."""
    ids, users = ('a,b\n"c"', "7"), ("u,v", "9@N00")
    photos = EvaluationSet("test", "test", np.arange(2), ids, users, np.zeros((2, 1), np.uint8), ids)
    rows = list(csv.reader(io.StringIO(photos.ids_text(), newline="")))
    assert rows == [["image_id", "user_id"], [ids[0], users[0]], [ids[1], users[1]]]
    assert photos.ids_text().endswith("\n7,9@N00\n")


@pytest.mark.parametrize("write", [write_tfrecords, write_hdf5])
def test_excluding_twice_takes_no_more_than_excluding_once(miniature: Path, tmp_path: Path, write: object) -> None:
    ids = {name: [r.image_id for r in load_records(miniature) if r.partition == name] for name in ("train", "test")}
    groups = [ids["test"][:3], [ids["test"][3], ids["train"][0]]]
    path = tmp_path / "near_duplicates.json"
    path.write_text(json.dumps({one: [two for two in group if two != one] for group in groups for one in group}))
    exclusion = read_exclusion(path)
    whole, clean = tmp_path / "whole", tmp_path / "clean"
    assert callable(write)
    write(miniature, whole)
    write(miniature, clean, exclude=path)
    once = _photos(whole, exclusion)
    assert once == set(ids["test"]) - {ids["test"][3], *sorted(ids["test"][:3])[1:]}
    assert _photos(clean, None) == once
    assert _photos(clean, exclusion) == once
    other = Exclusion(listed=[min(once)])
    assert _photos(clean, other) == once - {min(once)}
