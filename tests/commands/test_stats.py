"""`python -m flair.stats`: the table, the figures, the numbers, and what it says of data that is no data."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flair.dataset import catalog
from flair.dataset.metadata import Record, load_records, record_to_json
from flair.miniature.population import make_users, user_sizes
from flair.miniature.taxonomy import make_taxonomy
from flair.statistics.labels import count_labels, encode
from flair.statistics.table import compute, table, to_json
from flair.stats import main
from tests.support.commands import run, run_process

FIGURES = {
    "co_occurrence.png",
    "coarse_labels.png",
    "fine_labels.png",
    "label_hierarchy.png",
    "labels_per_photo.png",
    "labels_per_user.png",
    "photos_per_user.png",
    "user_divergence.png",
    "user_labels.png",
}


def test_a_table_figures_and_numbers_come_out(
    miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"--dataset_dir={miniature}", f"--output_dir={tmp_path / 'out'}"]) == 0
    printed = capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*FIGURES, "statistics.json"}
    for name in FIGURES:
        with Image.open(tmp_path / "out" / name) as figure:
            grey = np.asarray(figure.convert("L"))
        # An empty canvas, or one black all over, has hardly any edges.
        assert figure.format == "PNG" and min(grey.shape) > 200
        assert 0.005 < (np.abs(np.diff(grey.astype(int), axis=1)) > 30).mean() < 0.5
    records = load_records(miniature)
    numbers = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert numbers["photos"] == {p: sum(r.partition == p for r in records) for p in catalog.PARTITIONS}
    carrying = sum("structure" in record.labels for record in records)
    assert {"name": "structure", "photos": carrying} == {k: numbers["labels"][0][k] for k in ("name", "photos")}
    assert re.search(rf"^structure +{carrying} .* 228,923 +53\.4%", printed, re.M)
    assert re.search(r"^all +40 +51,414 +160 +429,078$", printed, re.M)
    *_, install, look = printed.splitlines()
    assert install.startswith("next: ") and "EXTRAS=notebooks" in install
    assert look.split() == [f"FLAIR_DATASET_DIR={miniature}", "jupyter", "notebook", "explore_images.ipynb"]


@pytest.mark.parametrize("count", [1, 9])
def test_metadata_alone_will_do_and_very_little_of_it(
    tmp_path: Path, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    write_little(tmp_path, count)
    assert main([f"--dataset_dir={tmp_path}", f"--output_dir={tmp_path / 'out'}"]) == 0
    assert "has no label_relationship.txt: no figure of the label hierarchy" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == FIGURES - {"label_hierarchy.png"}


def write_little(folder: Path, count: int) -> None:
    """The metadata of `count` photos, two a user."""
    records = [
        Record(f"{i // 2}@N00", str(i), ("food",), ("bread", "odd_one")[: 1 + i % 2], "train") for i in range(count)
    ]
    (folder / catalog.METADATA_FILE).write_text(json.dumps([record_to_json(record) for record in records]))


def test_very_many_and_odd_labels_will_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tables of users by labels, or of labels by labels, would have no end; a name is no formula."""
    count = 10_000
    names = [f"{number} costs $\\frac$ " + "x" * 200 for number in range(count)]
    records = [
        Record(f"{number}@N00", str(number), tuple(names[number : number + 9]), ("$\\bread$",), "train")
        for number in range(count)
    ]
    records.append(Record("0@N00", "all", tuple(names[:1000]), ("bread",), "train"))
    (tmp_path / catalog.METADATA_FILE).write_text(json.dumps([record_to_json(record) for record in records]))
    (tmp_path / catalog.TAXONOMY_FILE).write_text("".join(f"bread -> {name}\n" for name in names[:50]))
    assert main([f"--dataset_dir={tmp_path}", f"--output_dir={tmp_path / 'out'}"]) == 0
    assert f"and {count - 24:,} more" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "co_occurrence.png") as figure:
        assert max(figure.size) < 4000


def test_other_data_than_flair_will_do(coco256: Path, tmp_path: Path) -> None:
    assert main([f"--dataset_dir={coco256}", f"--output_dir={tmp_path}"]) == 0
    assert {path.name for path in tmp_path.glob("*.png")} == FIGURES


def test_mistakes_end_in_one_line(miniature: Path, tmp_path: Path) -> None:
    file = tmp_path / "a file"
    file.touch()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / catalog.METADATA_FILE).write_text('[{"user_id": 3}]')
    for flags, code, said in (
        ([f"--dataset_dir={tmp_path / 'absent'}"], 1, "no such directory"),
        ([f"--dataset_dir={tmp_path}"], 1, "has no labels_and_metadata.json"),
        ([f"--dataset_dir={broken}"], 1, "record 0: field 'image_id' is missing"),
        ([f"--dataset_dir={miniature}", f"--output_dir={file}"], 1, "is a file; expected a folder"),
        ([f"--dataset_dir={miniature}", "--seed=-1"], 2, "--seed: expected a whole number of at least 0"),
        ([], 2, "--dataset_dir"),
    ):
        ended = run("flair.stats", *flags, code=code)
        assert said in ended.stderr.splitlines()[-1]
        assert "Traceback" not in ended.stderr


def test_the_same_seed_gives_the_same_numbers(miniature: Path) -> None:
    records = load_records(miniature)
    once, again, other = (to_json(compute(records, seed=seed)[1]) for seed in (3, 3, 4))
    assert once == again
    assert once["labels"] == other["labels"]
    assert once["divergence"] != other["divergence"]


def published_records() -> list[Record]:
    """FLAIR's numbers exactly: users and photos of each partition, coarse label counts, the 20 frequent fine labels.

    Labels are dealt out like cards, so that no photo gets one twice and every one has two or three.
    """
    num_photos = sum(catalog.NUM_IMAGES.values())
    labels: list[list[str]] = [[] for _ in range(num_photos)]
    fine: list[list[str]] = [[] for _ in range(num_photos)]
    for counts, into in ((catalog.COARSE_LABEL_COUNTS, labels), (catalog.HEAD_FINE_LABEL_COUNTS, fine)):
        photo = itertools.cycle(range(num_photos))
        for name, count in counts.items():
            for row in itertools.islice(photo, count):
                into[row].append(name)
    records, row = [], 0
    for part, partition in enumerate(catalog.PARTITIONS):
        for user, size in enumerate(user_sizes(catalog.NUM_USERS[partition], catalog.NUM_IMAGES[partition]).tolist()):
            for _ in range(size):
                own = tuple(fine[row]) or ("a rare one",)
                records.append(Record(f"{part}{user:06d}@N00", str(row), tuple(labels[row]), own, partition))
                row += 1
    return records


@pytest.mark.slow
def test_the_published_tables_come_out_of_data_with_the_published_counts() -> None:
    _, statistics = compute(published_records())
    printed = table(statistics)
    for partition in catalog.PARTITIONS:
        users, photos = catalog.NUM_USERS[partition], catalog.NUM_IMAGES[partition]
        assert f"{partition:<12}{users:>12,}{users:>12,}{photos:>12,}{photos:>12,}" in printed
    assert [(label.name, label.photos) for label in statistics.coarse] == list(catalog.COARSE_LABEL_COUNTS.items())
    head = [(label.name, label.photos) for label in statistics.fine if label.name != "a rare one"]
    assert head[:20] == list(catalog.HEAD_FINE_LABEL_COUNTS.items())
    assert statistics.distributions["coarse labels of a photo"].mean == pytest.approx(2.785249, abs=5e-7)
    assert statistics.distributions["photos of a user"].mean == pytest.approx(8.345548, abs=5e-7)


@pytest.mark.slow
def test_a_synthetic_population_of_full_size_is_near_the_published_tables() -> None:
    sizes = user_sizes(sum(catalog.NUM_USERS.values()), sum(catalog.NUM_IMAGES.values()))
    users = make_users(sizes, make_taxonomy(catalog.NUM_FINE_LABELS), seed=0)
    records = [record for user in users for record in user.records]
    _, statistics = compute(records)
    assert statistics.users == catalog.NUM_USERS
    photos = statistics.distributions["photos of a user"]
    assert photos.mean == pytest.approx(catalog.IMAGES_PER_USER.mean, abs=5e-7)
    assert photos[2:6] == catalog.IMAGES_PER_USER[2:6]
    assert photos.sd == pytest.approx(catalog.IMAGES_PER_USER.sd, rel=0.02)
    for name, published in (
        ("coarse labels of a photo", catalog.COARSE_LABELS_PER_IMAGE),
        ("fine-grained labels of a photo", catalog.FINE_LABELS_PER_IMAGE),
    ):
        assert statistics.distributions[name].mean == pytest.approx(published.mean, rel=0.05)
    for label in statistics.coarse:
        assert label.photos == pytest.approx(catalog.COARSE_LABEL_COUNTS[label.name], rel=0.1)
    assert len(count_labels(encode(records[:1000]), encode(records[:1000]).coarse)) <= 17


@pytest.mark.parametrize("backend", ["Qt4Agg", "module://of_a_notebook"])
def test_a_backend_of_the_environment_is_not_needed(tmp_path: Path, backend: str) -> None:
    """Neither that of a window system nor that of a notebook; the variable counts where matplotlib is imported."""
    write_little(tmp_path, 2)
    flags = (f"--dataset_dir={tmp_path}", f"--output_dir={tmp_path / 'out'}")
    assert run_process("flair.stats", *flags, env={"MPLBACKEND": backend}).stderr == ""
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == FIGURES - {"label_hierarchy.png"}
