"""prepare_dataset.py and prepare_tfrecords.py by their command lines: results, bad input, kills, full disks."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmark.speed.harness import process_tree, resident_bytes
from flair.miniature.dataset import make_dataset
from flair.records.tfrecord.frames import read_payloads
from flair.verify import run_checks
from tests.support.commands import ROOT, Result, refused, run_interrupted, run_process, run_program
from tests.support.commands import run as run_command

COMMANDS: dict[str, list[str]] = {
    "tfrecords": ["prepare_tfrecords.py", "--tfrecords_dir"],
    "sharded": ["prepare_tfrecords.py", "--layout=sharded", "--images_per_shard=30", "--tfrecords_dir"],
    "raw": ["prepare_dataset.py", "--output_file"],
    "by image": ["prepare_dataset.py", "--not_group_data_by_user", "--output_file"],
    "jpeg": ["prepare_dataset.py", "--image_format=jpeg", "--output_file"],
    "jpeg indices": ["prepare_dataset.py", "--image_format=jpeg", "--label_format=indices", "--output_file"],
}
each_command = pytest.mark.parametrize("command", COMMANDS)


CONTINUES = {False: "continues where it stopped", True: "starts over"}


def is_hdf5(command: str) -> bool:
    return COMMANDS[command][0] == "prepare_dataset.py"


def arguments(command: str, source: Path, output: Path, *more: str) -> list[str]:
    script, *flags, place = COMMANDS[command]
    return [str(ROOT / script), f"--dataset_dir={source}", *flags, f"{place}={output}", *more]


def run(command: str, source: Path, output: Path, *more: str) -> Result:
    """The command, however it ends."""
    return run_command(*arguments(command, source, output, *more), code=None)


def run_here(command: str, source: Path, output: Path, *more: str) -> Result:
    """The command without processes of its own, which is quicker; however it ends."""
    return run(command, source, output, *more, "--num_workers=1")


def contents(folder: Path) -> dict[str, str]:
    """Everything below a folder: names of folders, targets of links and hashes of files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_dir():
            found[name] = "folder"
        elif "val/" not in name:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target, copy_function=lambda a, b: Path(b).hardlink_to(a))
    metadata = target / "labels_and_metadata.json"
    text = metadata.read_text()
    metadata.unlink()
    metadata.write_text(text)
    return target


def a_photo(dataset: Path, index: int = 70) -> tuple[Path, dict[str, str]]:
    """A photo in the middle, to be replaced (the others are hard links to a fixture's files)."""
    item = json.loads((dataset / "labels_and_metadata.json").read_text())[index]
    path = dataset / "small_images" / f"{item['image_id']}.jpg"
    path.unlink()
    return path, item


@each_command
def test_the_result_does_not_depend_on_the_number_of_workers(
    command: str, miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several tasks for each of them; where all photos are one task, no worker is started.
    monkeypatch.setattr("flair.records.tfrecord.writer._IMAGES_PER_TASK", 20)
    for workers in (1, 2):
        place = tmp_path / f"with {workers}"
        place.mkdir()
        result = run(command, miniature, place / "output", f"--num_workers={workers}")
        assert result.returncode == 0, result.stderr
        assert "Wrote 160 photos of 40 users" in result.stdout
        assert "\nNext: python -m " in result.stdout
    assert contents(tmp_path / "with 1") == contents(tmp_path / "with 2")
    assert not [name for name in contents(tmp_path) if "unfinished" in name or name.endswith(".tmp")]


@pytest.mark.parametrize("command", ["tfrecords", "sharded", "raw", "jpeg"])
@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGINT"])
def test_a_killed_run_continues_to_the_same_result(
    command: str, signal_name: str, miniature: Path, tmp_path: Path
) -> None:
    (tmp_path / "unbroken").mkdir()
    (tmp_path / "broken").mkdir()
    unbroken = run_interrupted(
        signal_name, 0, *arguments(command, miniature, tmp_path / "unbroken/output", "--num_workers=1")
    )
    assert unbroken.returncode == 0, unbroken.stderr
    operations = int(unbroken.stderr.splitlines()[-1])
    assert operations > 10
    # Up to three kills of the same piece of work, early, late and anywhere, and then to the end.
    seed = random.Random(f"{command} {signal_name}")
    flags = arguments(command, miniature, tmp_path / "broken/output", "--num_workers=1")
    for stop_at in (seed.randint(1, operations // 2), operations - seed.randint(0, 9), seed.randint(1, operations)):
        result = run_interrupted(signal_name, stop_at, *flags)
        # A continued run has less to do, and may be done before the signal comes.
        assert result.returncode in ((-signal.SIGKILL if signal_name == "SIGKILL" else 130), 0), result.stderr
        if result.returncode == 130:
            assert f"the same command {CONTINUES[is_hdf5(command)]}" in result.stderr
            assert "Traceback" not in result.stderr
    run_command(*flags)
    assert contents(tmp_path / "broken") == contents(tmp_path / "unbroken")


@pytest.mark.parametrize("command", ["tfrecords", "jpeg"])
@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGINT"])
def test_a_killed_run_that_overwrites_continues_to_the_same_result(
    command: str, signal_name: str, miniature: Path, tmp_path: Path
) -> None:
    for name in ("unbroken", "broken"):
        assert run_here(command, miniature, tmp_path / name / "output", "--limit_users=9").returncode == 0
    before = contents(tmp_path / "broken")
    overwrite = ("--overwrite", "--num_workers=1")
    unbroken = run_interrupted(signal_name, 0, *arguments(command, miniature, tmp_path / "unbroken/output", *overwrite))
    operations = int(unbroken.stderr.splitlines()[-1])
    flags = arguments(command, miniature, tmp_path / "broken/output", *overwrite)
    ended = []
    for stop_at in (operations // 2, operations // 3, operations - 8):
        ended.append(run_interrupted(signal_name, stop_at, *flags).returncode)
        if stop_at < operations - 8:
            after = contents(tmp_path / "broken")
            assert before.items() <= after.items(), "the old output stays until the new one is complete"
    assert ended[0] == (-signal.SIGKILL if signal_name == "SIGKILL" else 130)
    run_command(*flags)
    assert contents(tmp_path / "broken") == contents(tmp_path / "unbroken")


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """900 photos of 180 users, most of them hard links to 20 drawn ones: enough that a run can be met at work."""
    folder = tmp_path_factory.mktemp("crowd") / "dataset"
    make_dataset(folder, num_users=180, num_images=900, seed=5, distinct_photos=20)
    return folder


def on_disk(path: Path) -> int:
    """Bytes of a file that have been written; the places left free between them do not count."""
    return path.stat().st_blocks * 512


@pytest.mark.parametrize(
    ("command", "sign"),
    [
        ("tfrecords", ".unfinished/train/*.tfrecords"),
        ("raw", "../.output.unfinished/data.hdf5"),
    ],
)
def test_workers_die_with_a_killed_run_and_the_same_command_finishes_its_work(
    command: str, sign: str, crowd: Path, tmp_path: Path
) -> None:
    for name in ("broken", "unbroken"):
        (tmp_path / name).mkdir()
    output = tmp_path / "broken" / "output"
    words = [sys.executable, *arguments(command, crowd, output, "--num_workers=2")]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    pattern, folder = (sign, output) if not sign.startswith("..") else (sign[3:], output.parent)
    # Signs of work done: a second file, or one with some photos in it (it has their places before them).
    while len(signs := list(folder.glob(pattern))) < 2 and not any(on_disk(path) > 1_000_000 for path in signs):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    workers = process_tree(process.pid)[1:]
    assert len(workers) >= 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(resident_bytes(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.returncode == -signal.SIGKILL
    continued = run(command, crowd, output, "--num_workers=2")
    assert continued.returncode == 0, continued.stderr
    if is_hdf5(command):
        assert f"{output}: an earlier run was stopped; starting over" in continued.stderr
    else:
        kept = int(continued.stdout.split("Kept ")[1].split(" photos")[0].replace(",", ""))
        assert 0 < kept < 900
    run_here(command, crowd, tmp_path / "unbroken" / "output")
    assert contents(tmp_path / "broken") == contents(tmp_path / "unbroken")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_ends_in_one_line(sent: signal.Signals, crowd: Path, tmp_path: Path) -> None:
    words = [sys.executable, *arguments("sharded", crowd, tmp_path / "output", "--num_workers=2")]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    # As soon as there are workers, which are still starting then.
    while len(workers := process_tree(process.pid)[1:]) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
    os.killpg(process.pid, sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[sent]
    assert errors.count("\n") == 1
    assert "the same command continues where it stopped" in errors
    assert not any(resident_bytes(worker) for worker in workers)


@each_command
def test_complete_output_is_left_alone_or_refused_or_replaced(command: str, miniature: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    assert run_here(command, miniature, output).returncode == 0
    before = contents(tmp_path)
    again = run_here(command, miniature, output)
    assert again.returncode == 0
    assert "is complete already: 160 photos of 40 users" in again.stdout
    refused = run_here(command, miniature, output, "--limit_users=10")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "limit_users=None there, 10 now" in refused.stderr
    assert "--overwrite" in refused.stderr
    assert contents(tmp_path) == before
    assert run_here(command, miniature, output, "--limit_users=10", "--overwrite").returncode == 0
    assert run_here(command, miniature, tmp_path / "fresh", "--limit_users=10").returncode == 0
    after = contents(tmp_path)
    assert {name for name in after if name.startswith("output")} == {
        name.replace("fresh", "output") for name in after if name.startswith("fresh")
    }
    for name in after:
        if name.startswith("fresh"):
            assert after[name.replace("fresh", "output")] == after[name]


@each_command
def test_an_unfinished_run_with_other_flags_is_refused_or_replaced(
    command: str, miniature: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    flags = arguments(command, miniature, output, "--num_workers=1", "--limit_users=9")
    killed = run_interrupted("SIGKILL", 12, *flags)
    assert killed.returncode == -signal.SIGKILL
    if is_hdf5(command):  # nothing of it would be used
        started_over = run_here(command, miniature, output)
        assert started_over.returncode == 0
        assert f"{output}: an earlier run was stopped; starting over" in started_over.stderr
    else:
        refused = run_here(command, miniature, output)
        assert refused.returncode == 1
        assert (
            "unfinished work there was made from other data or with other flags (num_users=9 there, 40 now"
            in refused.stderr
        )
        assert run_here(command, miniature, output, "--overwrite").returncode == 0
    assert run_here(command, miniature, tmp_path / "fresh").returncode == 0
    found = contents(tmp_path)
    assert all(found[name.replace("fresh", "output")] == found[name] for name in found if name.startswith("fresh"))
    assert not any("unfinished" in name for name in found)


@each_command
def test_output_of_others_is_not_touched_unasked(command: str, flair_sample: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    if "tfrecords" in COMMANDS[command][0]:
        (output / "train").mkdir(parents=True)
        (output / "train" / "1@N00.tfrecords").write_bytes(b"theirs")
        (output / "notes.txt").write_text("mine")
    else:
        output.write_bytes(b"theirs")
    before = contents(tmp_path)
    refused = run_here(command, flair_sample, output)
    assert refused.returncode == 1
    assert "not made by this version of this command" in refused.stderr
    assert contents(tmp_path) == before
    assert run_here(command, flair_sample, output, "--overwrite").returncode == 0
    if output.is_dir():
        assert (output / "notes.txt").read_text() == "mine"
        assert not (output / "train" / "1@N00.tfrecords").exists()


def test_other_files_in_the_place_of_records_are_not_deleted(flair_sample: Path, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "thesis.tex").write_text("years")
    refused = run_here("tfrecords", flair_sample, tmp_path, "--overwrite")
    assert refused.returncode == 1
    assert "holds other files than records" in refused.stderr
    assert (tmp_path / "train" / "thesis.tex").read_text() == "years"


def test_a_folder_of_something_else_is_no_place_for_records(flair_sample: Path, tmp_path: Path) -> None:
    dataset = shutil.copytree(flair_sample, tmp_path / "dataset")
    before = sorted(path.name for path in dataset.iterdir())
    done = run_here("tfrecords", dataset, dataset)
    assert done.returncode == 1
    assert "is not empty and holds no TFRecords" in done.stderr
    assert sorted(path.name for path in dataset.iterdir()) == before


@pytest.mark.parametrize("name", ["", "."])
def test_a_name_that_is_no_file_is_refused_in_one_line(name: str, flair_sample: Path) -> None:
    said = refused("prepare_dataset.py", f"--dataset_dir={flair_sample}", f"--output_file={name}")
    assert "is no name of a file" in said


def test_what_an_earlier_version_left_of_a_stopped_run_is_removed(flair_sample: Path, tmp_path: Path) -> None:
    """It could continue an HDF5 file, from a journal and a list of places in the file."""
    unfinished = tmp_path / ".output.unfinished"
    unfinished.mkdir()
    for name in ("data.hdf5", "journal", "places.npy", "prepare_info.json"):
        (unfinished / name).write_bytes(b"of an earlier version")
    assert run_here("raw", flair_sample, tmp_path / "output").returncode == 0
    assert run_here("raw", flair_sample, tmp_path / "whole").returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["output", "whole"]
    assert (tmp_path / "output").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize(("command", "name"), [("tfrecords", "output/.unfinished"), ("raw", ".output.unfinished")])
def test_two_runs_at_once_do_not_mix(command: str, name: str, flair_sample: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / name
    unfinished.mkdir(parents=True)
    descriptor = os.open(unfinished, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    refused = run_here(command, flair_sample, tmp_path / "output")
    os.close(descriptor)
    assert refused.returncode == 1
    assert "another process is preparing this output" in refused.stderr


def picture(mode: str, size: tuple[int, int] = (256, 256)) -> Image.Image:
    noise = np.random.default_rng(5).integers(0, 256, (16, 16, 3), np.uint8)
    return Image.fromarray(noise).resize(size).convert(mode)


BAD_PHOTOS: dict[str, tuple[Callable[[Path, bytes], object], str]] = {
    "missing": (lambda path, data: None, "missing"),
    "truncated": (lambda path, data: path.write_bytes(data[: len(data) // 2]), "is truncated"),
    "not 256x256": (
        lambda path, data: picture("RGB", (256, 200)).save(path, "JPEG"),
        "is 256x200 pixels, expected 256x256",
    ),
    "CMYK": (lambda path, data: picture("CMYK").save(path, "JPEG"), "its colors are CMYK, expected RGB"),
    "no JPEG": (lambda path, data: picture("RGB").save(path, "PNG"), "is not a JPEG"),
}


@pytest.mark.parametrize("kind", BAD_PHOTOS)
@pytest.mark.parametrize("command", ["tfrecords", "raw", "jpeg"])
def test_a_bad_photo_is_refused_in_one_line(command: str, kind: str, miniature: Path, tmp_path: Path) -> None:
    dataset = copy(miniature, tmp_path / "dataset")
    good = json.loads((dataset / "labels_and_metadata.json").read_text())[70]
    data = (dataset / "small_images" / f"{good['image_id']}.jpg").read_bytes()
    path, item = a_photo(dataset)
    make, reason = BAD_PHOTOS[kind]
    make(path, data)
    output = tmp_path / "place" / "output"
    refused = run_here(command, dataset, output)
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert f"image {item['image_id']} of user {item['user_id']}" in refused.stderr
    assert reason in refused.stderr
    assert not [name for name in contents(tmp_path / "place") if "unfinished" not in name and name != "output"]
    assert not output.is_file()
    path.write_bytes(data) if not path.exists() else (path.unlink(), path.write_bytes(data))
    assert run_here(command, dataset, output).returncode == 0


@pytest.mark.parametrize("command", ["tfrecords", "raw", "jpeg"])
def test_a_grayscale_photo_is_stored_as_rgb_and_told(command: str, miniature: Path, tmp_path: Path) -> None:
    dataset = copy(miniature, tmp_path / "dataset")
    path, item = a_photo(dataset)
    picture("L").save(path, "JPEG")
    result = run_here(command, dataset, tmp_path / "output")
    assert result.returncode == 0, result.stderr
    assert f"Warning: 1 grayscale photos were stored as RGB: {item['image_id']}\n" in result.stdout
    place = {f"{'tfrecords_dir' if command == 'tfrecords' else 'hdf5_file'}": tmp_path / "output"}
    failed = [check for check in run_checks(dataset, **place) if not check.ok]
    assert [(check.name, check.failures) for check in failed] == [("photos are RGB", 1)]


@pytest.mark.parametrize("command", ["tfrecords", "sharded", "raw", "jpeg"])
def test_a_killed_run_forgets_no_grayscale_photo(command: str, miniature: Path, tmp_path: Path) -> None:
    dataset = copy(miniature, tmp_path / "dataset")
    gray = []
    for index in (0, 5, 40, 100, 159):
        path, item = a_photo(dataset, index)
        picture("L").save(path, "JPEG")
        gray.append(item["image_id"])
    flags = arguments(command, dataset, tmp_path / "output", "--num_workers=1")
    signal_name = "SIGKILL"
    counted = run_interrupted(signal_name, 0, *arguments(command, dataset, tmp_path / "unbroken", "--num_workers=1"))
    warning = next(line for line in counted.stdout.splitlines() if line.startswith("Warning: 5 grayscale photos"))
    operations = int(counted.stderr.splitlines()[-1])
    for stop_at in (operations - 12, 4):  # the second kill meets a run that has just been continued
        assert run_interrupted(signal_name, stop_at, *flags).returncode == -signal.SIGKILL
    resumed = run_command(*flags)
    assert ("Kept " in resumed.stdout) != is_hdf5(command)
    assert warning in resumed.stdout
    assert sorted(warning.rpartition(": ")[2].split(", ")) == sorted(gray)


def change_record(dataset: Path, index: int, **fields: object) -> None:
    path = dataset / "labels_and_metadata.json"
    items = json.loads(path.read_text())
    items[index].update(fields)
    path.write_text(json.dumps([item for item in items if item.get("partition") is not None]))


@pytest.mark.parametrize("script", ["tfrecords", "raw"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: change_record(d, 3, labels=7), "record 3"),
        (lambda d: change_record(d, 3, image_id="../x"), "'../x' is not an id"),
        (lambda d: change_record(d, 3, user_id="a/b"), "'a/b' is not an id"),
        (lambda d: change_record(d, 1, image_id="15264759153"), "was already used by record 0"),
        (lambda d: change_record(d, 0, partition="test"), "every user must be in one partition"),
        (lambda d: (d / "labels_and_metadata.json").write_text("[{"), "not JSON"),
        (lambda d: (d / "labels_and_metadata.json").unlink(), "not a FLAIR dataset directory"),
        (lambda d: shutil.rmtree(d), "no such directory"),
    ],
)  # fmt: skip
def test_bad_metadata_is_refused_in_one_line(
    script: str, damage: Callable[[Path], object], message: str, flair_sample: Path, tmp_path: Path
) -> None:
    dataset = copy(flair_sample, tmp_path / "dataset")
    damage(dataset)
    refused = run_here(script, dataset, tmp_path / "output")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert message in refused.stderr
    assert not (tmp_path / "output").exists()


def test_an_empty_partition_is_refused(flair_sample: Path, tmp_path: Path) -> None:
    dataset = copy(flair_sample, tmp_path / "dataset")
    items = json.loads((dataset / "labels_and_metadata.json").read_text())
    kept = [item for item in items if item["partition"] != "val"]
    (dataset / "labels_and_metadata.json").write_text(json.dumps(kept))
    refused = run_here("tfrecords", dataset, tmp_path / "output")
    assert refused.returncode == 1
    assert "partition 'val' is empty" in refused.stderr


@pytest.mark.parametrize("command", ["tfrecords", "sharded", "raw", "jpeg"])
def test_a_full_disk_ends_in_one_line_and_a_later_run_goes_on(command: str, miniature: Path, tmp_path: Path) -> None:
    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))

    output = tmp_path / "place" / "output"
    script, *flags = arguments(command, miniature, output)
    refused = run_process(script, *flags, code=None, preexec_fn=limit_file_size)
    assert refused.returncode == 1
    assert "File too large" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert all("unfinished" in name or name == "output" for name in contents(tmp_path / "place"))
    assert not output.is_file()
    assert run_here(command, miniature, output).returncode == 0
    assert run_here(command, miniature, tmp_path / "fresh" / "output").returncode == 0
    assert contents(tmp_path / "place") == contents(tmp_path / "fresh")


@pytest.mark.parametrize("command", ["tfrecords", "raw", "jpeg"])
def test_a_disk_that_is_too_small_is_told_before_any_work(
    command: str, miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=500_000))
    refused = run_here(command, miniature, tmp_path / "output")
    assert refused.returncode == 1
    assert "MB are needed and 500.0 kB free" in refused.stderr


def test_an_unwritable_output_is_refused(flair_sample: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for command in ("tfrecords", "raw"):
        refused = run_here(command, flair_sample, tmp_path / "file" / "output")
        assert refused.returncode == 1
        assert refused.stderr.count("\n") == 1
        assert "a part of the path is not a directory" in refused.stderr
    refused = run_here("tfrecords", flair_sample, tmp_path / "file")
    assert "is a file; expected a directory" in refused.stderr
    refused = run_here("raw", flair_sample, tmp_path)
    assert "exists and is no file" in refused.stderr


def test_a_limit_keeps_whole_users_and_every_partition(miniature: Path, tmp_path: Path) -> None:
    run_here("tfrecords", miniature, tmp_path / "records", "--limit_users=12")
    items = json.loads((miniature / "labels_and_metadata.json").read_text())
    sizes: dict[str, int] = {}
    for folder in ("train", "dev", "test"):
        paths = list((tmp_path / "records" / folder).iterdir())
        assert paths
        sizes |= {path.stem: len(list(read_payloads(path))) for path in paths}
    assert len(sizes) == 12
    for user_id, count in sizes.items():
        assert count == sum(item["user_id"] == user_id for item in items)
    whole = {item_name for item in items for item_name in item["labels"]}
    assert json.loads((tmp_path / "records/label_index.json").read_text())["labels"].keys() == whole


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        ("tfrecords", ["--limit_users=0"], "expected a whole number of at least 3, found '0'"),
        ("tfrecords", ["--images_per_shard=two"], "expected a whole number of at least 1, found 'two'"),
        ("tfrecords", ["--layout=flat"], "invalid choice: 'flat'"),
        ("raw", ["--label_format=indices", "--not_group_data_by_user"], "is a layout by user"),
        ("raw", ["--colour"], "unrecognized arguments"),
    ],
)
def test_wrong_flags_are_refused(command: str, flags: Sequence[str], message: str, tmp_path: Path) -> None:
    refused = run_here(command, tmp_path, tmp_path / "output", *flags)
    assert refused.returncode == 2
    assert message in refused.stderr


@pytest.mark.parametrize("script", ["prepare_dataset.py", "prepare_tfrecords.py"])
def test_help_imports_nothing_heavy(script: str) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['x', '--help']; sys.path.insert(0, {str(ROOT)!r})\n"
        f"try: runpy.run_path({str(ROOT / script)!r}, run_name='__main__')\n"
        "except SystemExit as stopped: assert not stopped.code\n"
        "print(*sorted({'h5py', 'numpy', 'PIL', 'tqdm', 'tensorflow'} & set(sys.modules)), file=sys.stderr)\n"
    )
    result = run_program(code, code=None)
    assert "--dataset_dir" in result.stdout
    assert result.stderr.strip() == ""


@each_command
def test_excluded_photos_are_left_out_and_verify_knows(
    command: str, miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos: dict[str, list[str]] = {}
    for item in json.loads((miniature / "labels_and_metadata.json").read_text()):
        photos.setdefault(item["partition"], []).append(item["image_id"])
    train, test = sorted(photos["train"]), sorted(photos["test"])
    exclude = tmp_path / "near_duplicates.json"
    exclude.write_text(json.dumps({train[0]: [test[0]], train[1]: train[2:4]}))
    output = tmp_path / "output"
    result = run_here(command, miniature, output, f"--exclude={exclude}")
    assert result.returncode == 0, result.stderr
    assert "Left out 3 photos that --exclude names (train 2, val 0, test 1)." in result.stdout
    assert "Wrote 157 photos" in result.stdout
    assert f"--exclude={exclude}" in result.stdout
    exclude.write_text(json.dumps({train[3]: [train[2], train[1]], test[0]: [train[0]]}))
    assert "is complete already: 157 photos" in run_here(command, miniature, output, f"--exclude={exclude}").stdout
    refused = run_here(command, miniature, output)
    assert refused.returncode == 1
    assert "now" in refused.stderr and "exclude_sha256=" in refused.stderr
    place = "tfrecords_dir" if "records" in COMMANDS[command][-1] else "hdf5_file"
    checks = list(run_checks(miniature, **{place: output}, exclude=exclude))  # type: ignore[arg-type]
    assert all(check.ok for check in checks), [check.line() for check in checks]
    without = [check for check in run_checks(miniature, **{place: output}) if not check.ok]  # type: ignore[arg-type]
    assert len(without) == 1 and "add --exclude with the same content" in without[0].line()


def test_an_exclusion_that_cannot_be_meant_is_refused(miniature: Path, tmp_path: Path) -> None:
    exclude = tmp_path / "list.json"
    everything = json.loads((miniature / "labels_and_metadata.json").read_text())
    for ids, message in (
        (["1", "2"], "--exclude: none of its 2 images is in the dataset"),
        ([item["image_id"] for item in everything if item["partition"] == "val"], "photos of val leave"),
        ([7], "list.json, item 0: expected an image id in quotes, found 7"),
    ):
        exclude.write_text(json.dumps(ids))
        result = run_here("raw", miniature, tmp_path / "output", f"--exclude={exclude}")
        assert (result.returncode, result.stdout) == (1, "")
        assert message in result.stderr
    assert not (tmp_path / "output").exists()
