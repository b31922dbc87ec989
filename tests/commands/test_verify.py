"""`python -m flair.verify`: nothing to say of good data, and exactly what is wrong with bad data."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flair.checks.dataset import check_published_numbers
from flair.dataset import catalog
from flair.dataset.metadata import Record
from flair.records.hdf5.writer import write_hdf5
from flair.records.tfrecord.writer import write_tfrecords
from flair.verify import main
from tests.support.commands import run

LINK = {"copy_function": lambda source, target: Path(target).hardlink_to(source)}


def failures(output: str) -> dict[str, int]:
    """Name of each failed check -> its count."""
    found = {}
    for line in output.splitlines():
        if line.startswith("FAIL"):
            match = re.match(r"FAIL  (.*?): ([\d,]+) of ", line)
            assert match, line
            found[match[1]] = int(match[2].replace(",", ""))
    return found


def verify(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, dict[str, int], str]:
    code = main([*flags, "--num_workers=1"])
    output = capsys.readouterr().out
    summary, following = output.splitlines()[-2:]
    assert summary.startswith(f"{len(failures(output))} failed checks of ")
    assert following.startswith("Next: python ")
    assert (code == 0) == (not failures(output))
    return code, failures(output), output


@pytest.fixture
def copied(miniature: Path, tmp_path: Path) -> Path:
    """A copy of the miniature to be damaged; photos are hard links, to be replaced and not written to."""
    target = tmp_path / "dataset"
    shutil.copytree(miniature, target, **LINK)  # type: ignore[arg-type]
    for path in target.glob("*.*"):
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
    return target


def items_of(dataset: Path) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = json.loads((dataset / "labels_and_metadata.json").read_text())
    return items


def replace_items(dataset: Path, items: list[dict[str, Any]]) -> None:
    (dataset / "labels_and_metadata.json").write_text(json.dumps(items))


def replace_photo(dataset: Path, index: int, change: Callable[[bytes, Path], object]) -> str:
    image_id = str(items_of(dataset)[index]["image_id"])
    path = dataset / "small_images" / f"{image_id}.jpg"
    data = path.read_bytes()
    path.unlink()
    change(data, path)
    return image_id


@pytest.mark.parametrize("dataset", ["miniature", "flair_sample", "coco256"])
def test_good_data_have_no_failed_check(
    dataset: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = request.getfixturevalue(dataset)
    write_tfrecords(source, tmp_path / "records", layout="sharded", num_workers=1)
    write_hdf5(source, tmp_path / "flair.h5", image_format="jpeg", label_format="indices", num_workers=1)
    places = (f"--tfrecords_dir={tmp_path / 'records'}", f"--hdf5_file={tmp_path / 'flair.h5'}")
    code, failed, output = verify(capsys, f"--dataset_dir={source}", *places)
    assert (code, failed) == (0, {})
    assert output.count("\nOK ") >= 20


def test_a_damaged_dataset_is_told_count_by_count(copied: Path, tmp_path: Path) -> None:
    gray = Image.fromarray(np.zeros((256, 256), np.uint8))
    missing = [replace_photo(copied, index, lambda data, path: None) for index in (0, 1)]
    replace_photo(copied, 2, lambda data, path: path.write_bytes(data[: len(data) // 2]))
    replace_photo(copied, 3, lambda data, path: path.write_bytes(b""))
    replace_photo(copied, 4, lambda data, path: path.write_bytes(b"<html>"))
    replace_photo(copied, 5, lambda data, path: gray.save(path, "JPEG"))
    replace_photo(copied, 6, lambda data, path: gray.convert("CMYK").save(path, "JPEG"))
    replace_photo(copied, 7, lambda data, path: gray.convert("RGB").resize((64, 64)).save(path, "JPEG"))
    (copied / "small_images" / "999.jpg").write_bytes(b"")
    items = items_of(copied)
    large = next(i["user_id"] for i in items[20:] if sum(j["user_id"] == i["user_id"] for j in items[20:]) > 1)
    last_of_large = max(index for index, item in enumerate(items) if item["user_id"] == large)
    items[last_of_large]["partition"] = next(
        partition for partition in catalog.PARTITIONS if partition != items[last_of_large]["partition"]
    )
    items[10]["labels"].append("unicorn")
    items[11]["fine_grained_labels"].append("unicorn")
    items[12]["labels"] = [next(n for n in catalog.COARSE_LABELS if n not in items[12]["labels"])]
    items[13]["labels"] = []
    items.append(dict(items[14]))
    items.append({"image_id": "1000", "user_id": "1@N00"})
    replace_items(copied, items)
    result = run("flair.verify", f"--dataset_dir={copied}", f"--output_file={tmp_path / 'report.json'}", code=1)
    expected = {
        "records are well-formed": 1,
        "image ids are unique": 1,
        "users are in one partition": 1,
        "labels are non-empty": 1,
        "labels are in the taxonomy": 2,
        "labels are the map of the fine-grained labels": 2,  # the wrong label, and none at all
        "photos exist": 2,
        "photos are JPEG and decode in full": 3,
        "photos are 256x256": 1,
        "photos are RGB": 2,
        "no photo lacks a record": 1,
    }
    assert failures(result.stdout) == expected
    assert result.returncode == 1
    assert result.stderr == ""
    for image_id in missing:
        assert f"image {image_id} of user" in result.stdout
    assert "small_images/999.jpg" in result.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert {check["name"]: check["failures"] for check in report["checks"] if not check["ok"]} == expected
    assert report["failed_checks"] == len(expected)


def test_a_folder_without_metadata_fails_and_says_what_is_left_unchecked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, failed, output = verify(capsys, f"--dataset_dir={tmp_path}", f"--hdf5_file={tmp_path / 'flair.h5'}")
    assert (code, failed) == (
        1,
        {"metadata is a JSON list of records": 1, "taxonomy can be read": 1, "what needs the metadata is checked": 2},
    )
    assert "2 of 2 parts: photos not checked; HDF5 file not checked\n" in output


def test_a_missing_taxonomy_is_told(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "label_relationship.txt").unlink()
    _code, failed, _output = verify(capsys, f"--dataset_dir={copied}")
    assert failed == {"taxonomy can be read": 1}


def in_a_circle(path: Path) -> None:
    path.symlink_to(path.name)


NO_FILE: dict[str, Callable[[Path], object]] = {
    "folder": Path.mkdir,
    "link in a circle": in_a_circle,
    "pipe": os.mkfifo,
}


@pytest.mark.parametrize("kind", NO_FILE)
def test_what_is_no_file_in_the_place_of_any_file_of_the_dataset_is_a_finding(
    kind: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taxonomy, metadata = copied / "label_relationship.txt", copied / "labels_and_metadata.json"
    replace_photo(copied, 0, lambda data, path: NO_FILE[kind](path))
    taxonomy.unlink()
    NO_FILE[kind](taxonomy)
    _code, failed, output = verify(capsys, f"--dataset_dir={copied}")
    photo_check = "photos are JPEG and decode in full" if kind == "link in a circle" else "photos exist"
    assert failed == {"taxonomy can be read": 1, photo_check: 1}
    assert f"{taxonomy}: " in output
    metadata.unlink()
    NO_FILE[kind](metadata)
    _code, failed, output = verify(capsys, f"--dataset_dir={copied}")
    names = ["metadata is a JSON list of records", "taxonomy can be read", "what needs the metadata is checked"]
    assert failed == dict.fromkeys(names, 1)
    assert f"{metadata}: " in output


@pytest.mark.parametrize("name", ["labels_and_metadata.json", "label_relationship.txt"])
def test_a_file_that_the_disk_does_not_give_is_a_finding(
    name: str, copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not by permissions: tests may run as root, who reads everything.
    def refuse(path: object, *args: Any, **options: Any) -> Any:
        if str(path).endswith(name):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return really_open(path, *args, **options)

    really_open = io.open
    monkeypatch.setattr("io.open", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    _code, failed, output = verify(capsys, f"--dataset_dir={copied}")
    assert f"{copied / name}: cannot be read (Permission denied)" in output
    assert 1 <= len(failed) <= 2


@pytest.mark.parametrize("kind", ["folder", "link in a circle"])
@pytest.mark.parametrize(
    ("layout", "name", "expected"),
    [
        ("sharded", "prepare_info.json", "indexes are intact"),
        ("sharded", "label_index.json", "indexes are intact"),
        ("sharded", "dev/user_index.json", "indexes are intact"),
        ("sharded", "test/shard-00000-of-00001.tfrecords", "records pass their checksums"),
        ("per_user", "test/stray", "no byte lacks a user"),
    ],
)
def test_what_is_no_file_in_the_place_of_any_file_of_records_is_a_finding(
    kind: str, layout: str, name: str, expected: str, miniature: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / "records" / name
    write_tfrecords(miniature, tmp_path / "records", layout=layout, num_workers=1)
    path.unlink(missing_ok=True)
    NO_FILE[kind](path)
    (tmp_path / "flair.h5").mkdir()
    places = (f"--tfrecords_dir={tmp_path / 'records'}", f"--hdf5_file={tmp_path / 'flair.h5'}")
    _code, failed, output = verify(capsys, f"--dataset_dir={miniature}", *places)
    assert set(failed) == {f"TFRecords: {expected}", "HDF5: the file can be read"}, output


def test_a_part_that_breaks_off_is_a_finding_and_the_others_are_checked(
    miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "disk")

    write_tfrecords(miniature, tmp_path / "records", num_workers=1)
    monkeypatch.setattr("flair.checks.dataset.check_photos", broken)
    _code, failed, output = verify(capsys, f"--dataset_dir={miniature}", f"--tfrecords_dir={tmp_path / 'records'}")
    assert failed == {"photos: checked to the end": 1}
    assert "OK    TFRecords: records pass their checksums" in output


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


TFRECORD_DAMAGE: dict[str, tuple[Callable[[Path], object], dict[str, int]]] = {
    "photo byte": (
        lambda d: flip(d / "train/shard-00000-of-00003.tfrecords", 5000),
        {"records pass their checksums": 1},
    ),
    "shard gone": (
        lambda d: (d / "test/shard-00000-of-00001.tfrecords").unlink(),
        {"records pass their checksums": 4},
    ),
    "stray file": (lambda d: (d / "dev/old.tfrecords").write_bytes(b""), {"no byte lacks a user": 1}),
    "index byte": (lambda d: flip(d / "dev/user_index.json", 4), {"indexes are intact": 1}),
    "labels byte": (lambda d: flip(d / "label_index.json", 40), {"indexes are intact": 1}),
    "bytes appended": (
        lambda d: append(d / "train/shard-00001-of-00003.tfrecords"),
        {"no byte lacks a user": 1},
    ),
    "folder gone": (lambda d: shutil.rmtree(d / "dev"), {"indexes are intact": 1}),
}


@pytest.mark.parametrize("kind", TFRECORD_DAMAGE)
def test_damaged_tfrecords_are_told(
    kind: str, miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tfrecords(miniature, tmp_path / "records", layout="sharded", images_per_shard=50, num_workers=1)
    damage, expected = TFRECORD_DAMAGE[kind]
    damage(tmp_path / "records")
    _code, failed, output = verify(capsys, f"--dataset_dir={miniature}", f"--tfrecords_dir={tmp_path / 'records'}")
    assert failed == {f"TFRecords: {name}": count for name, count in expected.items()}, output


def test_records_of_other_data_are_told(
    miniature: Path, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = items_of(copied)
    write_tfrecords(copied, tmp_path / "records", num_workers=1)
    write_hdf5(copied, tmp_path / "flair.h5", num_workers=1)
    black = Image.fromarray(np.zeros((256, 256, 3), np.uint8))
    replace_photo(copied, 0, lambda data, path: black.save(path, "JPEG"))
    label = next(name for name in items[1]["labels"] if len(items[1]["labels"]) > 1 or True)
    other = next(n for n in {n for item in items for n in item["labels"]} if n not in items[1]["labels"])
    items[1]["labels"] = [other if name == label else name for name in items[1]["labels"]]
    replace_items(copied, items)
    places = (f"--tfrecords_dir={tmp_path / 'records'}", f"--hdf5_file={tmp_path / 'flair.h5'}")
    _code, failed, output = verify(capsys, f"--dataset_dir={copied}", *places)
    about_records = {name: count for name, count in failed.items() if name.startswith(("TF", "HDF5"))}
    assert about_records == {
        "TFRecords: ids and labels are those of the metadata": 1,
        "TFRecords: photos are those of small_images, byte for byte": 1,
        "HDF5: label counts or columns are those of the metadata": 1,
        "HDF5: ids and labels are those of the metadata": 1,
        "HDF5: photos are those of small_images": 1,
    }, output


def test_what_is_told_does_not_depend_on_the_number_of_workers(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tfrecords(copied, tmp_path / "records", num_workers=1)
    for index in (3, 70, 150):
        replace_photo(copied, index, lambda data, path: path.write_bytes(data[:-200]))
    # Several tasks for each of them; where all photos are one task, no worker is started.
    monkeypatch.setattr("flair.checks.comparison._PHOTOS_PER_TASK", 20)
    told = []
    for workers in (1, 2):
        assert main([f"--dataset_dir={copied}", f"--tfrecords_dir={tmp_path / 'records'}", f"--num_workers={workers}"])
        told.append(re.sub(r"[\d.]+ s\b", "", capsys.readouterr().out))
    assert told[0] == told[1] and "3 of 160" in told[0]


def test_missing_and_foreign_users_are_told(
    miniature: Path, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tfrecords(miniature, tmp_path / "records", num_workers=1)
    write_hdf5(miniature, tmp_path / "flair.h5", num_workers=1)
    items = items_of(copied)
    gone = items[0]["user_id"]
    for item in items:
        item["user_id"] = "12345@N00" if item["user_id"] == gone else item["user_id"]
    replace_items(copied, items)
    places = (f"--tfrecords_dir={tmp_path / 'records'}", f"--hdf5_file={tmp_path / 'flair.h5'}")
    _code, failed, output = verify(capsys, f"--dataset_dir={copied}", *places)
    assert failed == {
        "TFRecords: users are those of the metadata": 2,
        "HDF5: users and images are those of the metadata": 2,
    }
    assert f"{gone} of train does not belong there" in output


@pytest.mark.parametrize("by_user", [True, False])
def test_a_damaged_hdf5_file_is_told(
    by_user: bool, miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "flair.h5"
    write_hdf5(miniature, path, image_format="jpeg", by_user=by_user, num_workers=1)
    flip(path, path.read_bytes().rfind(b"\xff\xd8\xff") + 500)  # in the coded data of the last photo
    flags = (f"--dataset_dir={miniature}", f"--hdf5_file={path}")
    assert verify(capsys, *flags)[1] == {"HDF5: photos can be read and pass their checksums": 1}
    path.write_bytes(path.read_bytes()[:1000])
    assert verify(capsys, *flags)[1] == {"HDF5: the file can be read": 1}


def test_a_subset_is_compared_to_its_users(miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tfrecords(miniature, tmp_path / "records", limit_users=8, num_workers=1)
    write_hdf5(miniature, tmp_path / "flair.h5", limit_users=9, num_workers=1)
    places = (f"--tfrecords_dir={tmp_path / 'records'}", f"--hdf5_file={tmp_path / 'flair.h5'}")
    code, failed, output = verify(capsys, f"--dataset_dir={miniature}", *places)
    assert (code, failed) == (0, {})
    assert "OK    TFRecords: users are those of the metadata: 8 users" in output
    assert "OK    HDF5: users and images are those of the metadata: 9 groups" in output


def test_records_of_the_published_layout_pass(
    flair_sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tfrecords(flair_sample, tmp_path / "ours", num_workers=1)
    theirs = tmp_path / "theirs"
    shutil.copytree(tmp_path / "ours" / "dev", theirs / "val")
    for name in ("train", "test"):
        shutil.copytree(tmp_path / "ours" / name, theirs / name)
    shutil.copy(tmp_path / "ours" / "label_index.json", theirs / "label_to_index.json")
    assert verify(capsys, f"--dataset_dir={flair_sample}", f"--tfrecords_dir={theirs}")[1] == {}


def test_published_numbers_are_compared_one_by_one(
    miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _code, failed, _output = verify(capsys, f"--dataset_dir={miniature}", "--expected=flair")
    assert failed == {"numbers are the published ones": 24}
    record = Record("1@N00", "1", ("art",), ("art",), "train")
    (tmp_path / "label_relationship.txt").write_text("art -> art\n")
    monkeypatch.setattr(catalog, "NUM_USERS", {"train": 1, "val": 0, "test": 0})
    monkeypatch.setattr(catalog, "NUM_IMAGES", {"train": 1, "val": 0, "test": 0})
    monkeypatch.setattr(catalog, "NUM_FINE_LABELS", 1)
    monkeypatch.setattr(catalog, "COARSE_LABEL_COUNTS", {"art": 1, "fire": 3})
    (check,) = check_published_numbers(tmp_path, [record])
    assert (check.failures, check.checked, check.examples) == (1, 9, ["photos with 'fire' 0, expected 3"])


def test_workers_find_the_same(miniature: Path, tmp_path: Path) -> None:
    write_tfrecords(miniature, tmp_path / "records", num_workers=1)
    flip(next((tmp_path / "records" / "train").iterdir()), 600)
    outputs = [
        run(
            "flair.verify",
            *(f"--dataset_dir={miniature}", f"--tfrecords_dir={tmp_path / 'records'}", f"--num_workers={workers}"),
            code=1,
        ).stdout.rpartition(", in ")[0]
        for workers in (1, 2)
    ]
    assert outputs[0] == outputs[1]
    assert "1 failed checks" in outputs[0]
