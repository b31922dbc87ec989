"""HDF5 files, read with h5py from the documented paths, keys and dtypes alone, and with our reader."""

from __future__ import annotations

import errno
import io
import json
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmark.data.opening import open_records
from flair.dataset.metadata import Record, load_records
from flair.errors import FlairError
from flair.files import atomic
from flair.miniature.dataset import make_dataset
from flair.records.hdf5 import global_heap, soft_file
from flair.records.hdf5.reader import HDF5File
from flair.records.hdf5.writer import write_hdf5
from tests.support.bounded_memory import bounded_memory

PARTITIONS = ("train", "val", "test")
FORMATS: dict[str, dict[str, Any]] = {
    "raw": {},
    "raw by image": {"by_user": False},
    "jpeg": {"image_format": "jpeg"},
    "jpeg by image": {"image_format": "jpeg", "by_user": False},
    "indices": {"label_format": "indices"},
    "jpeg indices": {"label_format": "indices", "image_format": "jpeg"},
}


class Read(NamedTuple):
    partition: str
    user_id: str
    image_id: str
    labels: list[str]
    fine_grained_labels: list[str]
    image: np.ndarray


def pixels(dataset_dir: Path, image_id: str) -> np.ndarray:
    return np.asarray(Image.open(dataset_dir / "small_images" / f"{image_id}.jpg"))


def names_of(group: h5py.Group, key: str, count: int, mapping: dict[str, int]) -> list[list[str]]:
    """The names of pfl-research's sparse labels, by the multi-hot matrix that its benchmark makes of them."""
    rows, columns = group[f"{key}_row"], group[f"{key}_col"]
    assert rows.dtype == np.uint16
    assert columns.dtype == (np.uint16 if key.startswith("fine") else np.uint8)
    multi_hot = np.zeros((count, len(mapping)), np.float32)
    multi_hot[np.array(rows), np.array(columns)] = 1
    names = {column: name for name, column in mapping.items()}
    return [[names[column] for column in np.flatnonzero(row)] for row in multi_hot]


def read_documented(path: Path, by_user: bool, indices: bool) -> Iterator[Read]:
    with h5py.File(path, "r") as file:
        mappings = {
            key: json.loads(file[f"metadata/{key[:-1]}_mapping"][()]) if indices else {}
            for key in ("labels", "fine_grained_labels")
        }
        for partition in PARTITIONS:
            for name, group in file[partition].items():
                if not by_user:
                    user_id, labels, fine = (
                        group[key][()].decode() for key in ("user_id", "labels", "fine_grained_labels")
                    )
                    yield Read(partition, user_id, name, labels.split("|"), fine.split("|"), group["image"][()])
                    continue
                ids = group["image_ids"]
                assert ids.dtype.kind == "S"
                both = []
                for key, mapping in mappings.items():
                    if indices:
                        both.append(names_of(group, key, len(ids), mapping))
                    else:
                        assert group[key].dtype.kind == "S"
                        both.append([value.decode().split("|") for value in group[key]])
                images = group["images"]
                assert len(images) == len(ids)
                for row, image_id in enumerate(ids):
                    yield Read(partition, name, image_id.decode(), both[0][row], both[1][row], images[row])


@pytest.mark.parametrize("dataset", ["flair_sample", "miniature"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_file_is_read_by_its_documented_layout(
    name: str, dataset: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source: Path = request.getfixturevalue(dataset)
    options = FORMATS[name]
    write_hdf5(source, tmp_path / "flair.h5", num_workers=1, **options)
    items = {item["image_id"]: item for item in json.loads((source / "labels_and_metadata.json").read_text())}
    in_file_order = sorted if "label_format" in options else list
    found = list(read_documented(tmp_path / "flair.h5", options.get("by_user", True), "label_format" in options))
    assert len(found) == len(items) == {"flair_sample": 35, "miniature": 160}[dataset]
    for photo in found:
        item = items[photo.image_id]
        assert (photo.partition, photo.user_id) == (item["partition"], item["user_id"])
        assert photo.labels == in_file_order(item["labels"])
        assert photo.fine_grained_labels == in_file_order(item["fine_grained_labels"])
        assert photo.image.dtype == np.uint8
        if "image_format" in options:
            stored = (source / "small_images" / f"{photo.image_id}.jpg").read_bytes()
            assert photo.image.tobytes() == stored
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(photo.image))), pixels(source, photo.image_id))
        else:
            assert np.array_equal(photo.image, pixels(source, photo.image_id))
    if options.get("by_user", True):
        order = [photo.image_id for photo in found]
        for user_id in {photo.user_id for photo in found}:
            mine = [image_id for image_id, item in items.items() if item["user_id"] == user_id]
            assert [image_id for image_id in order if image_id in mine] == mine


@pytest.mark.parametrize("name", FORMATS)
def test_our_reader_serves_every_format_as_arrays(name: str, flair_sample: Path, tmp_path: Path) -> None:
    write_hdf5(flair_sample, tmp_path / "flair.h5", num_workers=1, **FORMATS[name])
    records = {record.image_id: record for record in load_records(flair_sample)}
    with HDF5File(tmp_path / "flair.h5") as file:
        for partition in PARTITIONS:
            for group in file.groups(partition):
                images = file.images(partition, group)
                photos = list(file.photos(partition, group))
                assert images.shape == (len(photos), 256, 256, 3)
                for image, photo in zip(images, photos, strict=True):
                    assert photo.record == records.pop(photo.record.image_id)
                    assert np.array_equal(image, pixels(flair_sample, photo.record.image_id))
    assert not records


def test_label_counts_are_those_of_the_published_code(flair_sample: Path, tmp_path: Path) -> None:
    write_hdf5(flair_sample, tmp_path / "flair.h5", num_workers=1)
    items = json.loads((flair_sample / "labels_and_metadata.json").read_text())
    with h5py.File(tmp_path / "flair.h5") as file:
        for key in ("labels", "fine_grained_labels"):
            counts: dict[str, int] = {}
            for item in items:
                for label in item[key]:
                    counts[label] = counts.get(label, 0) + 1
            assert json.loads(file[f"metadata/{key[:-1]}_counter"][()]) == counts


def test_a_subset_lists_the_labels_of_the_whole(flair_sample: Path, tmp_path: Path) -> None:
    for name, options in (("names", {}), ("indices", {"label_format": "indices"})):
        for limit in (None, 5):
            write_hdf5(flair_sample, tmp_path / f"{name}-{limit}", limit_users=limit, num_workers=1, **options)
    with HDF5File(tmp_path / "names-None") as whole, HDF5File(tmp_path / "names-5") as part:
        counts = json.loads(part.text("label_counter") or "")
        assert counts.keys() == json.loads(whole.text("label_counter") or "").keys()
        assert sum(counts.values()) == sum(
            len(photo.record.labels) for p in PARTITIONS for group in part.groups(p) for photo in part.photos(p, group)
        )
    with HDF5File(tmp_path / "indices-None") as whole, HDF5File(tmp_path / "indices-5") as part:
        assert whole.text("fine_grained_label_mapping") == part.text("fine_grained_label_mapping")


def test_files_of_the_published_code_are_read(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)
    with h5py.File(tmp_path / "by_user.h5", "w") as file:
        file["/train/7@N00/labels"] = np.asarray(["art|food", "art"], "S")
        file["/train/7@N00/fine_grained_labels"] = np.asarray(["a|b", "c"], "S")
        file["/train/7@N00/image_ids"] = np.asarray(["11", "1234"], "S")
        file.create_dataset("/train/7@N00/images", data=image)
        file["/metadata/label_counter"] = json.dumps({"art": 2, "food": 1})
    with h5py.File(tmp_path / "by_image.h5", "w") as file:
        file.create_dataset("/val/11/image", data=image[0])
        file["/val/11/labels"] = "art|food"
        file["/val/11/fine_grained_labels"] = "a|b"
        file["/val/11/user_id"] = "7@N00"
        file["/metadata/label_counter"] = "{}"
    with HDF5File(tmp_path / "by_user.h5") as by_user, HDF5File(tmp_path / "by_image.h5") as by_image:
        first, second = by_user.photos("train", "7@N00")
        assert first.record == Record("7@N00", "11", ("art", "food"), ("a", "b"), "train")
        assert second.record == Record("7@N00", "1234", ("art",), ("c",), "train")
        (alone,) = by_image.photos("val", "11")
        assert alone.record == first.record._replace(partition="val")
        for photo, pixels_written in ((first, image[0]), (second, image[1]), (alone, image[0])):
            assert np.array_equal(photo.pixels, pixels_written)


@pytest.fixture(scope="module")
def tiny_file(flair_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "flair.h5"
    write_hdf5(flair_sample, path, image_format="jpeg", limit_users=4, num_workers=1)
    return path


def read_everything(path: Path) -> dict[str, tuple[Record, bytes]]:
    with HDF5File(path) as file:
        return {
            photo.record.image_id: (photo.record, photo.image.tobytes())
            for partition in PARTITIONS
            for group in file.groups(partition)
            for photo in file.photos(partition, group)
        }


def test_a_line_break_in_a_damaged_user_id_leaves_the_error_one_line(tiny_file: Path, tmp_path: Path) -> None:
    with HDF5File(tiny_file) as file:
        user_id = file.groups("train")[0].encode()
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(tiny_file.read_bytes().replace(user_id, user_id[:-2] + b"\n" + user_id[-1:]))
    with pytest.raises(FlairError, match=r"damaged or of an unknown layout at /train/") as caught:
        read_everything(damaged)
    assert "\n" not in str(caught.value)
    assert "\\n" in str(caught.value)


@pytest.fixture(scope="module")
def tiny_contents(tiny_file: Path) -> dict[str, tuple[Record, bytes]]:
    return read_everything(tiny_file)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_flipped_byte_never_gives_a_wrong_photo_or_label(
    tiny_file: Path, tiny_contents: dict[str, tuple[Record, bytes]], data: st.DataObject
) -> None:
    good = tiny_file.read_bytes()
    at = data.draw(st.integers(0, len(good) - 1) | st.integers(0, 30_000))
    flipped = bytes([good[at] ^ data.draw(st.integers(1, 255))])
    try:
        tiny_file.write_bytes(good[:at] + flipped + good[at + 1 :])
        found = read_everything(tiny_file)
    except FlairError as error:
        assert "\n" not in str(error)  # noqa: PT017 - not every flip is an error: some bytes are padding
        return
    finally:
        tiny_file.write_bytes(good)
    assert found == tiny_contents


def test_a_lost_partition_or_user_is_an_error(tiny_file: Path) -> None:
    good = tiny_file.read_bytes()
    try:
        with h5py.File(tiny_file, "r+") as file:
            file.move("test", "tess")
        with pytest.raises(FlairError, match=r"users, but was made with|is not there"):
            read_everything(tiny_file)
        tiny_file.write_bytes(good)
        with h5py.File(tiny_file, "r+") as file:
            del file["train"][next(iter(file["train"]))]
        with pytest.raises(FlairError, match="users, but was made with"):
            read_everything(tiny_file)
    finally:
        tiny_file.write_bytes(good)


@given(st.integers(1, 200_000))
@settings(max_examples=25, deadline=None)
def test_a_file_cut_anywhere_is_refused(tiny_file: Path, cut: int) -> None:
    good = tiny_file.read_bytes()
    try:
        tiny_file.write_bytes(good[:-cut])
        with pytest.raises(FlairError):
            read_everything(tiny_file)
    finally:
        tiny_file.write_bytes(good)


def published_file(path: Path) -> Path:
    """Two photos of one user in the layout of pfl-research, and nothing that tells damage."""
    with h5py.File(path, "w") as file:
        file["/train/7@N00/image_ids"] = np.asarray(["11", "12"], "S")
        file["/train/7@N00/images"] = np.zeros((2, 256, 256, 3), np.uint8)
        for key in ("labels", "fine_grained_labels"):
            file[f"/train/7@N00/{key}_row"], file[f"/train/7@N00/{key}_col"] = np.uint16([0, 1]), np.uint8([1, 0])
            file[f"/metadata/{key[:-1]}_mapping"] = json.dumps({"art": 0, "food": 1})
    return path


def _elsewhere(file: h5py.File) -> str:
    return str(published_file(Path(file.filename).with_name("other.h5")))


def _without(file: h5py.File, name: str) -> h5py.Group:
    del file[name]
    return file


def _replace(name: str, **options: Any) -> Callable[[h5py.File], None]:
    """Puts another dataset into the place of one."""
    return lambda file: _without(file, name).create_dataset(name, **options) and None


def _link_user(file: h5py.File) -> None:
    _without(file, "train/7@N00")["train/7@N00"] = h5py.ExternalLink(_elsewhere(file), "train/7@N00")


def _link_partition(file: h5py.File) -> None:
    _without(file, "train")["train"] = h5py.ExternalLink(_elsewhere(file), "train")


def _link_metadata(file: h5py.File) -> None:
    _without(file, "metadata")["metadata"] = h5py.ExternalLink(_elsewhere(file), "metadata")


def _link_images(file: h5py.File) -> None:
    _without(file, f"{USER}/images")[f"{USER}/images"] = h5py.SoftLink("/train/7@N00/image_ids")


def _store_outside(file: h5py.File) -> None:
    options = {"shape": (2, 256, 256, 3), "dtype": np.uint8, "external": [(_elsewhere(file), 0, 2 * 196_608)]}
    _without(file, f"{USER}/images").create_dataset(f"{USER}/images", **options)


def _virtual_images(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((2, 256, 256, 3), np.uint8)
    layout[...] = h5py.VirtualSource(_elsewhere(file), f"{USER}/images", (2, 256, 256, 3))
    _without(file, f"{USER}/images").create_virtual_dataset(f"{USER}/images", layout)


def _bomb(file: h5py.File) -> None:
    """Packed pixels of which one chunk unpacks to a gigabyte."""
    shape = (2, 256, 256, 3)
    dataset = _without(file, f"{USER}/images").create_dataset(
        f"{USER}/images", shape, np.uint8, chunks=shape, compression="gzip"
    )
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1 << 24)) for _ in range(24))
    dataset.id.write_direct_chunk((0,) * 4, packed[:380_000])


USER = "train/7@N00"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_link_user, "is a link"),
        (_link_partition, "is a link"),
        (_link_metadata, "is a link"),
        (_link_images, "is a link"),
        (_store_outside, "other files"),
        (_virtual_images, "other files"),
        (_bomb, "unpacks to more"),
        (_replace(f"{USER}/images", data=np.ones((2, 256, 256, 3))), "expected uint8"),
        (_replace(f"{USER}/images", shape=(2, 256, 256, 3), dtype=np.uint8), "not written whole"),
        (_replace(f"{USER}/images", shape=(2,), dtype=h5py.vlen_dtype(np.float64)), "not written whole|expected uint8"),
        (_replace(f"{USER}/image_ids", shape=(10**10,), dtype="S11"), "declares 110,000,000,000 bytes"),
        (_replace(f"{USER}/image_ids", shape=(2,), dtype="S1000000000"), "declares 2,000,000,000 bytes"),
        (_replace(f"{USER}/image_ids", data=np.arange(2)), "expected a list of texts"),
        (_replace(f"{USER}/image_ids", data=np.asarray(["\xf6".encode("latin-1")] * 2)), "utf-8"),
        (_replace(f"{USER}/labels_row", data=np.int16([0, -1])), "a number below 0"),
        (_replace(f"{USER}/labels_col", data=np.float32([0, 1])), "expected a list of whole numbers"),
        (_replace(f"{USER}/labels_col", shape=(10**10,), dtype=np.uint64), "declares 80,000,000,000 bytes"),
        (_replace("metadata/label_mapping", shape=(), dtype="S1000000000"), "declares 1,000,000,000 bytes"),
        (_replace("metadata/label_mapping", data="[" * 100_000), "nested too deep"),
        (_replace("metadata/label_mapping", data="[1]"), "not a JSON object"),
        (_replace("metadata/label_mapping", data='{"art": 1, "food": 2}'), "not the numbers from 0 on"),
        (_replace("metadata/label_mapping", data='{"art": 0, "art": 1}'), "stands twice"),
        (lambda file: file["metadata"].attrs.update(flair_parameters="[" * 60_000), "nested too deep"),
        (lambda file: file["metadata"].attrs.update(flair_parameters='{"num_users": "1"}'), "is not a number"),
    ],
)
def test_what_a_file_of_photos_must_not_hold_is_refused_in_one_line(
    tmp_path: Path, change: Callable[[h5py.File], None], words: str
) -> None:
    path = published_file(tmp_path / "a.h5")
    assert len(read_everything(path)) == 2
    with h5py.File(path, "r+") as file:
        change(file)
    with bounded_memory(), pytest.raises(FlairError, match=words) as caught:
        read_everything(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable()
    # Training and evaluation read photos one by one.
    with bounded_memory(), pytest.raises(FlairError, match=words):
        read_one_by_one(path)


def read_one_by_one(path: Path) -> None:
    records = open_records(path)
    records.read_photos("train", range(records.num_photos("train")))


def test_packed_photos_are_read(tmp_path: Path) -> None:
    path, pixels = published_file(tmp_path / "a.hdf5"), np.random.default_rng(0).integers(0, 9, (2, 256, 256, 3))
    with h5py.File(path, "r+") as file:
        del file[f"{USER}/images"]
        file.create_dataset(f"{USER}/images", data=pixels.astype(np.uint8), compression="gzip", shuffle=True)
    assert {image for _, image in read_everything(path).values()} == {one.astype(np.uint8).tobytes() for one in pixels}


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    with pytest.raises(FlairError, match="is not an HDF5 file"):
        HDF5File(tmp_path / "text")
    with pytest.raises(FlairError, match="no such file"):
        HDF5File(tmp_path / "nothing")


@pytest.mark.timeout(60)
def test_a_damaged_heap_of_a_late_photo_is_refused_too(
    tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only those in the first 64 MB were looked at, where all of FLAIR has six gigabytes."""
    data = tiny_file.read_bytes()
    monkeypatch.setattr(global_heap, "BYTES_OF_ATTRIBUTES", data.index(b"GCOL"))
    start = data.rindex(b"GCOL") + 16
    (tmp_path / "damaged.hdf5").write_bytes(data[:start] + bytes(16) + data[start + 16 :])
    with pytest.raises(FlairError, match=r"damaged\.hdf5: .*its heap is damaged at byte"):
        read_everything(tmp_path / "damaged.hdf5")


def test_a_photo_that_looks_like_a_damaged_heap_is_a_photo(miniature: Path, tmp_path: Path) -> None:
    """A file prepared from it could not be read, whatever one did."""
    dataset = shutil.copytree(miniature, tmp_path / "dataset", symlinks=True)
    photo = min((dataset / "small_images").iterdir())
    data = photo.read_bytes() + b"GCOL\x01\0\0\0" + b"\x40" + bytes(71)
    photo.unlink()
    photo.write_bytes(data)
    write_hdf5(dataset, tmp_path / "made.hdf5", image_format="jpeg", num_workers=1)
    assert data in [image for _, image in read_everything(tmp_path / "made.hdf5").values()]


def test_a_heap_at_which_the_library_would_never_end_is_refused(tiny_file: Path, tmp_path: Path) -> None:
    data = tiny_file.read_bytes()
    start = data.index(b"GCOL") + 16
    for wrong in (bytes(16), b"\1\0\0\0\0\0\0\0" + b"\xff" * 8):
        (tmp_path / "damaged.hdf5").write_bytes(data[:start] + wrong + data[start + 16 :])
        with pytest.raises(FlairError, match=r"damaged\.hdf5: is damaged .its heap is damaged at byte"):
            HDF5File(tmp_path / "damaged.hdf5")


@pytest.mark.parametrize("kept", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_error_of_a_write_is_not_hidden_by_what_the_library_then_reads(
    kept: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HDF5 read zeros where a group had been, and its ValueError was shown in place of the full disk."""
    make_dataset(tmp_path / "dataset", num_users=1200, num_images=1800, distinct_photos=5, num_workers=1)
    written = 0

    def write_all(descriptor: int, data: memoryview, position: int | None = None) -> None:
        nonlocal written
        written += len(data)
        if written > 8_000_000:  # beyond what the library keeps in its cache
            raise kept
        atomic.write_all(descriptor, data, position)

    monkeypatch.setattr(soft_file, "write_all", write_all)
    with pytest.raises(type(kept)):
        write_hdf5(tmp_path / "dataset", tmp_path / "out" / "flair.h5", image_format="jpeg", num_workers=1)
    assert list((tmp_path / "out").iterdir()) == []  # not even the part that cannot be continued
