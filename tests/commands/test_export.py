"""`python -m flair.export --format=parquet`: what it writes, read back as from Hugging Face; kills; bad input."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import download_dataset
from flair import export as export_door
from flair.dataset import catalog
from flair.download import huggingface
from flair.errors import FlairError
from flair.records.tfrecord.reader import TFRecords
from flair.records.tfrecord.writer import write_tfrecords
from tests.support import fault_server
from tests.support.commands import ROOT, Result, refused, run, run_interrupted, run_program
from tests.support.tiny_flair import tree

pa = pytest.importorskip("pyarrow", reason="the huggingface extra is not installed")
pq = pytest.importorskip("pyarrow.parquet", reason="the huggingface extra is not installed")

# https://huggingface.co/datasets/apple/flair, its columns.
SCHEMA = {
    "user_id": pa.string(),
    "image_id": pa.int64(),
    "labels": pa.list_(pa.string()),
    "partition": pa.string(),
    "fine_grained_labels": pa.list_(pa.string()),
    "image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
}
SHARDS = {"train": 10, "val": 2, "test": 2}


def export(source: Path, output: Path, *more: object, code: int = 0) -> Result:
    return run("flair.export", f"--dataset_dir={source}", f"--output_dir={output}", "--num_workers=1", *more, code=code)


def records_of(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "labels_and_metadata.json").read_text(encoding="utf-8")))


def rows_of(folder: Path, pattern: str = "data/*.parquet") -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob(pattern)) for row in pq.read_table(path).to_pylist()]


def by_id(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {str(record["image_id"]): {**record, "image_id": str(record["image_id"])} for record in records}


def copy(source: Path, target: Path) -> Path:
    """The dataset, photos as hard links: whoever damages one writes a new file."""
    shutil.copytree(source, target, copy_function=lambda a, b: Path(b).hardlink_to(a))
    return target


@pytest.fixture(scope="module")
def exported(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature, exported. Read only."""
    folder = tmp_path_factory.mktemp("exported") / "parquet"
    result = export(miniature, folder)
    assert f"Wrote 160 photos of 40 users, {result.stdout.split(', ')[1]}" in result.stdout
    assert f"Next: datasets.load_dataset('{folder}')" in result.stdout
    return folder


def test_every_photo_is_there_with_what_is_said_of_it_byte_for_byte(miniature: Path, exported: Path) -> None:
    rows = rows_of(exported)
    photos = {str(row["image_id"]): row.pop("image") for row in rows}
    assert by_id(rows) == by_id(records_of(miniature)) and len(rows) == 160
    for image_id, photo in photos.items():
        assert photo == {
            "bytes": (miniature / "small_images" / f"{image_id}.jpg").read_bytes(),
            "path": f"{image_id}.jpg",
        }


def test_files_and_columns_are_those_of_hugging_face(miniature: Path, exported: Path) -> None:
    names = [catalog.huggingface_shard(name, index) for name, count in SHARDS.items() for index in range(count)]
    assert sorted(path.relative_to(exported).as_posix() for path in exported.glob("data/*")) == sorted(names)
    for name in names:
        schema = pq.read_schema(exported / name)
        assert dict(zip(schema.names, schema.types, strict=True)) == SCHEMA
        partition = name.removeprefix("data/").partition("-")[0]
        assert set(pq.read_table(exported / name, columns=["partition"])["partition"].to_pylist()) == {partition}
    for name in ("label_relationship.txt", "ATTRIBUTION.txt"):
        assert (exported / name).read_bytes() == (miniature / name).read_bytes()


def test_users_and_their_photos_come_in_the_order_of_the_metadata(miniature: Path, exported: Path) -> None:
    for partition in SHARDS:
        users: dict[str, list[str]] = {}
        for record in records_of(miniature):
            if record["partition"] == partition:
                users.setdefault(record["user_id"], []).append(record["image_id"])
        rows = rows_of(exported, f"data/{partition}-*.parquet")
        assert [(row["user_id"], str(row["image_id"])) for row in rows] == [
            (user_id, image_id) for user_id, image_ids in users.items() for image_id in image_ids
        ]


def test_download_dataset_reads_it_back_from_a_local_hub(
    miniature: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = f"/datasets/{catalog.HUGGINGFACE_DATASET}/resolve/{catalog.HUGGINGFACE_REVISION}"
    with fault_server.serve() as server:
        for name, content in tree(exported).items():
            server.files[f"{base}/{name}"] = content
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        assert download_dataset.main([f"--dataset_dir={tmp_path / 'back'}", "--source=huggingface"]) == 0
    back = tmp_path / "back"
    assert by_id(records_of(back)) == by_id(records_of(miniature))
    for name in ("small_images", "label_relationship.txt", "ATTRIBUTION.txt"):
        one, other = ({k: v for k, v in tree(folder).items() if k.startswith(name)} for folder in (back, miniature))
        assert one == other and one
    export(back, tmp_path / "again")
    assert tree(tmp_path / "again" / "data") == tree(exported / "data")


def test_a_data_set_without_licences_is_read_back_too(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Apple's server has no ATTRIBUTION.txt."""
    source = copy(miniature, tmp_path / "source")
    (source / "ATTRIBUTION.txt").unlink()
    export(source, tmp_path / "parquet")
    base = f"/datasets/{catalog.HUGGINGFACE_DATASET}/resolve/{catalog.HUGGINGFACE_REVISION}"
    with fault_server.serve() as server:
        for name, content in tree(tmp_path / "parquet").items():
            server.files[f"{base}/{name}"] = content
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        assert download_dataset.main([f"--dataset_dir={tmp_path / 'back'}", "--source=huggingface"]) == 0
    assert by_id(records_of(tmp_path / "back")) == by_id(records_of(miniature))


def test_the_bytes_depend_on_the_data_and_the_flags_alone(miniature: Path, exported: Path, tmp_path: Path) -> None:
    result = run(
        "flair.export", f"--dataset_dir={miniature}", f"--output_dir={tmp_path / 'parquet'}", "--num_workers=2"
    )
    assert result.stderr == ""
    assert tree(tmp_path / "parquet") == tree(exported)
    assert [path.name for path in tmp_path.iterdir()] == ["parquet"]


def test_held_out_photos_are_those_of_the_records(miniature: Path, tmp_path: Path) -> None:
    write_tfrecords(miniature, tmp_path / "records", heldout_fraction=0.3, seed=4, num_workers=1)  # type: ignore[arg-type]
    records = TFRecords(tmp_path / "records")
    aside = {example.image_id for span in records.users("heldout").values() for example in records.read_user(span)}
    result = export(miniature, tmp_path / "parquet", "--heldout_fraction=.3", "--seed=4")
    assert f"Put {len(aside)} of the photos of train users aside, in the partition heldout." in result.stdout
    rows = rows_of(tmp_path / "parquet", "data/heldout-00000-of-00001.parquet")
    assert {str(row["image_id"]) for row in rows} == aside and {row["partition"] for row in rows} == {"heldout"}
    assert len(rows_of(tmp_path / "parquet")) == 160


def test_excluded_photos_are_not_there(miniature: Path, tmp_path: Path) -> None:
    gone = [record["image_id"] for record in records_of(miniature)[::7]]
    (tmp_path / "gone.json").write_text(json.dumps(gone))
    export(miniature, tmp_path / "parquet", f"--exclude={tmp_path / 'gone.json'}")
    assert by_id(rows_of(tmp_path / "parquet")).keys() == by_id(records_of(miniature)).keys() - set(gone)
    assert "Left out" in export(miniature, tmp_path / "p2", f"--exclude={tmp_path / 'gone.json'}").stdout


@pytest.fixture
def testset(miniature: Path, tmp_path: Path) -> Path:
    """A test set of five photos of test."""
    photos = [record["image_id"] for record in records_of(miniature) if record["partition"] == "test"][:5]
    path = tmp_path / "sets" / "mine-0.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"name": "mine-0", "partition": "test", "image_ids": photos}))
    return path


def test_a_test_set_is_a_configuration_of_its_name(miniature: Path, testset: Path, tmp_path: Path) -> None:
    output = tmp_path / "parquet"
    export(miniature, output, "--testset=mine-0", f"--testsets_dir={testset.parent}")
    ids = json.loads(testset.read_text())["image_ids"]
    rows = rows_of(output, "testsets/mine-0.parquet")
    assert sorted(str(row["image_id"]) for row in rows) == sorted(ids)
    for row in rows:
        path = miniature / "small_images" / row["image"]["path"]
        assert row["image"]["bytes"] == path.read_bytes() and row["partition"] == "test"
    assert (output / "testsets/mine-0.json").read_bytes() == testset.read_bytes()
    card = (output / "README.md").read_text()
    assert '- config_name: "mine-0"\n  data_files:\n  - split: test\n    path: "testsets/mine-0.parquet"\n' in card
    assert len(rows_of(output)) == 160


@pytest.mark.parametrize(
    ("change", "more", "words"),
    [
        (
            {"image_ids": ["17"]},
            (),
            "1 of its 1 photos, such as 17, are not among the exported photos of test; give the",
        ),
        (
            {"partition": "val"},
            (),
            "are not among the exported photos of val; give the --dataset_dir it was drawn from",
        ),
        ({"partition": "heldout"}, (), "photos of heldout; take --heldout_fraction as its records did"),
        ({"is_valid": False}, (), "is marked is_valid: false, so it is not exported"),
        ({"name": "default"}, (), "its name 'default' is taken"),
        ({"name": "../mine"}, (), "its name '../mine' is no name of a test set"),
        ({}, ("--testset=copy.json",), "copy.json: its name 'mine-0' is taken; give each test set once"),
        ({}, ("--testset=none-0",), "none-0.json: no such test set"),
    ],
)
def test_test_sets_that_cannot_be_exported(
    miniature: Path, testset: Path, tmp_path: Path, change: dict[str, Any], more: tuple[str, ...], words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    testset.write_text(json.dumps({**json.loads(testset.read_text()), **change}))
    shutil.copy(testset, tmp_path / "copy.json")
    flags = [flag.replace("copy.json", str(tmp_path / "copy.json")) for flag in more]
    output = tmp_path / "parquet"
    line = refused(
        "flair.export", f"--dataset_dir={miniature}", f"--output_dir={output}", f"--testset={testset}", *flags
    )
    assert words in line
    assert not output.exists()


@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGINT"])
def test_a_killed_run_continues_and_writes_no_finished_file_again(
    miniature: Path, exported: Path, tmp_path: Path, signal_name: str
) -> None:
    script = tmp_path / "export.py"
    script.write_text(
        "import sys\nfrom flair import export\nfrom flair.terminal import command\n"
        "command.run(export.main, stopped=command.CONTINUES)\n"
    )
    output, unfinished = tmp_path / "parquet", tmp_path / ".parquet.unfinished"
    flags = (f"--dataset_dir={miniature}", f"--output_dir={output}", "--num_workers=1")

    def ended(stop_at: int) -> Result:
        return run_interrupted(signal_name, stop_at, str(script), *flags, env={"PYTHONPATH": str(ROOT)})

    first = ended(40)
    assert first.returncode == (-signal.SIGKILL if signal_name == "SIGKILL" else 130), first.stderr
    if signal_name == "SIGINT":
        assert "the same command continues where it stopped" in first.stderr
    assert not output.exists()
    finished = {path.stem for path in unfinished.glob(".finished/*.json")}
    before = {path.name: path.stat().st_ino for path in unfinished.glob("data/*.parquet") if path.name in finished}
    assert 2 < len(before) < 14
    damaged = sorted(before)[1]
    content = bytearray((unfinished / "data" / damaged).read_bytes())
    content[100] ^= 1
    (unfinished / "data" / damaged).write_bytes(content)
    last = ended(0)
    assert last.returncode == 0 and "photos that an earlier run had finished." in last.stdout
    after = {path.name: path.stat().st_ino for path in output.glob("data/*.parquet")}
    assert {name for name, inode in before.items() if after[name] != inode} == {damaged}
    assert tree(output) == tree(exported)
    assert not unfinished.exists()


def test_a_second_run_has_nothing_to_do_and_other_flags_want_overwrite(
    miniature: Path, exported: Path, tmp_path: Path
) -> None:
    output = copy(exported, tmp_path / "parquet")
    assert f"{output} is complete already: 160 photos of 40 users" in export(miniature, output).stdout
    other = (f"--dataset_dir={miniature}", f"--output_dir={output}", "--limit_users=9")
    assert "was made from other data or with other flags (num_users=40 there, 9 now" in refused("flair.export", *other)
    assert tree(output) == tree(exported)
    export(miniature, output, "--limit_users=9", "--overwrite")
    assert len({row["user_id"] for row in rows_of(output)}) == 9
    assert [path.name for path in tmp_path.iterdir()] == ["parquet"]


def test_what_is_no_export_is_never_replaced(miniature: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("a letter")
    for more in ([], ["--overwrite"]):
        line = refused("flair.export", f"--dataset_dir={miniature}", f"--output_dir={tmp_path}", *more)
        assert "is not empty and no export of FLAIR; give a new folder or an empty one" in line
    assert "is a file; expected a folder" in refused(
        "flair.export", f"--dataset_dir={miniature}", f"--output_dir={tmp_path / 'mine'}"
    )
    assert (tmp_path / "mine").read_text() == "a letter"
    records = tmp_path / "records"  # once they are described, they have the files beside the photos that an export has
    run("prepare_tfrecords.py", f"--dataset_dir={miniature}", f"--tfrecords_dir={records}", "--layout=sharded")
    run("flair.export", "--format=croissant", f"--tfrecords_dir={records}")
    export(miniature, tmp_path / "parquet")
    for more in ([], ["--overwrite"]):
        flags = f"--dataset_dir={miniature}", f"--tfrecords_dir={tmp_path / 'parquet'}", *more
        assert "is not empty and holds no TFRecords of FLAIR" in refused("prepare_tfrecords.py", *flags)
        line = refused("flair.export", f"--dataset_dir={miniature}", f"--output_dir={records}", *more)
        assert "is not empty and no export of FLAIR" in line
    assert TFRecords(records).users("train")
    for place in (".", "/", "a/.."):
        line = refused("flair.export", f"--dataset_dir={miniature}", f"--output_dir={place}")
        assert f"--output_dir={place}: expected the name of a new folder" in line


def test_an_empty_folder_and_a_link_to_one_are_filled(miniature: Path, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    export(miniature, tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and tree(tmp_path / "empty") == tree(exported)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "link"]


def _cut(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2] + b"\xff\xd9")


@pytest.mark.parametrize(
    ("damage", "words"), [(Path.unlink, "the photo is missing"), (_cut, "download it again")], ids=["missing", "half"]
)
def test_a_bad_photo_is_named_with_its_user(
    miniature: Path, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    source = copy(miniature, tmp_path / "source")
    record = records_of(source)[50]
    damage(source / "small_images" / f"{record['image_id']}.jpg")
    line = refused("flair.export", f"--dataset_dir={source}", f"--output_dir={tmp_path / 'p'}", "--num_workers=1")
    assert f"(image {record['image_id']} of user {record['user_id']})" in line and words in line
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("image_id", ["12a", "007", "-7", "9223372036854775808", "٣"])
def test_an_id_that_the_column_cannot_hold(miniature: Path, tmp_path: Path, image_id: str) -> None:
    source = copy(miniature, tmp_path / "source")
    records = records_of(source)
    (source / "small_images" / f"{records[3]['image_id']}.jpg").rename(source / "small_images" / f"{image_id}.jpg")
    records[3]["image_id"] = image_id
    (source / "labels_and_metadata.json").unlink()
    (source / "labels_and_metadata.json").write_text(json.dumps(records))
    line = refused("flair.export", f"--dataset_dir={source}", f"--output_dir={tmp_path / 'p'}")
    assert "its id is no whole number" in line or "is not an id" in line


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "--format=parquet needs --dataset_dir and --output_dir"),
        (("--dataset_dir=d",), "--format=parquet needs --dataset_dir and --output_dir"),
        (("--dataset_dir=d", "--output_dir=o", "--hdf5_file=h"), "--hdf5_file goes with --format=croissant"),
        (("--format=croissant",), "describes one thing: give one of --dataset_dir, --tfrecords_dir, --hdf5_file, "),
        (("--format=croissant", "--dataset_dir=d", "--testset=t"), "describes one thing"),
        (("--format=croissant", "--dataset_dir=d", "--output_dir=o"), "--output_dir goes with --format=parquet"),
        (("--format=croissant", "--dataset_dir=d", "--limit_users=3"), "--limit_users goes with --format=parquet"),
    ],
)
def test_flags_that_do_not_go_together(flags: tuple[str, ...], words: str) -> None:
    assert words in run("flair.export", *flags, code=2).stderr.splitlines()[-1]


def test_without_pyarrow_one_line_says_what_to_install(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FlairError, match=r"^--format=parquet needs pyarrow, which is not installed; install it with"):
        export_door.main([f"--dataset_dir={miniature}", f"--output_dir={tmp_path / 'p'}"])
    assert not (tmp_path / "p").exists()


def test_a_full_disk_leaves_nothing_under_the_final_name(miniature: Path, tmp_path: Path) -> None:
    program = (
        "import resource, runpy, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "sys.argv = ['flair.export', *sys.argv[1:]]\n"
        "runpy.run_module('flair.export', run_name='__main__')\n"
    )
    flags = (f"--dataset_dir={miniature}", f"--output_dir={tmp_path / 'p'}", "--num_workers=1")
    result = run_program(program, *flags, code=1)
    (line,) = result.stderr.splitlines()
    assert "p.unfinished/data/train-00000-of-00010.parquet': File too large" in line
    assert not (tmp_path / "p").exists()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_photos(miniature: Path, tmp_path: Path) -> None:
    photos = sorted((miniature / "small_images").iterdir())
    template = records_of(miniature)
    program = (
        "import sys; from benchmark.run.machine import peak_bytes; from flair import export\n"
        "export.main(sys.argv[1:]); print(peak_bytes())"
    )
    peaks = []
    for count in (3000, 8000):
        source = tmp_path / str(count)
        (source / "small_images").mkdir(parents=True)
        records = []
        for number in range(count):
            record = template[number % len(template)]
            (source / "small_images" / f"{number + 1}.jpg").hardlink_to(
                miniature / "small_images" / f"{record['image_id']}.jpg"
            )
            records.append({**record, "image_id": str(number + 1)})
        (source / "labels_and_metadata.json").write_text(json.dumps(records))
        shutil.copy(miniature / "label_relationship.txt", source)
        flags = (f"--dataset_dir={source}", f"--output_dir={source / 'p'}", "--num_workers=1")
        peaks.append(int(run_program(program, *flags).stdout.splitlines()[-1]))
    mean = sum(path.stat().st_size for path in photos) / len(photos)
    assert peaks[1] - peaks[0] < 5000 * mean / 3, "photos add up in memory"
