"""The miniature: FLAIR's shape, one seed one dataset, photos that show their labels, errors that say what is wrong."""

from __future__ import annotations

import collections
import errno
import io
import json
import math
import os
import re
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import average_precision_score

from flair.dataset import catalog, metadata
from flair.dataset.metadata import Record, User
from flair.errors import FlairError
from flair.miniature import archives
from flair.miniature.dataset import RECIPE_FILE, make_dataset
from flair.miniature.photos import Painter
from flair.miniature.population import make_users, user_sizes
from flair.miniature.taxonomy import make_taxonomy
from tests.support.commands import only_line, run, run_program, start

NUM_RECORDS = 20_000


@pytest.fixture(scope="module")
def population(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20,000 records without photos."""
    folder = tmp_path_factory.mktemp("population") / "dataset"
    make_dataset(folder, num_images=NUM_RECORDS, seed=7, metadata_only=True)
    return folder


@pytest.fixture(scope="module")
def users(population: Path) -> list[User]:
    return metadata.load_users(population)


def records_of(users: list[User]) -> list[Record]:
    return [record for user in users for record in user.records]


SYNTHETIC = "flair.synthetic"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_user_sizes_at_full_scale_have_the_published_quartiles_moments_and_maximum() -> None:
    sizes = user_sizes(None, sum(catalog.NUM_IMAGES.values()))
    assert sizes.sum() == 429_078
    assert np.percentile(sizes, [25, 50, 75]).tolist() == [1, 2, 5]
    assert sizes.mean() == pytest.approx(catalog.IMAGES_PER_USER.mean, rel=0.005)
    assert sizes.std() == pytest.approx(catalog.IMAGES_PER_USER.sd, rel=0.01)
    assert sizes.max() == pytest.approx(catalog.IMAGES_PER_USER_MAX, rel=0.01)
    assert len(sizes) == pytest.approx(51_414, rel=0.002)


@given(num_users=st.integers(3, 300), photos_per_user=st.floats(1, 40))
@settings(max_examples=60, deadline=None)
def test_user_sizes_add_up_whatever_is_asked(num_users: int, photos_per_user: float) -> None:
    num_images = int(num_users * photos_per_user)
    sizes = user_sizes(num_users, num_images)
    assert len(sizes) == num_users
    assert sizes.sum() == num_images
    assert sizes.min() >= 1
    assert user_sizes(None, num_images).sum() == num_images


def test_quartiles_hold_at_twenty_thousand_photos(users: list[User]) -> None:
    sizes = [len(user.records) for user in users]
    assert np.percentile(sizes, [25, 50, 75]).tolist() == [1, 2, 5]
    assert max(sizes) > 50 * np.median(sizes)


@pytest.mark.parametrize("label", catalog.COARSE_LABELS)
def test_label_shares_are_the_published_ones_within_sampling_error(users: list[User], label: str) -> None:
    share = catalog.COARSE_LABEL_COUNTS[label] / sum(catalog.NUM_IMAGES.values())
    found = sum(label in record.labels for record in records_of(users))
    assert abs(found - NUM_RECORDS * share) < 4 * math.sqrt(NUM_RECORDS * share * (1 - share))


def test_label_counts_a_photo(users: list[User]) -> None:
    records = records_of(users)
    coarse = np.array([len(record.labels) for record in records])
    fine = np.array([len(record.fine_grained_labels) for record in records])
    standard_error = coarse.std() / math.sqrt(len(records))
    assert abs(coarse.mean() - catalog.COARSE_LABELS_PER_IMAGE_MEAN) < 4 * standard_error
    assert (coarse.min(), coarse.max() <= 9) == (1, True)
    assert fine.mean() == pytest.approx(catalog.FINE_LABELS_PER_IMAGE_MEAN, rel=0.02)
    assert (fine >= coarse).all()
    assert fine.max() <= 36


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("food", "equipment"),
        ("food", "liquid"),
        ("plant", "outdoor"),
        ("structure", "interior_room"),
        ("music", "light"),
    ],
)
def test_labels_that_belong_together_occur_together(users: list[User], one: str, other: str) -> None:
    records = records_of(users)
    counts = [sum(want <= set(r.labels) for r in records) for want in ({one}, {other}, {one, other})]
    assert counts[2] > 1.15 * counts[0] * counts[1] / len(records)


def test_partitions_are_eight_to_one_to_one_by_user(users: list[User]) -> None:
    found = collections.Counter(user.partition for user in users)
    for partition, published in catalog.NUM_USERS.items():
        assert found[partition] == pytest.approx(len(users) * published / sum(catalog.NUM_USERS.values()), abs=1)
    photos = collections.Counter(record.partition for record in records_of(users))
    assert photos["train"] / NUM_RECORDS == pytest.approx(0.806, abs=0.02)


@pytest.mark.parametrize("num_users", [3, 4, 7, 15])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_partition_of_a_tiny_dataset_has_users_and_several_labels(num_users: int, seed: int) -> None:
    tiny = make_users(user_sizes(num_users, None), make_taxonomy(), seed)
    for partition in catalog.PARTITIONS:
        assert (
            len({label for user in tiny if user.partition == partition for r in user.records for label in r.labels}) > 1
        )


def test_ids_have_the_real_form_and_photos_of_a_user_are_in_the_order_of_time(users: list[User]) -> None:
    assert all(re.fullmatch(r"\d{7,11}@N\d\d", user.user_id) for user in users)
    assert all(re.fullmatch(r"\d{9,11}", record.image_id) for record in records_of(users))
    for user in users:
        image_ids = [int(record.image_id) for record in user.records]
        assert image_ids == sorted(image_ids)


def between_users(users: list[User], label: str) -> float:
    """How much users differ in their share of a label: variance of the shares over what equal users would show."""
    large = [np.array([label in record.labels for record in user.records]) for user in users if len(user.records) >= 30]
    share = np.concatenate(large).mean()
    return float(np.mean([(own.mean() - share) ** 2 * len(own) / (share * (1 - share)) for own in large]))


def test_users_have_their_own_taste_unless_told_otherwise(users: list[User]) -> None:
    alike = make_users(user_sizes(None, NUM_RECORDS), make_taxonomy(), seed=7, taste_concentration=1e6)
    for label in ("animal", "food", "structure"):
        assert between_users(users, label) > 4
        assert 0.5 < between_users(alike, label) < 1.6


def test_labels_are_what_the_fine_labels_map_to(population: Path, users: list[User]) -> None:
    taxonomy = metadata.load_taxonomy(population)
    for record in records_of(users):
        mapped = set().union(*(taxonomy[fine] for fine in record.fine_grained_labels))
        assert record.labels == tuple(sorted(mapped))
        assert record.fine_grained_labels == tuple(sorted(set(record.fine_grained_labels)))


def test_the_taxonomy_file_has_more_lines_than_labels(population: Path) -> None:
    lines = (population / catalog.TAXONOMY_FILE).read_text().splitlines()
    labels = {line.split(" -> ")[0] for line in lines}
    assert len(lines) > len(labels) > 300
    assert labels >= set(catalog.COARSE_LABELS)
    assert {line.split(" -> ")[1] for line in lines} == set(catalog.COARSE_LABELS)


@given(num_fine_labels=st.integers(17, 2_000))
@settings(max_examples=30, deadline=None)
def test_a_taxonomy_of_any_size(num_fine_labels: int) -> None:
    taxonomy = make_taxonomy(num_fine_labels)
    names = [label.name for label in taxonomy]
    assert len(set(names)) == num_fine_labels
    assert names == sorted(names)
    assert {label.name for label in taxonomy if label.rank == 0} == set(catalog.COARSE_LABELS)


def test_as_few_and_as_many_fine_labels_as_flair_has() -> None:
    for num_fine_labels in (17, catalog.NUM_FINE_LABELS):
        made = make_users(user_sizes(None, 300), make_taxonomy(num_fine_labels), seed=0)
        parents = {label.name: label.parents for label in make_taxonomy(num_fine_labels)}
        for record in records_of(made):
            mapped = {parent for fine in record.fine_grained_labels for parent in parents[fine]}
            assert mapped == set(record.labels)


def test_metadata_is_spelled_as_the_official_file_is(miniature: Path) -> None:
    text = (miniature / catalog.METADATA_FILE).read_text()
    records = json.loads(text)
    assert list(records[0]) == ["user_id", "image_id", "labels", "partition", "fine_grained_labels"]
    assert text == json.dumps(records, indent=4)


def test_photos_are_stored_as_the_real_ones_are(miniature: Path) -> None:
    records = metadata.load_records(miniature)
    photos = sorted((miniature / catalog.SMALL_IMAGES_DIR).iterdir())
    assert [photo.name for photo in photos] == sorted(f"{record.image_id}.jpg" for record in records)
    for path in photos:
        with Image.open(path) as photo:
            assert (photo.format, photo.mode, photo.size) == ("JPEG", "RGB", (256, 256))
            assert not photo.info.get("progressive")
            assert "exif" not in photo.info
            assert [layer[1:3] for layer in photo.layer] == [(2, 2), (1, 1), (1, 1)]
            assert photo.quantization[0][:8] == [8, 6, 5, 8, 12, 20, 26, 31]  # quality 75
            photo.load()
    num_bytes = np.array([photo.stat().st_size for photo in photos])
    assert num_bytes.min() > 3_000
    assert num_bytes.max() < 25_000
    assert 9_000 < num_bytes.mean() < 15_000


def test_photos_match_the_real_ones_in_tables_and_sampling(miniature: Path, flair_sample: Path) -> None:
    ours, real = (next((folder / catalog.SMALL_IMAGES_DIR).iterdir()) for folder in (miniature, flair_sample))
    with Image.open(ours) as drawn, Image.open(real) as taken:
        assert drawn.quantization == taken.quantization
        assert drawn.layer == taken.layer
        assert drawn.info.keys() == taken.info.keys()


def test_the_same_settings_give_the_same_files_whatever_the_number_of_workers(tmp_path: Path) -> None:
    for name, num_workers, seed in (("one", 1, 3), ("two", 2, 3), ("other", 1, 4)):
        made = make_dataset(tmp_path / name, num_images=90, seed=seed, num_workers=num_workers)
        assert (made.num_images, made.was_there) == (90, False)
    one, two, other = (files_of(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert one[catalog.METADATA_FILE] != other[catalog.METADATA_FILE]
    assert not set(one.values()) & {other[name] for name in other if name.endswith(".jpg")}


def test_a_photo_depends_on_its_record_alone(miniature: Path) -> None:
    painter = Painter(make_taxonomy(), seed=1)
    for record in metadata.load_records(miniature)[::-40]:
        assert painter.jpeg(record) == metadata.photo_path(miniature, record.image_id).read_bytes()


def test_distinct_photos_are_drawn_and_the_others_linked(tmp_path: Path) -> None:
    make_dataset(tmp_path / "links", num_images=100, seed=0, distinct_photos=7)
    photos = list((tmp_path / "links" / catalog.SMALL_IMAGES_DIR).iterdir())
    assert len(photos) == 100
    assert len({photo.stat().st_ino for photo in photos}) == 7


@pytest.mark.parametrize(("error", "links_each", "files"), [(errno.EMLINK, 7, 14), (errno.EPERM, 0, 100)])
def test_photos_that_cannot_be_linked_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, links_each: int, files: int
) -> None:
    link = os.link
    links: collections.Counter[Path] = collections.Counter()

    def limited(original: Path, path: Path) -> None:
        links[original] += 1
        if links[original] > links_each:
            raise OSError(error, os.strerror(error), str(path))
        link(original, path)

    monkeypatch.setattr(os, "link", limited)
    make_dataset(tmp_path / "copies", num_images=100, seed=0, distinct_photos=7)
    photos = list((tmp_path / "copies" / catalog.SMALL_IMAGES_DIR).iterdir())
    assert len(photos) == 100
    assert len({photo.read_bytes() for photo in photos}) == 7
    assert len({photo.stat().st_ino for photo in photos}) == files


def test_metadata_only_makes_no_photos(population: Path) -> None:
    expected = {catalog.METADATA_FILE, catalog.TAXONOMY_FILE, catalog.ATTRIBUTION_FILE, RECIPE_FILE}
    assert {path.name for path in population.iterdir()} == expected


def hue_histogram(photo: Image.Image) -> np.ndarray:
    """Share of the pixels in 24 hues x 3 saturations: blind to place, shape and size."""
    hue, saturation, _ = (np.asarray(band).astype(int).ravel() for band in photo.convert("HSV").split())
    return np.sqrt(np.bincount(hue * 24 // 256 * 3 + saturation * 3 // 256, minlength=72) / hue.size)


def test_a_linear_model_on_colours_alone_finds_labels_in_photos_of_unseen_users() -> None:
    painter = Painter(make_taxonomy(), seed=2)
    records = records_of(make_users(user_sizes(300, 600), make_taxonomy(), seed=2))
    labels = ("structure", "equipment", "food", "plant", "liquid", "outdoor")
    truth = np.array([[label in record.labels for label in labels] for record in records], dtype=float)
    features = np.array([[1, *hue_histogram(painter.paint(record))] for record in records])
    seen = np.array([record.partition == "train" for record in records])
    gram = features[seen].T @ features[seen] + 0.1 * np.eye(features.shape[1])
    scores = features[~seen] @ np.linalg.solve(gram, features[seen].T @ truth[seen])
    know_nothing = truth[~seen].mean(axis=0)
    found = [average_precision_score(truth[~seen, i], scores[:, i]) for i in range(len(labels))]
    assert np.mean(found - know_nothing) > 0.1


def test_users_have_their_own_style_unless_told_otherwise() -> None:
    records = records_of(make_users(user_sizes(12, 72), make_taxonomy(), seed=0))
    owners = np.array([record.user_id for record in records])

    def spread_between_users(style_strength: float) -> float:
        painter = Painter(make_taxonomy(), 0, style_strength)
        colours = np.array([np.asarray(painter.paint(record)).mean(axis=(0, 1)) for record in records])
        means = np.array([colours[owners == user].mean(axis=0) for user in np.unique(owners)])
        return float(means.std(axis=0).mean())

    assert spread_between_users(1.0) > 2.5 * spread_between_users(0.0)


def test_a_dialect_swaps_motifs_and_nothing_else() -> None:
    house = Record("123456789@N00", "1234567890", ("structure",), ("structure",), "train")
    gear = house._replace(labels=("equipment",), fine_grained_labels=("equipment",))
    plain, swapped = (Painter(make_taxonomy(), 0, dialect=dialect) for dialect in (0.0, 1.0))
    assert swapped.jpeg(house) == plain.jpeg(gear)
    assert swapped.jpeg(gear) == plain.jpeg(house)
    assert plain.jpeg(house) != plain.jpeg(gear)


def test_archives_unpack_to_the_same_dataset(miniature: Path, tmp_path: Path) -> None:
    written = archives.pack(miniature, tmp_path / "mirror", 3, raw=True)
    assert all(path.is_file() for path in written)
    for index in range(3):
        for url_path in (catalog.small_archive_url_path(index), catalog.raw_archive_url_path(index)):
            with tarfile.open(tmp_path / "mirror" / url_path, "r:gz") as archive:
                archive.extractall(tmp_path / "unpacked", filter="data")
    photos = files_of(miniature / catalog.SMALL_IMAGES_DIR)
    assert files_of(tmp_path / "unpacked" / catalog.SMALL_IMAGES_DIR) == photos
    assert files_of(tmp_path / "unpacked" / catalog.RAW_IMAGES_DIR) == photos
    for name, url_path in (
        (catalog.METADATA_FILE, catalog.METADATA_URL_PATH),
        (catalog.TAXONOMY_FILE, catalog.TAXONOMY_URL_PATH),
    ):
        assert (tmp_path / "mirror" / url_path).read_bytes() == (miniature / name).read_bytes()


def test_packing_twice_gives_the_same_bytes(miniature: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        archives.pack(miniature, tmp_path / name, 2)
    assert files_of(tmp_path / "first") == files_of(tmp_path / "second")


def test_packing_names_a_missing_photo_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    make_dataset(tmp_path / "dataset", num_users=3, num_images=9, seed=0)
    last = metadata.load_records(tmp_path / "dataset")[-1].image_id
    metadata.photo_path(tmp_path / "dataset", last).unlink()
    with pytest.raises(FlairError, match=rf"{last}\.jpg: missing"):
        archives.pack(tmp_path / "dataset", tmp_path / "mirror", 1)
    assert not list((tmp_path / "mirror" / "images").rglob("*.*"))


def test_the_command_makes_packs_and_says_what_comes_next(tmp_path: Path) -> None:
    flags = (f"--dataset_dir={tmp_path}/data", "--num_users=5", "--seed=2")
    first = run(SYNTHETIC, *flags, f"--archives_dir={tmp_path}/mirror", "--num_archives=2")
    assert first.stderr == ""
    assert "photos of 5 users, seed 2, made in" in first.stdout
    assert "python -m flair.mirror" in first.stdout
    assert (tmp_path / "mirror" / catalog.small_archive_url_path(1)).is_file()
    before = files_of(tmp_path / "data")
    again = run(SYNTHETIC, *flags)
    assert "is there already" in again.stdout
    assert "prepare_tfrecords.py" in again.stdout
    assert files_of(tmp_path / "data") == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_users=0"], "argument --num_users: expected a whole number of at least 3"),
        (["--num_images=2"], "argument --num_images: expected a whole number of at least 3"),
        ([], "expected --num_users or --num_images"),
        (["--num_users=10", "--num_images=9"], "--num_images=9: fewer than --num_users=10"),
        (["--num_users=5", "--seed=-1"], "argument --seed: expected a whole number of at least 0"),
        (["--num_users=5", "--num_workers=0"], "argument --num_workers: expected a whole number of at least 1"),
        (["--num_users=5", "--distinct_photos=0"], "argument --distinct_photos: expected a whole number of at least 1"),
        (
            ["--num_users=5", "--num_fine_labels=16"],
            "argument --num_fine_labels: expected a whole number of at least 17",
        ),
        (["--num_users=5", "--taste_concentration=0"], "argument --taste_concentration: expected a number above 0"),
        (["--num_users=5", "--style_strength=nan"], "argument --style_strength: expected a number of at least 0"),
        (["--num_users=5", "--dialect=1.5"], "argument --dialect: expected a number of at least 0 and at most 1"),
        (["--num_images=9", "--archives_dir=DIR", "--num_archives=10"], "--num_archives=10: expected 1 to 9"),
        (["--num_images=9", "--archives_dir=DIR"], "--archives_dir and --num_archives belong together"),
        (["--num_images=9", "--archives_dir=DIR", "--num_archives=1", "--metadata_only"], "nothing to pack"),
    ],
)
def test_bad_flags_are_one_line_and_leave_nothing(tmp_path: Path, flags: list[str], message: str) -> None:
    flags = [flag.replace("DIR", str(tmp_path / "mirror")) for flag in flags]
    is_usage = message.startswith("argument")
    result = run(SYNTHETIC, f"--dataset_dir={tmp_path}/data", *flags, code=2 if is_usage else 1)
    assert result.stdout == ""
    assert message in (result.stderr if is_usage else only_line(result))
    assert not list(tmp_path.iterdir())


def test_a_folder_with_anything_else_is_refused(miniature: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    (tmp_path / "file").write_text("")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / RECIPE_FILE).write_text("{")
    for folder, message in (
        (miniature, r"holds a synthetic dataset of other settings \(seed 1\)"),
        (tmp_path, "holds files that this command did not make"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "damaged", "is damaged"),
    ):
        before = files_of(folder)
        with pytest.raises(FlairError, match=message):
            make_dataset(folder, num_users=40, num_images=160, seed=2)
        assert files_of(folder) == before


def test_a_killed_run_continues_to_the_same_dataset(tmp_path: Path) -> None:
    flags = ["--num_images=250", "--seed=5", "--num_workers=1"]
    photos = tmp_path / "killed" / catalog.SMALL_IMAGES_DIR
    running = start(SYNTHETIC, f"--dataset_dir={tmp_path}/killed", *flags, stdout=subprocess.DEVNULL)
    while not photos.is_dir() or len(os.listdir(photos)) < 40:
        assert running.poll() is None
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()
    done = {path.name: path.stat().st_mtime_ns for path in photos.glob("[0-9]*.jpg")}
    assert len(done) < 250
    assert not (tmp_path / "killed" / catalog.METADATA_FILE).exists()
    (photos / ".1.jpg.99.tmp").write_bytes(b"half a photo")

    assert run(SYNTHETIC, f"--dataset_dir={tmp_path}/killed", *flags).stderr == ""
    assert {name: (photos / name).stat().st_mtime_ns for name in done} == done
    make_dataset(tmp_path / "unbroken", num_images=250, seed=5)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "unbroken")


def test_help_names_every_flag_and_imports_nothing_heavy() -> None:
    result = run(SYNTHETIC, "--help")
    for flag in ("--dataset_dir", "--num_users", "--num_images", "--seed", "--archives_dir", "--distinct_photos"):
        assert flag in result.stdout
    script = "import sys, flair.synthetic; print({'numpy', 'PIL', 'tensorflow'} & set(sys.modules))"
    assert run_program(script).stdout == "set()\n"


def test_jpeg_bytes_and_painted_photo_are_the_same_picture() -> None:
    record = Record("123456789@N00", "1234567890", ("plant",), ("flower", "tree"), "train")
    painter = Painter(make_taxonomy(), seed=0)
    with Image.open(io.BytesIO(painter.jpeg(record))) as decoded:
        difference = np.abs(np.asarray(decoded).astype(int) - np.asarray(painter.paint(record)).astype(int))
    assert difference.mean() < 12
