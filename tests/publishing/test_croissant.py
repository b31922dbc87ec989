"""Descriptions in Croissant, held against the files that they describe; `test_interop.py` has the reference reader."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flair.records.hdf5.writer import write_hdf5
from flair.records.tfrecord.writer import write_tfrecords
from tests.support.commands import refused, run

KINDS = ("dataset", "tfrecords", "sharded", "raw.hdf5", "jpeg.hdf5", "by_image.hdf5", "mine-0.json")


@pytest.fixture(scope="module")
def places(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each kind, by its name in KINDS."""
    folder = tmp_path_factory.mktemp("described")
    shutil.copytree(miniature, folder / "dataset")
    write_tfrecords(miniature, folder / "tfrecords", num_workers=1)
    write_tfrecords(miniature, folder / "sharded", layout="sharded", images_per_shard=30, num_workers=1)
    write_hdf5(miniature, folder / "raw.hdf5", label_format="indices", num_workers=1)
    write_hdf5(miniature, folder / "jpeg.hdf5", image_format="jpeg", num_workers=1)
    write_hdf5(miniature, folder / "by_image.hdf5", by_user=False, image_format="jpeg", num_workers=1)
    photos = [record["image_id"] for record in records_of(miniature) if record["partition"] == "test"][:5]
    testset = {"name": "mine-0", "partition": "test", "image_ids": photos, "rule": "threshold"}
    (folder / "mine-0.json").write_text(json.dumps(testset))
    return folder


Described = dict[str, tuple[Path, dict[str, Any]]]


def records_of(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "labels_and_metadata.json").read_text(encoding="utf-8")))


def describe(place: Path, num_workers: int = 1) -> tuple[Path, dict[str, Any]]:
    """Where the description is, and what is in it."""
    flags = {
        ".hdf5": "hdf5_file",
        ".json": "testset",
        "": "dataset_dir" if place.name == "dataset" else "tfrecords_dir",
    }
    place_flag, workers = f"--{flags[place.suffix]}={place}", f"--num_workers={num_workers}"
    output = run("flair.export", "--format=croissant", place_flag, workers).stdout
    path = place / "croissant.json" if place.is_dir() else place.with_suffix(".croissant.json")
    assert output.startswith(f"Wrote {path}: ") and f"Next: mlcroissant.Dataset('{path}') in Python" in output
    return path, json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def described(places: Path) -> Described:
    """Kind -> its description."""
    return {kind: describe(places / kind) for kind in KINDS}


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every object of a JSON text that has an `@id` and more, which is where something is defined."""
    if isinstance(value, dict):
        if "@id" in value and len(value) > 1:
            yield value
        for item in value.values():
            yield from nodes(item)
    if isinstance(value, list):
        for item in value:
            yield from nodes(item)


def mentions(value: Any) -> Iterator[str]:
    """Every `@id` that something refers to."""
    if isinstance(value, dict):
        if list(value) == ["@id"]:
            yield value["@id"]
        for item in value.values():
            yield from mentions(item)
    if isinstance(value, list):
        for item in value:
            yield from mentions(item)


@pytest.mark.parametrize("kind", ["dataset", "tfrecords"])
def test_the_description_does_not_depend_on_the_number_of_workers(
    places: Path, described: Described, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several tasks for each of them; where all files are one task, no worker is started.
    monkeypatch.setattr("flair.publishing.description._FILES_PER_TASK", 10)
    path, expected = described[kind]
    checksums = (places / kind / "SHA256SUMS").read_text()
    assert describe(places / kind, num_workers=2) == (path, expected)
    assert (places / kind / "SHA256SUMS").read_text() == checksums


@pytest.mark.parametrize("kind", KINDS)
def test_required_properties_and_references(described: Described, kind: str) -> None:
    _, document = described[kind]
    assert document["conformsTo"] == "http://mlcommons.org/croissant/1.1" and document["@type"] == "sc:Dataset"
    for name in ("name", "description", "license", "url", "creator", "datePublished", "distribution", "recordSet"):
        assert document[name], name
    assert document["license"] == "https://creativecommons.org/licenses/by-nc/4.0/"
    content = {key: value for key, value in document.items() if key != "@context"}
    defined = Counter(node["@id"] for node in nodes(content))
    assert set(defined.values()) == {1}
    assert set(mentions(content)) <= defined.keys()
    for record_set in document["recordSet"]:
        for field in record_set["field"]:
            assert "data" in record_set or ("source" in field) != ("value" in field)


@pytest.mark.parametrize("kind", KINDS)
def test_checksums_are_those_of_the_files(described: Described, kind: str) -> None:
    path, document = described[kind]
    files = [item for item in document["distribution"] if item["@type"] == "cr:FileObject"]
    assert files
    for item in files:
        content = (path.parent / item["contentUrl"]).read_bytes()
        assert item["sha256"] == hashlib.sha256(content).hexdigest()
        assert item["contentSize"] == f"{len(content)} B"


@pytest.mark.parametrize("kind", ["dataset", "tfrecords", "sharded"])
def test_sha256sum_checks_every_file_of_a_set(described: Described, kind: str) -> None:
    path, document = described[kind]
    (listed,) = (item for item in document["distribution"] if item["@id"] == "SHA256SUMS")
    lines = (path.parent / listed["contentUrl"]).read_text().splitlines()
    names = {line.partition("  ")[2] for line in lines}
    for item in document["distribution"]:
        if item["@type"] == "cr:FileSet":
            found = {found.relative_to(path.parent).as_posix() for found in path.parent.glob(item["includes"])}
            assert found and found <= names
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=path.parent, capture_output=True)
    assert done.returncode == 0 and done.stdout.count(b": OK\n") == len(lines)


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_the_split_by_user_is_counted(miniature: Path, described: Described, kind: str) -> None:
    _, document = described[kind]
    splits = next(item for item in document["recordSet"] if item["@id"] == "splits")
    assert splits["dataType"] == "cr:Split"
    types = {"train": "cr:TrainingSplit", "val": "cr:ValidationSplit", "test": "cr:TestSplit"}
    records = records_of(miniature)
    assert splits["data"] == [
        {
            "splits/name": name,
            "splits/url": url,
            "splits/num_users": len({record["user_id"] for record in records if record["partition"] == name}),
            "splits/num_photos": sum(record["partition"] == name for record in records),
        }
        for name, url in types.items()
    ]
    assert "160 photos of 40 users, split by user: train " in document["description"]
    assert "not all of it: a part, or another data set" in document["description"]
    photos = [item for item in document["recordSet"] if item["@id"].startswith("photos")]
    assert sum(item["annotation"]["value"] for item in photos) == 160
    fields = {"image", "image_id", "user_id", "labels", "fine_grained_labels", "partition"}
    assert [{field["name"] for field in item["field"]} for item in photos] == [fields] * len(photos)


def test_a_test_set_is_described_by_its_photos(described: Described) -> None:
    _, document = described["mine-0.json"]
    assert document["name"] == "mine-0"
    assert "of the test set mine-0, drawn from test by the rule threshold" in document["description"]
    (record_set,) = document["recordSet"]
    assert record_set["annotation"]["value"] == 5


def test_a_damaged_record_and_a_missing_photo_are_one_line(
    miniature: Path, places: Path, described: Described, tmp_path: Path
) -> None:
    shutil.copytree(places / "tfrecords", tmp_path / "records")
    (tmp_path / "records" / "croissant.json").unlink()
    path = next((tmp_path / "records" / "train").iterdir())
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    line = refused("flair.export", "--format=croissant", f"--tfrecords_dir={tmp_path / 'records'}", "--num_workers=1")
    assert str(path) in line
    assert not (tmp_path / "records" / "croissant.json").exists()
    shutil.copytree(miniature, tmp_path / "dataset")
    photo = next((tmp_path / "dataset" / "small_images").iterdir())
    photo.unlink()
    line = refused("flair.export", "--format=croissant", f"--dataset_dir={tmp_path / 'dataset'}", "--num_workers=1")
    assert str(photo) in line and "the photo is missing" in line
    assert not (tmp_path / "dataset" / "croissant.json").exists()


def test_what_lies_beside_manifests_is_not_offered_as_a_test_set(places: Path, described: Described) -> None:
    line = refused("flair.export", "--format=croissant", "--testset=none-0", f"--testsets_dir={places}")
    assert "none-0.json: no such test set; " in line and line.endswith("has mine-0")


def test_a_folder_without_records_keeps_the_description_it_has(tmp_path: Path) -> None:
    (tmp_path / "croissant.json").write_text("of the photos")
    line = refused("flair.export", "--format=croissant", f"--tfrecords_dir={tmp_path}")
    assert f"{tmp_path}: holds no records of photos; give a folder that prepare_tfrecords.py made" in line
    assert (tmp_path / "croissant.json").read_text() == "of the photos"
