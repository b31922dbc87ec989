"""Sets to evaluate on: what --exclude takes away from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmark.data.opening import make_task, open_records
from benchmark.evaluation.sets import choose_sets, load_sets
from flair.curation.exclusion import Exclusion, read_exclusion
from flair.dataset.metadata import load_records
from flair.records.hdf5.writer import write_hdf5
from flair.records.tfrecord.writer import write_tfrecords


def _photos(records: Path, exclusion: Exclusion | None) -> set[str]:
    opened = open_records(records)
    (found,) = load_sets(opened, make_task(opened, False, None), choose_sets(["test"], "none"), exclusion)
    return set(found.image_ids)


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
