"""Other people's tools read what flair.export wrote: Hugging Face's datasets, Flower, and the reader of Croissant."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flair.records.hdf5.writer import write_hdf5
from flair.records.tfrecord.writer import write_tfrecords
from tests.support.commands import run
from tests.support.interop import run_interop

pytestmark = pytest.mark.long
pytest.importorskip("pyarrow", reason="the huggingface extra is not installed")

# Prints, as JSON, the photos of each split of each configuration.
LOAD = """
import datasets, hashlib, json, sys
found = {}
for config in datasets.get_dataset_config_names(sys.argv[1]):
    loaded = datasets.load_dataset(sys.argv[1], config)
    for split, photos in loaded.items():
        assert isinstance(photos.features["image"], datasets.Image), photos.features
        raw = photos.cast_column("image", datasets.Image(decode=False))
        found[f"{config}/{split}"] = [
            {**row, "image": hashlib.sha256(row["image"]["bytes"]).hexdigest()} for row in raw
        ]
        assert photos[0]["image"].size == (256, 256)
print(json.dumps(found))
"""
# Prints, as JSON, the users of train as Flower's partitioner has them.
PARTITION = """
import json, sys
from flwr_datasets import FederatedDataset
from flwr_datasets.partitioner import NaturalIdPartitioner
partitioner = NaturalIdPartitioner(partition_by="user_id")
users = FederatedDataset(dataset=sys.argv[1], partitioners={"train": partitioner})
users.load_partition(0)
found = [users.load_partition(number) for number in range(partitioner.num_partitions)]
print(json.dumps([{"user_id": list(photos["user_id"]), "image_id": list(photos["image_id"])} for photos in found]))
"""
# Validates a description; prints the records of a record set, as JSON.
DESCRIBED = """
import hashlib, json, sys
import mlcroissant
dataset = mlcroissant.Dataset(sys.argv[1])
assert dataset.metadata.ctx.is_v1_1()
assert not dataset.metadata.ctx.issues.errors and not dataset.metadata.ctx.issues.warnings
def plain(value):
    if isinstance(value, bytes): return value.decode()
    if isinstance(value, list): return [plain(item) for item in value]
    if hasattr(value, "tobytes"): return hashlib.sha256(value.convert("RGB").tobytes()).hexdigest()
    return value
for record_set in sys.argv[2:]:
    for record in dataset.records(record_set):
        print(json.dumps({key.rpartition("/")[2]: plain(value) for key, value in record.items()}))
"""


@pytest.fixture(scope="module")
def places(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature exported, with photos put aside and a test set; record files; a home for caches."""
    folder = tmp_path_factory.mktemp("interop")
    (folder / "home").mkdir()
    photos = [record["image_id"] for record in records_of(miniature) if record["partition"] == "test"][:5]
    (folder / "mine-0.json").write_text(json.dumps({"name": "mine-0", "partition": "test", "image_ids": photos}))
    flags = ("--heldout_fraction=.3", f"--testset={folder / 'mine-0.json'}")
    run("flair.export", f"--dataset_dir={miniature}", f"--output_dir={folder / 'parquet'}", *flags)
    shutil.copytree(miniature, folder / "dataset")
    write_tfrecords(miniature, folder / "tfrecords", num_workers=1)
    write_hdf5(miniature, folder / "flair.hdf5", image_format="jpeg", num_workers=1)
    return folder


def records_of(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "labels_and_metadata.json").read_text(encoding="utf-8")))


def said_of(record: dict[str, Any]) -> tuple[object, ...]:
    """What is said of a photo, whatever its partition is called and its id is made of."""
    return str(record["image_id"]), record["user_id"], record["labels"], record["fine_grained_labels"]


def test_datasets_reads_every_photo_in_its_split(miniature: Path, places: Path) -> None:
    found = json.loads(run_interop(LOAD, places / "parquet", home=places / "home"))
    assert found.keys() == {"default/train", "default/val", "default/test", "default/heldout", "mine-0/test"}
    photos = [row for name, rows in found.items() if name.startswith("default/") for row in rows]
    assert sorted(map(said_of, photos)) == sorted(map(said_of, records_of(miniature)))
    for name, rows in found.items():
        for row in rows:
            data = (miniature / "small_images" / f"{row['image_id']}.jpg").read_bytes()
            assert row["image"] == hashlib.sha256(data).hexdigest()
            assert row["partition"] == name.rpartition("/")[2]
    assert len(found["mine-0/test"]) == 5 and found["default/heldout"]


def test_a_partition_of_flower_is_a_user(miniature: Path, places: Path) -> None:
    found = json.loads(run_interop(PARTITION, places / "parquet", home=places / "home"))
    users = {record["user_id"] for record in records_of(miniature) if record["partition"] == "train"}
    assert sorted(photos["user_id"][0] for photos in found) == sorted(users)
    assert all(len(set(photos["user_id"])) == 1 for photos in found)
    image_ids = [image_id for photos in found for image_id in photos["image_id"]]
    assert len(image_ids) == len(set(image_ids))


@pytest.mark.parametrize("kind", ["parquet", "dataset"])
def test_mlcroissant_iterates_over_photos_and_labels(miniature: Path, places: Path, kind: str) -> None:
    if kind == "dataset":
        run("flair.export", "--format=croissant", f"--dataset_dir={places / 'dataset'}")
    output = run_interop(DESCRIBED, places / kind / "croissant.json", "photos", home=places / "home")
    found = [json.loads(line) for line in output.splitlines()]
    assert sorted(map(said_of, found)) == sorted(map(said_of, records_of(miniature)))
    for row in found:
        data = (miniature / "small_images" / f"{row['image_id']}.jpg").read_bytes()
        pixels = Image.open(io.BytesIO(data)).convert("RGB")
        assert row["image"] == hashlib.sha256(pixels.tobytes()).hexdigest()


def test_mlcroissant_reads_a_test_set(places: Path, tmp_path: Path) -> None:
    copy = tmp_path / "mine-0.json"
    copy.write_bytes((places / "mine-0.json").read_bytes())
    run("flair.export", "--format=croissant", f"--testset={copy}")
    output = run_interop(DESCRIBED, tmp_path / "mine-0.croissant.json", "photos", home=places / "home")
    assert [json.loads(line)["image_id"] for line in output.splitlines()] == json.loads(copy.read_text())["image_ids"]


@pytest.mark.parametrize("flag", ["--tfrecords_dir=tfrecords", "--hdf5_file=flair.hdf5"])
def test_mlcroissant_takes_the_descriptions_of_record_files(places: Path, flag: str) -> None:
    name, _, place = flag.partition("=")
    run("flair.export", "--format=croissant", f"{name}={places / place}")
    path = places / place / "croissant.json" if "dir" in name else places / "flair.croissant.json"
    rows = [json.loads(line) for line in run_interop(DESCRIBED, path, "splits", home=places / "home").splitlines()]
    assert [row["name"] for row in rows] == ["train", "val", "test"]
