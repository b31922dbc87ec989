"""The audit by its command line, on a miniature with planted copies, against brute force and after kills."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import structural_similarity

from flair import near_duplicates
from flair.curation.exclusion import read_exclusion
from flair.duplicates.distance import mirror
from flair.duplicates.planted import jpeg, noised, resized
from flair.duplicates.rule import Thresholds
from flair.miniature.dataset import make_dataset
from tests.support.commands import Result, run, run_interrupted

OUTPUTS = ("neighbors.json", "near_duplicates.json", "duplicate_pairs.json", "summary.json", "summary.txt")


class Planted(NamedTuple):
    """A dataset and what was planted in it: kind -> ids of equal photos."""

    dataset_dir: Path
    groups: dict[str, list[str]]
    partition: dict[str, str]
    user: dict[str, str]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """90 photos of 24 users, eight of them copies of others. Read only."""
    folder = tmp_path_factory.mktemp("planted") / "dataset"
    make_dataset(folder, num_users=24, num_images=90, seed=5)
    items = json.loads((folder / "labels_and_metadata.json").read_text())
    of = {name: [item for item in items if item["partition"] == name] for name in ("train", "val", "test")}
    crowd = next(
        group
        for user in dict.fromkeys(item["user_id"] for item in of["train"])
        if len(group := [item for item in of["train"] if item["user_id"] == user]) >= 6
    )
    alone = [item for item in of["train"] if item["user_id"] != crowd[0]["user_id"]]
    rng = np.random.default_rng(0)

    def path(item: dict[str, Any]) -> Path:
        return folder / "small_images" / f"{item['image_id']}.jpg"

    def pixels(item: dict[str, Any]) -> np.ndarray:
        return np.asarray(Image.open(path(item)).convert("RGB"))

    groups = {}

    def plant(kind: str, source: dict[str, Any], data: bytes, *targets: dict[str, Any]) -> None:
        for target in targets:
            path(target).write_bytes(data)
        groups[kind] = sorted(item["image_id"] for item in (source, *targets))

    plant("byte copy", alone[0], path(alone[0]).read_bytes(), of["test"][0])
    plant("same pixels", alone[1], path(alone[1]).read_bytes() + b"\xff\xd9", of["val"][0])
    plant("re-encoded, noise", alone[2], jpeg(noised(pixels(alone[2]), 2, rng), 80), of["test"][1])
    plant("burst", crowd[0], jpeg(noised(pixels(crowd[0]), 1, rng), 90), crowd[1])
    path(crowd[2]).write_bytes(jpeg(noised(pixels(crowd[0]), 1, rng), 90))
    groups["burst"] = sorted(item["image_id"] for item in crowd[:3])
    other_user = next(item for item in alone[10:] if item["user_id"] != alone[3]["user_id"])
    plant("resized", alone[3], jpeg(resized(pixels(alone[3]), 160)), other_user)
    plant("mirrored", alone[4], jpeg(mirror(pixels(alone[4]))), of["val"][1])
    plant("byte copies in test", of["test"][2], path(of["test"][2]).read_bytes(), of["test"][3])
    return Planted(
        folder,
        groups,
        {item["image_id"]: item["partition"] for item in items},
        {item["image_id"]: item["user_id"] for item in items},
    )


def audit(source: Path, output: Path, *more: str) -> Result:
    """The command, however it ends."""
    flags = (f"--dataset_dir={source}", f"--output_dir={output}", "--num_workers=1", *more)
    return run("flair.near_duplicates", *flags, code=None)


def read(output: Path, name: str) -> Any:
    return json.loads((output / name).read_text())


def outputs(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


@pytest.fixture(scope="module")
def audited(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted dataset's audit with the defaults."""
    output = tmp_path_factory.mktemp("audited")
    result = audit(planted.dataset_dir, output)
    assert result.returncode == 0, result.stderr
    return output


def test_every_planted_copy_is_found_and_nothing_else(planted: Planted, audited: Path) -> None:
    found = read(audited, "near_duplicates.json")
    assert found == {
        image_id: [other for other in group if other != image_id]
        for group in planted.groups.values()
        for image_id in group
    }
    neighbors = read(audited, "neighbors.json")
    for kind, group in planted.groups.items():
        for image_id in group:
            for metric in ("l2", "dssim"):
                nearest = neighbors[image_id][metric][: len(group) - 1]
                assert {other for other, _ in nearest} == set(group) - {image_id}, (kind, metric)
            equal = [other for other, _ in neighbors[image_id].get("sha256", [])]
            copies = set(group) - {image_id} if kind in ("byte copy", "same pixels", "byte copies in test") else set()
            assert set(equal) >= copies
    kinds = {tuple(pair["image_ids"]): pair for pair in read(audited, "duplicate_pairs.json")}
    assert kinds[tuple(planted.groups["byte copy"])]["kind"] == "same file"
    assert kinds[tuple(planted.groups["same pixels"])]["kind"] == "same pixels"
    assert [pair["image_ids"] for pair in kinds.values() if pair["mirrored"]] == [planted.groups["mirrored"]]
    assert kinds[tuple(planted.groups["mirrored"])]["relation"] == "across partitions"


def test_distances_are_those_of_the_definitions(planted: Planted, audited: Path) -> None:
    neighbors = read(audited, "neighbors.json")

    def pixels(image_id: str) -> np.ndarray:
        return np.asarray(Image.open(planted.dataset_dir / "small_images" / f"{image_id}.jpg").convert("RGB"))

    for kind in ("re-encoded, noise", "resized", "mirrored"):
        one, other = planted.groups[kind]
        first, second = pixels(one), pixels(other)
        if kind == "mirrored":
            second = second[:, ::-1]
        assert dict(neighbors[one]["l2"])[other] == ((first.astype(float) - second) ** 2).sum()
        expected = (1 - structural_similarity(first, second, win_size=35, channel_axis=2)) / 2
        assert dict(neighbors[one]["dssim"])[other] == pytest.approx(expected, abs=1e-6)


def test_the_result_is_that_of_brute_force_and_of_any_chunk_size_and_number_of_workers(
    planted: Planted, audited: Path, tmp_path: Path
) -> None:
    expected = outputs(audited)
    for name, flags in {
        "brute": ["--brute_force"],
        "7": ["--chunk_size=7"],
        "workers": ["--num_workers=2", "--chunk_size=64"],
    }.items():
        result = audit(planted.dataset_dir, tmp_path / name, *flags)
        assert result.returncode == 0, result.stderr
        assert outputs(tmp_path / name) == expected, name


@pytest.mark.parametrize("pairs", ["cross_partition", "cross_user", "within_user"])
def test_only_the_pairs_asked_for_are_found(planted: Planted, audited: Path, tmp_path: Path, pairs: str) -> None:
    flags = [f"--pairs={pairs}", f"--cache_dir={audited / 'cache'}", "--chunk_size=50"]
    assert audit(planted.dataset_dir, tmp_path / "search", *flags).returncode == 0
    if pairs != "cross_user":  # nearly all pairs, which have been compared with brute force above
        assert audit(planted.dataset_dir, tmp_path / "brute", *flags, "--brute_force").returncode == 0
        assert outputs(tmp_path / "search") == outputs(tmp_path / "brute")

    def counts(one: str, other: str) -> bool:
        return {
            "cross_partition": planted.partition[one] != planted.partition[other],
            "cross_user": planted.user[one] != planted.user[other],
            "within_user": planted.user[one] == planted.user[other],
        }[pairs]

    everything = {tuple(pair["image_ids"]) for pair in read(audited, "duplicate_pairs.json")}
    found = {tuple(pair["image_ids"]) for pair in read(tmp_path / "search", "duplicate_pairs.json")}
    assert found == {pair for pair in everything if counts(*pair)}
    assert found


def test_mirrored_copies_are_left_out_on_request(planted: Planted, audited: Path, tmp_path: Path) -> None:
    flags = ["--no_mirrored", f"--cache_dir={audited / 'cache'}"]
    for name, more in {"search": [], "brute": ["--brute_force"]}.items():
        assert audit(planted.dataset_dir, tmp_path / name, *flags, *more).returncode == 0
    assert outputs(tmp_path / "search") == outputs(tmp_path / "brute")
    everything, found = (
        {tuple(pair["image_ids"]) for pair in read(folder, "duplicate_pairs.json")}
        for folder in (audited, tmp_path / "search")
    )
    assert everything - found == {tuple(planted.groups["mirrored"])} and found < everything


def test_a_second_run_computes_nothing_and_a_changed_photo_is_seen(planted: Planted, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    shutil.copytree(planted.dataset_dir, dataset)
    first = audit(dataset, tmp_path / "out")
    assert "photos decoded: " in first.stdout and " computed, 0 reused" in first.stdout
    before = outputs(tmp_path / "out")
    second = audit(dataset, tmp_path / "out")
    assert second.stdout.count(": 0 computed,") == 4, second.stdout
    assert "photos decoded: 0 computed, 90 reused" in second.stdout
    assert outputs(tmp_path / "out") == before
    target = dataset / "small_images" / f"{planted.groups['byte copy'][0]}.jpg"
    source = next(
        path
        for path in sorted((dataset / "small_images").iterdir())
        if not any(path.stem in group for group in planted.groups.values())
    )
    target.write_bytes(source.read_bytes())
    assert audit(dataset, tmp_path / "out").returncode == 0
    found = read(tmp_path / "out", "near_duplicates.json")
    assert found[source.stem] == [target.stem]
    assert planted.groups["byte copy"][1] not in found
    # What is listed and how pairs are judged is decided anew; the search for them is not.
    third = audit(dataset, tmp_path / "out", "--top_k=1", "--duplicate_l2=1000000")
    assert "pairs searched by their block means: 0 computed" in third.stdout
    assert all(len(lists["l2"]) == 1 for lists in read(tmp_path / "out", "neighbors.json").values())


def test_the_result_does_not_depend_on_what_other_runs_asked_for(
    planted: Planted, audited: Path, tmp_path: Path
) -> None:
    def run(name: str, *flags: str) -> dict[str, bytes]:
        cache = tmp_path / f"cache of {name}"
        cache.mkdir(exist_ok=True)
        shutil.copy(audited / "cache" / "signatures.npy", cache)
        result = audit(planted.dataset_dir, tmp_path / name, f"--cache_dir={cache}", "--review_l2=300000000", *flags)
        assert result.returncode == 0, result.stderr
        return outputs(tmp_path / name)

    run("second", "--review_dssim=0.5", "--top_k=9")
    few = ("--review_dssim=0.5", "--duplicate_l2=1000000", "--top_k=1")
    assert run("second", *few) == run("first", *few)


def test_a_killed_run_continues_to_the_same_result(planted: Planted, audited: Path, tmp_path: Path) -> None:
    flags = [
        f"--dataset_dir={planted.dataset_dir}",
        f"--output_dir={tmp_path}",
        "--num_workers=1",
        "--chunk_size=40",
    ]
    script = tmp_path / "audit.py"
    script.write_text(
        "import flair.files.growing\nfrom flair import near_duplicates\nfrom flair.terminal import command\n"
        "flair.files.growing.SAVE_INTERVAL_SECONDS = 0.0\ncommand.run(near_duplicates.main)\n"
    )
    counted = run_interrupted("SIGKILL", 0, str(script), *flags)
    assert counted.returncode == 0, counted.stderr
    operations = int(counted.stderr.split()[-1])
    assert outputs(tmp_path) == outputs(audited)
    for name in (*OUTPUTS, "cache"):
        path = tmp_path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    kills = 0
    # While photos are decoded, then while they are compared.
    for step in (operations // 5, operations // 3, operations // 4, operations // 4):
        result = run_interrupted("SIGKILL", step, str(script), *flags)
        kills += result.returncode == -signal.SIGKILL
    assert kills >= 3
    assert not (tmp_path / "summary.json").exists() or kills < 4
    result = run_interrupted("SIGKILL", 0, str(script), *flags)
    assert result.returncode == 0, result.stderr
    assert "photos decoded: 90 computed" not in result.stdout
    assert outputs(tmp_path) == outputs(audited)
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp") or path.name.startswith("part-")]


def test_the_numbers_of_the_summary_add_up(planted: Planted, audited: Path) -> None:
    summary, pairs = read(audited, "summary.json"), read(audited, "duplicate_pairs.json")
    counts = summary["duplicate_pairs"]
    assert counts["total"] == len(pairs) == sum(row["total"] for row in counts["by relation"].values())
    for row in counts["by relation"].values():
        assert row["total"] == row["same file"] + row["same pixels"] + row["near"]
    relations = counts["by relation"]
    assert relations["across partitions"] == {"total": 4, "same file": 1, "same pixels": 1, "near": 2}
    assert relations["within a user"]["total"] >= 3
    assert sum(counts["between partitions"].values()) == relations["across partitions"]["total"]
    review = summary["pairs_to_review"]
    assert review["total"] == sum(review["by relation"].values()) >= len(pairs)
    exclusion = read_exclusion(audited / "near_duplicates.json")
    groups = summary["components"]
    assert (groups["total"], groups["photos"]) == (len(exclusion.components), len(exclusion.ids))
    assert sum(groups["by relation"].values()) == groups["total"]
    assert sum(int(size) * count for size, count in groups["by size"].items()) == groups["photos"]
    for partition in ("train", "val", "test"):
        ids = {image_id for image_id, own in planted.partition.items() if own == partition}
        leaving = exclusion.leaving(ids, partition)
        assert summary["resolution"]["leaving"][partition] == len(leaving)
        assert summary["photos"][partition] == len(leaving) + summary["resolution"]["staying"][partition]
    assert summary["affected"]["val"]["with one in train"] == 2
    assert summary["affected"]["test"]["photos"] == 4
    assert summary["affected"]["test"]["with one elsewhere"] == 2
    assert summary["resolution"]["leaving"]["test"] == 3


def test_exact_copies_alone_need_no_search(planted: Planted, tmp_path: Path) -> None:
    result = audit(planted.dataset_dir, tmp_path, "--metrics=sha256", "--partitions=train,test")
    assert result.returncode == 0, result.stderr
    assert {pair["kind"] for pair in read(tmp_path, "duplicate_pairs.json")} == {"same file"}
    copies = planted.groups["byte copy"] + planted.groups["byte copies in test"]
    assert sorted(read(tmp_path, "near_duplicates.json")) == sorted(copies)
    assert "searched by their block means: 0 computed, 0 reused" in result.stdout


def test_features_of_a_file_are_listed_and_can_decide(planted: Planted, audited: Path, tmp_path: Path) -> None:
    from tests.support.feature_files import write_features

    ids = sorted(planted.partition, reverse=True)
    values = np.random.default_rng(3).normal(size=(len(ids), 8)).astype(np.float32)
    one, other = planted.groups["resized"]
    values[ids.index(one)] = values[ids.index(other)] + 1
    write_features(tmp_path / "features.npy", values, ids, {"model": "none"})
    flags = [f"--features={tmp_path / 'features.npy'}", f"--cache_dir={audited / 'cache'}"]
    assert audit(planted.dataset_dir, tmp_path / "out", *flags).returncode == 0
    assert read(tmp_path / "out", "near_duplicates.json") == read(audited, "near_duplicates.json")
    listed = dict(read(tmp_path / "out", "neighbors.json")[one]["features"])
    assert listed[other] == pytest.approx(8, rel=1e-5)
    assert audit(planted.dataset_dir, tmp_path / "out", *flags, "--duplicate_features=8.1").returncode == 0
    found = read(tmp_path / "out", "near_duplicates.json")
    assert found[one] == [other]
    assert not set(planted.groups["mirrored"]) & set(found)
    write_features(tmp_path / "features.npy", values[1:], ids[1:], {})
    refused = audit(planted.dataset_dir, tmp_path / "out", *flags)
    assert (refused.returncode, ids[0] in refused.stderr) == (1, True)


def test_the_help_tells_the_defaults_that_hold(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        near_duplicates.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, value in Thresholds()._asdict().items():
        _, _, rest = text.partition(f" --{name} ")
        assert value is None or f"default: {value})" in rest.partition(" --")[0], name


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--metrics=features"], 2, "needs --features=FILE.npy; make it with python -m benchmark.features_main"),
        (["--features=missing.npy"], 1, "--features=missing.npy: no such file; python -m benchmark.features_main"),
        (["--metrics=l2,psnr"], 2, "expected some of sha256,l2,dssim,features"),
        (["--top_k=0"], 2, "expected a whole number of at least 1"),
        (["--duplicate_l2=200000000"], 2, "--duplicate_l2 is greater than --review_l2"),
        (["--duplicate_dssim=nan"], 2, "expected a number, found 'nan'"),
        (["--pairs=some"], 2, "invalid choice"),
    ],
)
def test_wrong_flags_are_told_in_a_line(
    planted: Planted, tmp_path: Path, flags: list[str], code: int, message: str
) -> None:
    result = audit(planted.dataset_dir, tmp_path, *flags)
    assert result.returncode == code
    assert message in result.stderr.splitlines()[-1]


def test_a_broken_photo_is_named_and_the_cache_survives(planted: Planted, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    shutil.copytree(planted.dataset_dir, dataset)
    path = dataset / "small_images" / f"{planted.groups['mirrored'][0]}.jpg"
    data = path.read_bytes()
    path.write_bytes(data[:500])
    result = audit(dataset, tmp_path / "out")
    assert result.returncode == 1
    assert path.name in result.stderr and len(result.stderr.splitlines()) == 1
    path.write_bytes(data)
    table = tmp_path / "out" / "cache" / "signatures.npy"
    if table.exists():
        table.write_bytes(table.read_bytes()[:-7])
        result = audit(dataset, tmp_path / "out")
        assert (result.returncode, "signatures.npy: is damaged" in result.stderr) == (1, True)
        table.unlink()
    assert audit(dataset, tmp_path / "out").returncode == 0


def _cut(data: bytes) -> bytes:
    return data[:-9]


def _flipped(data: bytes) -> bytes:
    return data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]


@pytest.fixture(scope="module")
def searched_once(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit whose cache no other audit shares."""
    output = tmp_path_factory.mktemp("searched_once")
    assert audit(planted.dataset_dir, output).returncode == 0
    return output


@pytest.mark.parametrize("name", ["signatures.npy", "search-*/pairs.npy", "search-*/structure.npy"])
@pytest.mark.parametrize(
    "damaged", [lambda _: b"", lambda _: b"junk", _cut, _flipped], ids=["empty", "junk", "cut", "bit"]
)
def test_a_damaged_file_of_the_cache_is_named_and_not_trusted(
    planted: Planted, searched_once: Path, tmp_path: Path, name: str, damaged: Callable[[bytes], bytes]
) -> None:
    output = tmp_path / "out"
    shutil.copytree(searched_once, output)
    (path,) = output.glob(f"cache/{name}")
    path.write_bytes(damaged(path.read_bytes()))
    result = audit(planted.dataset_dir, output)
    assert result.returncode == 1
    assert f"{path}: is damaged" in result.stderr.splitlines()[-1] and "delete it" in result.stderr
    path.unlink()
    assert audit(planted.dataset_dir, output).returncode == 0
    assert outputs(output) == outputs(searched_once)


def test_coco_photos_have_no_near_duplicates_and_the_report_adds_up(coco256: Path, tmp_path: Path) -> None:
    result = audit(coco256, tmp_path)
    assert result.returncode == 0, result.stderr
    summary = read(tmp_path, "summary.json")
    assert summary["photos"] == {"train": 202, "val": 37, "test": 17}
    assert summary["pairs_in_scope"] == 256 * 255 // 2
    pairs = read(tmp_path, "duplicate_pairs.json")
    assert len(pairs) == summary["duplicate_pairs"]["total"]
    assert sum(row["total"] for row in summary["duplicate_pairs"]["by relation"].values()) == len(pairs)


@pytest.mark.parametrize("shared", ["cache", "out"])
def test_a_second_audit_of_the_same_cache_or_output_is_refused(planted: Planted, tmp_path: Path, shared: str) -> None:
    (tmp_path / shared).mkdir()
    descriptor = os.open(tmp_path / shared, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        refused = audit(planted.dataset_dir, tmp_path / "out", f"--cache_dir={tmp_path / 'cache'}")
    finally:
        os.close(descriptor)
    assert refused.returncode == 1
    assert f"{tmp_path / shared}: another process is preparing this output" in refused.stderr


def test_an_output_that_cannot_be_written_is_told_before_the_work(planted: Planted, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = audit(planted.dataset_dir, tmp_path / "file" / "out", f"--cache_dir={tmp_path / 'cache'}")
    assert refused.returncode == 1
    assert str(tmp_path / "file") in refused.stderr and len(refused.stderr.splitlines()) == 1
    assert not list((tmp_path / "cache").glob("*.npy"))
