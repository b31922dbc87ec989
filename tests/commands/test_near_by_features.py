"""Crops and edits that features find: by the command line, on a miniature, and what the review page makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flair.dataset.metadata import load_records
from flair.duplicate_calibration import main as calibrate
from flair.duplicates import compare, search
from flair.duplicates.distance import mirror
from flair.duplicates.features import FeatureTable
from flair.duplicates.planted import KINDS, cropped, jpeg, recoloured
from flair.miniature.dataset import make_dataset
from flair.reviewing.groups import read_groups
from flair.reviewing.index import PhotoIndex
from tests.support.commands import refused, run
from tests.support.feature_files import write_features

audit = partial(run, "flair.near_duplicates")
LEAST = "--review_alignment=0.75"  # photos of a miniature share their motifs


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]]]:
    """30 photos, three of them edits of others, and features by which those pairs and one of strangers are nearest."""
    folder = tmp_path_factory.mktemp("edited") / "dataset"
    make_dataset(folder, num_users=8, num_images=30, seed=4)
    records = load_records(folder)
    ids = [record.image_id for record in records]
    edits: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda photo: cropped(photo, 40),
        lambda photo: mirror(cropped(photo, 16)),
        lambda photo: recoloured(photo, (0.7, 1.0, 1.2), 2.0),
    ]
    values = np.random.default_rng(0).normal(size=(len(ids), 16)).astype(np.float32)
    pairs = []
    for number, edit in enumerate(edits):
        source, copy = ids[number], ids[-1 - number]
        pixels = np.asarray(Image.open(folder / "small_images" / f"{source}.jpg").convert("RGB"))
        (folder / "small_images" / f"{copy}.jpg").write_bytes(jpeg(edit(pixels)))
        values[-1 - number] = values[number] + 0.01
        pairs.append(sorted([source, copy]))
    values[10] = values[11] + 0.01
    write_features(folder / "features.npy", values, ids, {"model": "none"})
    return folder, pairs


def _aligned(output: Path) -> dict[str, dict[str, float]]:
    neighbors = json.loads((output / "neighbors.json").read_text())
    return {name: dict(found["alignment"]) for name, found in neighbors.items() if "alignment" in found}


def test_edits_are_listed_for_review_and_strangers_are_not(
    planted: tuple[Path, list[list[str]]], tmp_path: Path
) -> None:
    folder, pairs = planted
    where = (f"--dataset_dir={folder}", f"--output_dir={tmp_path}", "--num_workers=1")
    before = audit(*where)
    assert not _aligned(tmp_path) and "aligned" not in before.stdout
    flags = (*where, f"--features={folder / 'features.npy'}", "--feature_neighbors=1", LEAST)
    done = audit(*flags)
    found = _aligned(tmp_path)
    assert sorted({tuple(sorted((one, other))) for one, near in found.items() for other in near}) == sorted(
        map(tuple, pairs)
    )
    assert all(0 <= distance <= 0.25 for near in found.values() for distance in near.values())
    assert json.loads((tmp_path / "near_duplicates.json").read_text()) == {}
    counts: dict[str, Any] = json.loads((tmp_path / "summary.json").read_text())["aligned_pairs"]
    assert counts == {"total": 3, "not within review_l2": 3}
    assert "Pairs to review by alignment (of the 1 nearest by features, correlation >= 0.75): 3, 3 of" in done.stdout
    again = audit(*flags)
    assert "pairs aligned: 0 computed" in again.stdout and _aligned(tmp_path) == found
    index = PhotoIndex(load_records(folder))
    groups = [group for group in read_groups(tmp_path, index).groups if not group.called]
    assert sorted(list(group.members) for group in groups) == sorted(pairs)
    audit(*flags, "--review_alignment=0.9999")
    assert not _aligned(tmp_path)


@pytest.mark.parametrize("place", ["nearest", "compare_alignment"])
def test_a_stopped_search_continues_to_the_same_result(
    planted: tuple[Path, list[list[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    folder, _ = planted
    flags = (f"--dataset_dir={folder}", f"--features={folder / 'features.npy'}", "--feature_neighbors=2", LEAST)
    flags = (*flags, "--num_workers=1")
    audit(*flags, f"--output_dir={tmp_path / 'whole'}")
    monkeypatch.setattr(search, "PHOTOS_AT_ONCE", 4)
    monkeypatch.setattr(search, "_PAIRS_PER_TASK", 5)
    where = (FeatureTable, place) if place == "nearest" else (compare, place)
    original, calls = getattr(*where), 0

    def stopping(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(*where, stopping)
    audit(*flags, f"--output_dir={tmp_path / 'stopped'}", code=130)
    audit(*flags, f"--output_dir={tmp_path / 'stopped'}")
    if place == "nearest":
        assert calls == 3 + 8 - 2  # eight blocks of four photos, two of which were done
    assert _aligned(tmp_path / "stopped") == _aligned(tmp_path / "whole") != {}


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--feature_neighbors=3"], 2, "--feature_neighbors needs --features=FILE.npy"),
        (["--review_alignment=0.3"], 2, "--review_alignment needs --feature_neighbors=N"),
        (["--feature_neighbors=0"], 2, "expected a whole number of at least 1 and at most 1,000"),
        (["--feature_neighbors=1000000000000"], 2, "expected a whole number of at least 1 and at most 1,000"),
        (["--feature_neighbors=1", "--review_alignment=5"], 2, "expected a number of at least -1 and at most 1"),
    ],
)
def test_flags_that_need_others_are_told(miniature: Path, flags: list[str], code: int, message: str) -> None:
    result = audit(f"--dataset_dir={miniature}", "--output_dir=/nowhere", *flags, code=code)
    assert message in result.stderr


def test_the_calibration_says_which_copies_features_find(
    miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--dataset_dir={miniature}", "--num_photos=2"]
    assert calibrate([*flags, f"--output_dir={tmp_path / 'planted'}"]) == 0
    assert "benchmark.features_main" in capsys.readouterr().out
    records = load_records(tmp_path / "planted")
    assert len(records) == 2 * (1 + len(KINDS))
    photos = [record.image_id for record in records[:2]]
    assert {record.image_id.partition("-")[0] for record in records} == set(photos)
    # Features that tell the photos apart and nothing else; of the first kind each copy looks like the other photo.
    values = np.stack([np.eye(2)[photos.index(record.image_id.partition("-")[0])] for record in records])
    values[[row for row, record in enumerate(records) if record.image_id.endswith("-1")]] = np.eye(2)[[1, 0]]
    names = [record.image_id for record in records]
    write_features(tmp_path / "f.npy", values.astype(np.float32), names, {"model": "none"})
    further = [f"--features={tmp_path / 'f.npy'}", "--feature_neighbors=1", f"--output={tmp_path / 'found.json'}"]
    assert calibrate([*flags, *further]) == 0
    found = json.loads((tmp_path / "found.json").read_text())["by_features"]["recall"]
    assert list(found) == list(KINDS)
    cropped_by_half, first = found["cropped by 64 pixels a side"], found[next(iter(KINDS))]
    assert [cropped_by_half[name] for name in ("nearest", "aligned", "both")] == [1.0, 1.0, 1.0]
    assert [first[name] for name in ("nearest", "aligned", "both")] == [0.0, 1.0, 0.0]
    assert "found for review, %" in capsys.readouterr().out


def test_the_calibration_does_not_write_over_a_dataset(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    make_dataset(folder, num_users=4, num_images=8, seed=4)
    before = (folder / "labels_and_metadata.json").read_bytes()
    flags = (f"--dataset_dir={folder}", "--num_photos=1", f"--output_dir={folder}")
    assert f"--output_dir={folder}: holds a dataset already" in refused("flair.duplicate_calibration", *flags)
    assert (folder / "labels_and_metadata.json").read_bytes() == before
