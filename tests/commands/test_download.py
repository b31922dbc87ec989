"""The real command against a server on this machine: nothing lost, nothing doubled, nothing fetched twice."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import download_dataset
from flair.dataset import catalog
from flair.dataset.metadata import load_records
from flair.download import plan
from flair.download import server as mirror_server
from flair.download import state as download_state
from flair.download.client import Patience
from flair.download.plan import DownloadConfig
from flair.download.run import Outcome, download
from flair.download.source import AppleSource, read_manifest
from flair.download.transfer import is_whole
from flair.errors import FlairError
from flair.miniature import archives as synthetic_archives
from flair.parallel import threads
from tests.download.test_archive import member, pack
from tests.support import fault_server
from tests.support.commands import run, run_interrupted
from tests.support.fault_server import Fault, FaultServer, Request
from tests.support.tiny_flair import make_photos, make_tar_gz, publish, tree

SCRIPT = "download_dataset.py"
COMMAND = [sys.executable, str(Path(download_dataset.__file__).resolve())]
PHOTOS = make_photos(240)
NUM_ARCHIVES = 6
IMPATIENT = Patience(retries=2, jitter=lambda: 1.0, sleep=lambda seconds: None)
MANIFEST = "/images/small/manifest.json"


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with fault_server.serve() as running:
        publish(running, PHOTOS, NUM_ARCHIVES)
        yield running


def bring(server: FaultServer, folder: Path, **options: object) -> Outcome:
    defaults: dict[str, object] = {"patience": IMPATIENT, "num_workers": 2}
    return download(AppleSource(server.url), DownloadConfig(folder, **{**defaults, **options}))  # type: ignore[arg-type]


def archive_gets(server: FaultServer) -> list[str]:
    return sorted(request.path[-9:-7] for request in server.gets() if request.path.endswith(".tar.gz"))


def check_complete(folder: Path, photos: dict[str, bytes] = PHOTOS) -> None:
    check_photos(folder, photos)
    names = [str(path.relative_to(folder)) for path in folder.rglob("*")]
    assert not [name for name in names if ".part" in name or ".tmp" in name or "records" in name]
    assert len(load_records(folder)) == len(photos)


def check_photos(folder: Path, photos: dict[str, bytes] = PHOTOS) -> None:
    assert {path.stem: path.read_bytes() for path in (folder / "small_images").iterdir()} == photos


def put_manifest(server: FaultServer, **fields: object) -> None:
    archives = [
        {"name": path.rpartition("/")[2], **fields} for path in sorted(server.files) if path.endswith(".tar.gz")
    ]
    server.files[MANIFEST] = json.dumps({"archives": archives}).encode()


# The whole job.


def test_everything_arrives_and_is_recorded(server: FaultServer, tmp_path: Path) -> None:
    outcome = bring(server, tmp_path)
    check_complete(tmp_path)
    assert outcome.failed == []
    assert (outcome.archives, outcome.all_archives, outcome.fetched_archives) == (6, 6, 6)
    assert outcome.photos == {"small_images": (240, 240 * 3000)}
    content = server.files["/images/small/small_images-03.tar.gz"]
    assert json.loads((tmp_path / ".download" / "state.json").read_text())["files"]["small_images-03.tar.gz"] == {
        "url": f"{server.url}/images/small/small_images-03.tar.gz",
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": len(content),
        "photos": 40,
        "photo_bytes": 40 * 3000,
    }
    labels = ("labels/labels_and_metadata.json", "labels/label_relationship.txt")
    assert outcome.fetched_bytes == sum(
        len(content) for path, content in server.files.items() if path[1:] in labels or path.endswith(".tar.gz")
    )


def test_a_second_run_fetches_nothing(server: FaultServer, tmp_path: Path) -> None:
    bring(server, tmp_path)
    before = tree(tmp_path)
    server.requests.clear()
    outcome = bring(server, tmp_path)
    assert (outcome.archives, outcome.fetched_archives, outcome.fetched_bytes) == (6, 0, 0)
    assert [request.path for request in server.gets()] == [MANIFEST, "/ATTRIBUTION.txt"]
    assert tree(tmp_path) == before


def test_a_miniature_packed_as_apple_packs_it(miniature: Path, tmp_path: Path) -> None:
    synthetic_archives.pack(miniature, tmp_path / "mirror", 43)
    with mirror_server.serve(tmp_path / "mirror") as served:
        outcome = download(AppleSource(served.url), DownloadConfig(tmp_path / "copy"))
    assert outcome.failed == []
    original, copy = tree(miniature), tree(tmp_path / "copy")
    photos = {name for name in original if name.startswith("small_images/")}
    for name in {*photos, catalog.METADATA_FILE, catalog.TAXONOMY_FILE}:
        assert copy[name] == original[name]
    assert {name for name in copy if name.startswith("small_images/")} == photos


def test_archives_come_in_parallel(server: FaultServer, tmp_path: Path) -> None:
    meeting = threading.Barrier(4, timeout=30)
    together = Fault(before_piece=lambda sent: sent or meeting.wait())
    for index in range(4):
        server.faults[f"/images/small/small_images-{index:02d}.tar.gz"] = [together]
    assert bring(server, tmp_path, num_workers=4).failed == []
    check_complete(tmp_path)


def test_photos_appear_while_other_archives_still_arrive(server: FaultServer, tmp_path: Path) -> None:
    def wait_for_photos(sent: int) -> None:
        if sent >= 8192:
            wait_until(lambda: len(list((tmp_path / "small_images").glob("*.jpg"))) == 40)

    server.faults["/images/small/small_images-00.tar.gz"] = [Fault(before_piece=wait_for_photos)]
    assert bring(server, tmp_path, num_workers=2, limit_archives=2).failed == []


def test_limit_then_all(server: FaultServer, tmp_path: Path) -> None:
    outcome = bring(server, tmp_path, limit_archives=2)
    assert (outcome.failed, outcome.archives, outcome.all_archives) == ([], 2, 6)
    assert len(list((tmp_path / "small_images").iterdir())) == 80
    server.requests.clear()
    assert bring(server, tmp_path).archives == 6
    assert archive_gets(server) == ["02", "03", "04", "05"]
    check_complete(tmp_path)


def test_only_metadata(server: FaultServer, tmp_path: Path) -> None:
    assert bring(server, tmp_path, only_metadata=True).failed == []
    assert archive_gets(server) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".download", "label_relationship.txt", "labels_and_metadata.json",
    ]  # fmt: skip


def test_keep_archives(server: FaultServer, tmp_path: Path) -> None:
    bring(server, tmp_path, keep_archives=True)
    for path, content in server.files.items():
        if path.endswith(".tar.gz"):
            assert (tmp_path / path.rpartition("/")[2]).read_bytes() == content
    check_complete(tmp_path)


def add_raw(server: FaultServer) -> None:
    """The same photos once more, as raw ones."""
    for path, content in list(server.files.items()):
        if path.endswith(".tar.gz"):
            server.files[path.replace("small/small_images", "raw/images")] = content
    names = [f"images-{index:02d}.tar.gz" for index in range(NUM_ARCHIVES)]
    server.files["/images/raw/manifest.json"] = json.dumps({"archives": [{"name": name} for name in names]}).encode()


def test_raw_photos_too(server: FaultServer, tmp_path: Path) -> None:
    add_raw(server)
    outcome = bring(server, tmp_path, raw=True)
    assert outcome.failed == []
    assert outcome.photos == {"small_images": (240, 720_000), "raw_images": (240, 720_000)}
    check_complete(tmp_path)
    assert len(list((tmp_path / "raw_images").iterdir())) == 240


def test_attribution_of_a_mirror_that_has_it(server: FaultServer, tmp_path: Path) -> None:
    assert any("ATTRIBUTION.txt" in note for note in bring(server, tmp_path / "without", only_metadata=True).notes)
    server.files["/ATTRIBUTION.txt"] = "10000000000: © someone".encode()
    assert bring(server, tmp_path / "with", only_metadata=True).notes == []
    assert (tmp_path / "with" / "ATTRIBUTION.txt").read_bytes() == server.files["/ATTRIBUTION.txt"]


def test_another_mirror_of_the_same_files_is_asked_for_nothing_again(server: FaultServer, tmp_path: Path) -> None:
    bring(server, tmp_path, limit_archives=3)
    with fault_server.serve() as other:
        other.files = server.files
        assert bring(other, tmp_path).archives == 6
        assert archive_gets(other) == ["03", "04", "05"]
    check_complete(tmp_path)


def test_an_archive_that_the_mirror_has_replaced_is_fetched_again(server: FaultServer, tmp_path: Path) -> None:
    put_manifest(server)
    bring(server, tmp_path)
    path = "/images/small/small_images-02.tar.gz"
    archives = json.loads(server.files[MANIFEST])["archives"]
    server.files[path] = gzip_again(server.files[path])
    archives[2]["sha256"] = hashlib.sha256(server.files[path]).hexdigest()
    server.files[MANIFEST] = json.dumps({"archives": archives}).encode()
    server.requests.clear()
    assert bring(server, tmp_path).failed == []
    assert archive_gets(server) == ["02"]
    check_complete(tmp_path)


def gzip_again(content: bytes) -> bytes:
    return gzip.compress(gzip.decompress(content), 9, mtime=1)


# What is gone comes back.


def test_a_deleted_and_a_changed_photo_bring_back_their_archives_only(server: FaultServer, tmp_path: Path) -> None:
    bring(server, tmp_path)
    ids = list(PHOTOS)
    (tmp_path / "small_images" / f"{ids[1]}.jpg").unlink()
    (tmp_path / "small_images" / f"{ids[3]}.jpg").write_bytes(b"")
    server.requests.clear()
    outcome = bring(server, tmp_path)
    assert (outcome.failed, outcome.fetched_archives) == ([], 2)
    assert archive_gets(server) == ["01", "03"]
    check_complete(tmp_path)


def test_a_kept_archive_brings_photos_back_without_the_server(server: FaultServer, tmp_path: Path) -> None:
    bring(server, tmp_path, keep_archives=True)
    shutil.rmtree(tmp_path / "small_images")
    (tmp_path / "small_images-04.tar.gz").write_bytes(b"no longer what it was")
    server.requests.clear()
    assert bring(server, tmp_path, keep_archives=True).failed == []
    assert archive_gets(server) == ["04"]
    check_complete(tmp_path)


def test_changed_labels_are_fetched_again(server: FaultServer, tmp_path: Path) -> None:
    bring(server, tmp_path)
    (tmp_path / "label_relationship.txt").write_text("cat -> plant\n")
    bring(server, tmp_path)
    assert (tmp_path / "label_relationship.txt").read_bytes() == server.files["/labels/label_relationship.txt"]


# What is wrong is said, and the rest goes on.


def test_a_corrupt_archive_is_fetched_once_more(
    server: FaultServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = "/images/small/small_images-01.tar.gz"
    bad = bytearray(server.files[path])
    bad[50_000] ^= 255
    server.faults[path] = [Fault(status=200, body=bytes(bad))]
    assert bring(server, tmp_path).failed == []
    assert "small_images-01.tar.gz: is damaged" in capsys.readouterr().err
    assert archive_gets(server) == ["00", "01", "01", "02", "03", "04", "05"]
    check_complete(tmp_path)


def test_an_archive_that_stays_corrupt_is_told_and_the_others_arrive(server: FaultServer, tmp_path: Path) -> None:
    path = "/images/small/small_images-01.tar.gz"
    good = server.files[path]
    server.files[path] = good[:50_000]
    outcome = bring(server, tmp_path)
    (line,) = outcome.failed
    assert line.startswith("small_images-01.tar.gz: is damaged: the gzip ends in the middle; fetched twice, wrong both")
    assert (outcome.archives, len(list((tmp_path / "small_images").iterdir()))) == (5, 200)
    server.files[path] = good
    assert bring(server, tmp_path).failed == []
    check_complete(tmp_path)


def test_an_archive_that_is_not_the_published_one(server: FaultServer, tmp_path: Path) -> None:
    put_manifest(server, sha256="0" * 64)
    outcome = bring(server, tmp_path, limit_archives=1)
    assert len(outcome.failed) == 1
    assert "but " + "0" * 64 + " is published; fetched twice, wrong both times" in outcome.failed[0]
    assert not list((tmp_path / ".download").glob("*.part*"))


def test_an_archive_that_is_not_as_large_as_its_manifest_says(server: FaultServer, tmp_path: Path) -> None:
    put_manifest(server, size=5)
    (line,) = bring(server, tmp_path, limit_archives=1).failed
    assert re.match(
        r"small_images-00\.tar\.gz: the server promises [0-9,]+ bytes, but 5 are published; asked twice", line
    )
    assert archive_gets(server) == ["00", "00"]


def test_an_archive_with_too_few_photos(server: FaultServer, tmp_path: Path) -> None:
    put_manifest(server, photos=41)
    outcome = bring(server, tmp_path, limit_archives=1)
    assert outcome.failed == ["small_images-00.tar.gz: holds 40 photos, but 41 are published"]
    assert list((tmp_path / "small_images").iterdir()) == [], "none of them is in place"
    assert not (tmp_path / ".download" / "small_images-00.tar.gz.photos").exists()


def test_an_unsafe_archive_is_refused_and_nothing_escapes(server: FaultServer, tmp_path: Path) -> None:
    server.files["/images/small/small_images-01.tar.gz"] = pack(member("ok.jpg"), member("../../evil.jpg"))
    outcome = bring(server, tmp_path / "dataset")
    assert outcome.failed == [
        "small_images-01.tar.gz: member '../../evil.jpg' would leave the dataset folder; the archive is refused"
    ]
    assert archive_gets(server).count("01") == 1
    assert not (tmp_path / "dataset" / "small_images" / "ok.jpg").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def put_rival(server: FaultServer, index: int) -> bytes:
    """Archive `index` brings a photo of archive 00 as well, with other bytes; returns what the archive was."""
    path = f"/images/small/small_images-{index:02d}.tar.gz"
    before = server.files[path]
    own = {image_id: PHOTOS[image_id] for image_id in list(PHOTOS)[index::NUM_ARCHIVES]}
    server.files[path] = make_tar_gz({**own, next(iter(PHOTOS)): bytes(3000)})
    return before


@pytest.mark.parametrize("num_workers", [1, 4])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_archives_that_bring_a_photo_with_other_bytes(
    server: FaultServer, tmp_path: Path, order: tuple[int, int], num_workers: int
) -> None:
    before = put_rival(server, 1)
    archives = [{"name": f"small_images-{index:02d}.tar.gz"} for index in (*order, 2, 3, 4, 5)]
    server.files[MANIFEST] = json.dumps({"archives": archives}).encode()
    photo = next(iter(PHOTOS))
    for _ in range(2):  # the next run does not take what this one refused
        server.requests.clear()
        outcome = bring(server, tmp_path, num_workers=num_workers)
        (line,) = outcome.failed
        assert re.match(
            rf"small_images-0[01]\.tar\.gz: brings photo '{photo}' with other bytes than small_images-0[01]\.tar\.gz",
            line,
        )
        assert {"00", "01"} <= set(archive_gets(server))
        assert (outcome.archives, outcome.photos["small_images"][0]) == (4, 160)
    server.files["/images/small/small_images-01.tar.gz"] = before
    bring(server, tmp_path, num_workers=num_workers)  # the good one is refused once more if it comes before the mended
    assert bring(server, tmp_path, num_workers=num_workers).failed == []
    check_complete(tmp_path)


def test_another_server_does_not_replace_photos_by_an_archive_of_another_name(
    server: FaultServer, tmp_path: Path
) -> None:
    bring(server, tmp_path)
    put_rival(server, 5)
    server.files["/images/small/small_images-77.tar.gz"] = server.files.pop("/images/small/small_images-05.tar.gz")
    put_manifest(server)
    server.files[MANIFEST] = server.files[MANIFEST].replace(b"-05", b"-77")
    photo = next(iter(PHOTOS))
    for _ in range(2):
        (line,) = bring(server, tmp_path).failed
        assert line.startswith(f"small_images-77.tar.gz: brings photo '{photo}' with other bytes than small_images-00.")
        check_photos(tmp_path)


def test_a_changed_photo_that_exists_in_two_sizes_comes_back(server: FaultServer, tmp_path: Path) -> None:
    add_raw(server)
    bring(server, tmp_path, raw=True)
    raw = next((tmp_path / catalog.RAW_IMAGES_DIR).iterdir())
    content = raw.read_bytes()
    raw.write_bytes(b"changed")
    assert bring(server, tmp_path, raw=True).failed == []
    assert raw.read_bytes() == content


def test_members_that_are_no_photos_are_noted(server: FaultServer, tmp_path: Path) -> None:
    path = "/images/small/small_images-00.tar.gz"
    photos = {image_id: content for index, (image_id, content) in enumerate(PHOTOS.items()) if index % 6 == 0}
    server.files[path] = pack(*[member(f"{key}.jpg", value) for key, value in photos.items()], member("a.txt"))
    outcome = bring(server, tmp_path)
    assert outcome.failed == []
    assert "small_images-00.tar.gz: left out 1 members that are no photos, such as 'a.txt'" in outcome.notes


def test_photos_of_the_metadata_that_no_archive_has(server: FaultServer, tmp_path: Path) -> None:
    put_manifest(server)
    archives = json.loads(server.files[MANIFEST])["archives"]
    server.files[MANIFEST] = json.dumps({"archives": archives[:5]}).encode()
    outcome = bring(server, tmp_path)
    (line,) = outcome.failed
    assert line.startswith("small_images: 40 of 240 photos of the metadata are in no archive, for example 10000000005,")


def test_without_a_manifest_all_43_archives_are_expected(server: FaultServer, tmp_path: Path) -> None:
    del server.files[MANIFEST]
    outcome = bring(server, tmp_path, limit_archives=8)
    assert outcome.all_archives == 43
    assert [line[: len("small_images-06")] for line in sorted(outcome.failed)] == ["small_images-06", "small_images-07"]
    assert "404 Not Found" in outcome.failed[0]


def test_html_in_place_of_the_metadata(server: FaultServer, tmp_path: Path) -> None:
    server.files["/labels/labels_and_metadata.json"] = b"<html>Please log in</html>"
    with pytest.raises(FlairError, match=r"labels_and_metadata\.json: the server sent a web page in place of text"):
        bring(server, tmp_path)
    assert not (tmp_path / "labels_and_metadata.json").exists()


def packed(content: bytes, **fault: object) -> Fault:
    """An answer compressed on the way, which nobody asked for."""
    etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'  # of the file as it is: wrong, and common
    headers = (("Content-Encoding", "gzip"), ("ETag", etag))
    return Fault(status=200, body=gzip.compress(content), headers=headers, **fault)  # type: ignore[arg-type]


def test_labels_and_manifest_that_come_packed_with_gzip(server: FaultServer, tmp_path: Path) -> None:
    bring(server, tmp_path / "plain", limit_archives=1)
    server.requests.clear()
    for path, content in server.files.items():
        if not path.endswith(".tar.gz"):
            server.faults[path] = [packed(content)]
    archive = "/images/small/small_images-00.tar.gz"  # of which some servers say that it is packed, as it is
    server.faults[archive] = [Fault(headers=(("Content-Encoding", "x-gzip"),))]
    assert bring(server, tmp_path / "packed", limit_archives=1).failed == []
    assert tree(tmp_path / "packed") == tree(tmp_path / "plain")


def test_labels_packed_with_gzip_that_break_off_or_are_damaged_or_bombs(server: FaultServer, tmp_path: Path) -> None:
    path = "/labels/labels_and_metadata.json"
    content = server.files[path]
    server.faults[path] = [packed(content, drop_after=1000)]  # continued with bytes of the file as it is
    assert bring(server, tmp_path / "broken", limit_archives=1).failed == []
    assert (tmp_path / "broken" / "labels_and_metadata.json").read_bytes() == content
    for body, message in (
        (gzip.compress(content)[:-20], r"labels_and_metadata\.json: came packed with gzip, and damaged"),
        (gzip.compress(bytes(30_000_000)), r"labels_and_metadata\.json: unpacks to more than .* refused"),
    ):
        server.faults[path] = [packed(b"")._replace(body=body)]
        with pytest.raises(FlairError, match=message):
            bring(server, tmp_path / "bad")
        assert not list((tmp_path / "bad").rglob("labels_and_metadata*"))
    server.faults[path] = [packed(content)._replace(headers=(("Content-Encoding", "br"),))]
    with pytest.raises(FlairError, match=r"sends it packed with br, which nobody asked for \(Content-Encoding\); ref"):
        bring(server, tmp_path / "brotli")


def test_metadata_that_is_cut_off(server: FaultServer, tmp_path: Path) -> None:
    path = "/labels/labels_and_metadata.json"
    server.files[path] = server.files[path][:5000]
    with pytest.raises(FlairError, match=r"labels_and_metadata\.json, line \d+: not JSON"):
        bring(server, tmp_path)
    assert not (tmp_path / "labels_and_metadata.json").exists()


def test_a_wrong_base_url(server: FaultServer, tmp_path: Path) -> None:
    with pytest.raises(FlairError, match=r"labels_and_metadata\.json: .*404 Not Found.*; check the address"):
        download(AppleSource(f"{server.url}/wrong"), DownloadConfig(tmp_path, patience=IMPATIENT))


def test_a_mirror_that_is_not_there(tmp_path: Path) -> None:
    with fault_server.serve() as server:
        url = server.url
    with pytest.raises(FlairError, match=rf"--base_url={url}: the server refuses connections; gave up after 3 tries"):
        download(AppleSource(url), DownloadConfig(tmp_path, patience=IMPATIENT))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1, 2", "not a manifest of archives"),
        (b"[]", "not a manifest of archives"),
        (b'{"archives": []}', "names no archive"),
        (b'{"archives": [{"name": "../evil.tar.gz"}]}', "expected small_images-NN.tar.gz"),
        ('{"archives": [{"name": "small_images-\u0660\u0661.tar.gz"}]}'.encode(), "expected small_images-NN.tar.gz"),
        (b'{"archives": [{"name": "small_images-00.tar.gz", "size": -1}]}', "expected a whole number"),
        (b'{"archives": [{"name": "small_images-00.tar.gz", "photos": true}]}', "expected a whole number"),
        (b'{"archives": [{"name": "small_images-00.tar.gz", "sha256": "x"}]}', "expected 64 hexadecimal digits"),
        (b'{"archives": [{"name": "small_images-00.tar.gz"}, {"name": "small_images-00.tar.gz"}]}', "one twice"),
        (b'{"archives": "small_images-00.tar.gz"}', "not a manifest of archives"),
    ],
)
def test_manifest_that_cannot_be_trusted(content: bytes, message: str) -> None:
    with pytest.raises(FlairError, match=message):
        read_manifest(content, "http://mirror/images/small/manifest.json", "small_images", "small_images")


def test_too_little_disk_is_told_before_any_archive(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=500_000)
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(FlairError, match=r"has 500\.0 kB free, but about 1\.\d MB are needed; free some space"):
        bring(server, tmp_path)
    assert archive_gets(server) == []


def test_a_disk_that_fills_up_stops_everything_and_the_next_run_continues(server: FaultServer, tmp_path: Path) -> None:
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "import download_dataset; from flair.terminal import command; command.run(download_dataset.main, sys.argv[1:])"
    )
    command = [sys.executable, "-c", script, f"--dataset_dir={tmp_path}", f"--base_url={server.url}"]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=Path(COMMAND[1]).parent)
    assert finished.returncode == 1
    assert re.search(r"cannot read or write '.*/small_images-0\d\.tar\.gz\.part': File too large", finished.stderr)
    assert "Traceback" not in finished.stderr
    assert bring(server, tmp_path).failed == []
    check_complete(tmp_path)


def test_two_downloads_into_one_folder(server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_state, "_LOCK_SECONDS", 0.0)
    with (
        download_state.exclusive(tmp_path, lambda message: None),
        pytest.raises(FlairError, match=r"another download is at work there; wait for it, or stop it"),
    ):
        bring(server, tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"version": 1, "files": {"a": {"x": 1}}}', '{"version": 9}'])
def test_a_state_file_that_is_not_ours(server: FaultServer, tmp_path: Path, content: str) -> None:
    (tmp_path / ".download").mkdir()
    (tmp_path / ".download" / "state.json").write_text(content)
    with pytest.raises(FlairError, match=r"state\.json: .*delete it to download everything again"):
        bring(server, tmp_path)


# The command line.


def start(server: FaultServer, folder: Path, *flags: str) -> subprocess.Popen[str]:
    command = [*COMMAND, f"--dataset_dir={folder}", f"--base_url={server.url}", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(60_000):
        if condition():
            return
        time.sleep(0.001)
    raise AssertionError("never happened")


def test_the_command_ends_with_what_where_and_next(server: FaultServer, tmp_path: Path) -> None:
    code, output, errors = finish(start(server, tmp_path))
    assert (code, errors) == (0, "")
    assert f"{tmp_path}/small_images: 240 photos, 720.0 kB" in output
    assert "6 of 6 archives are here, 6 new; " in output
    assert output.endswith(f"Next: python3 -m flair.verify --dataset_dir={tmp_path}\n")


def test_the_command_fails_with_a_list_of_what_and_why(server: FaultServer, tmp_path: Path) -> None:
    server.files["/images/small/small_images-05.tar.gz"] = pack(member("2.jpg", b"", b"2", "/etc/passwd"))
    code, output, errors = finish(start(server, tmp_path))
    assert code == 1
    assert "FAILED small_images-05.tar.gz: member '2.jpg' is a symbolic link, not a photo" in errors
    assert "1 failed; the same command tries them again" in errors
    assert "Traceback" not in errors
    assert "5 of 6 archives are here" in output


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--dataset_dir=x", "--num_workers=0"],
        ["--dataset_dir=x", "--limit_archives=zero"],
        ["--dataset_dir=x", "--limit_archives=\u0664"],
        ["--dataset_dir=x", "--timeout=0"],
        ["--dataset_dir=x", "--timeout=\u0664"],
        ["--dataset_dir=x", "--retries=-1"],
        ["--dataset_dir=x", "--base_url=ftp://example.org"],
        ["--dataset_dir=x", "--source=elsewhere"],
        ["--dataset_dir=x", "--source=huggingface", "--download_raw"],
        ["--dataset_dir=x", "--source=huggingface", "--base_url=http://localhost"],
        ["--dataset_dir=x", "--only=metadata", "--limit_archives=1"],
        ["--dataset", "x"],
    ],
)
def test_wrong_usage_exits_2(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        download_dataset.main(flags)
    assert caught.value.code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_dir_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FlairError, match=r"file: is a file; expected a directory, or a new name"):
        download_dataset.main([f"--dataset_dir={tmp_path / 'file'}"])


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\ntry:\n import download_dataset; download_dataset.main(['--help'])\n"
        "except SystemExit as end: print(end.code, {'requests', 'pyarrow', 'tqdm'} & set(sys.modules))"
    )
    folder = Path(COMMAND[1]).parent
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=folder, check=True)
    assert output.stdout.endswith("0 set()\n")


# Kills.


def test_a_folder_named_flair_in_the_current_directory_is_not_run(server: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "flair").mkdir()
    (tmp_path / "flair" / "__init__.py").write_text("raise SystemExit('the wrong flair')")
    command = [*COMMAND, "--dataset_dir=d", f"--base_url={server.url}"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    check_complete(tmp_path / "d")


class Mirror(NamedTuple):
    """A server of photos, and what an unbroken run makes of it."""

    server: FaultServer
    photos: dict[str, bytes]
    unbroken: dict[str, bytes]


@contextlib.contextmanager
def a_mirror(folder: Path, photos: dict[str, bytes], num_archives: int) -> Iterator[Mirror]:
    with fault_server.serve() as server:
        publish(server, photos, num_archives)
        bring(server, folder)
        yield Mirror(server, photos, tree(folder))


@pytest.fixture(scope="module")
def shared_mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirror]:
    with a_mirror(tmp_path_factory.mktemp("unbroken"), PHOTOS, NUM_ARCHIVES) as made:
        yield made


@pytest.fixture
def mirror(shared_mirror: Mirror) -> Mirror:
    """The photos of `server`, with nothing asked for yet."""
    shared_mirror.server.release()
    shared_mirror.server.requests.clear()
    return shared_mirror


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirror]:
    """One whose archives take long enough to unpack."""
    with a_mirror(tmp_path_factory.mktemp("unbroken"), make_photos(2400), 2) as made:
        yield made


@pytest.mark.parametrize(
    ("number", "share"),
    [
        *((signal.SIGKILL, share) for share in (0.003, 0.4, 0.99)),
        *((signal.SIGINT, share) for share in (0.04, 0.8)),
        (signal.SIGTERM, 0.6),
    ],
)
def test_killed_while_bytes_arrive(mirror: Mirror, tmp_path: Path, number: signal.Signals, share: float) -> None:
    server = mirror.server
    work = tmp_path / "killed" / ".download"
    server.hold_after(int(share * sum(len(content) for content in server.files.values())))
    process = start(server, tmp_path / "killed")
    assert server.held.wait(60)
    wait_until(lambda: all(has_arrived(work, request) for request in server.gets()))
    os.killpg(process.pid, number)
    code, _, errors = finish(process)
    server.release()
    assert code == {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert "Traceback" not in errors
    if number != signal.SIGKILL:
        assert "the same command continues where it stopped" in errors

    finished = recorded(work)
    partial = {part.name.removesuffix(".part"): part.stat().st_size for part in work.glob("*.part")}
    partial = {name: size for name, size in partial.items() if size and name not in finished}
    assert partial
    server.requests.clear()
    continued = run(SCRIPT, f"--dataset_dir={tmp_path / 'killed'}", f"--base_url={server.url}")
    # What unpacks outlives a SIGKILL for a moment, and nothing starts beside it.
    assert re.sub(r"\Awaiting for another download into .* to end\n", "", continued.stderr) == ""
    asked = {request.path.rpartition("/")[2]: request for request in server.gets()}
    assert not finished & set(asked)
    for name, size in partial.items():
        whole = next(content for path, content in server.files.items() if path.endswith(name))
        if size == len(whole):
            assert name not in asked
        else:
            assert (asked[name].range, asked[name].status) == (f"bytes={size}-", 206)

    assert tree(tmp_path / "killed") == mirror.unbroken
    check_complete(tmp_path / "killed")


def has_arrived(work: Path, request: Request) -> bool:
    """Whether all that was sent of a file is on the disk."""
    name = request.path.rpartition("/")[2]
    part = work / f"{name}.part"
    try:
        on_disk = part.stat().st_size
    except FileNotFoundError:  # not begun, or taken a moment ago
        on_disk = 0
    first = int(request.range[len("bytes=") : -1]) if request.range else 0
    if request.path == MANIFEST:
        return True
    return on_disk >= first + request.sent or name in recorded(work) or (work / "labels" / name).exists()


def recorded(work: Path) -> set[str]:
    state = work / "state.json"
    return set(json.loads(state.read_text())["files"]) if state.exists() else set()


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("small_images/.*.tmp/*.jpg", signal.SIGKILL),
        ("small_images/.*.tmp/*.jpg", signal.SIGINT),
        ("small_images/*.jpg", signal.SIGKILL),
    ],
    ids=["staging-SIGKILL", "staging-SIGINT", "moving-SIGKILL"],
)
def test_killed_while_unpacking(large: Mirror, tmp_path: Path, moment: str, number: signal.Signals) -> None:
    process = start(large.server, tmp_path)
    wait_until(lambda: any(tmp_path.glob(moment)))
    os.killpg(process.pid, number)
    code, _, errors = finish(process)
    assert code == {signal.SIGKILL: -9, signal.SIGINT: 130}[number]
    assert "Traceback" not in errors
    work = tmp_path / ".download"
    arrived = {part.name.removesuffix(".part") for part in work.glob("*.part") if is_whole(part)} | recorded(work)
    assert any(name.endswith(".tar.gz") for name in arrived)
    large.server.requests.clear()
    run(SCRIPT, f"--dataset_dir={tmp_path}", f"--base_url={large.server.url}")
    asked = {request.path.rpartition("/")[2] for request in large.server.gets()}
    assert not arrived & asked, "what has arrived is unpacked, not fetched"
    assert tree(tmp_path) == large.unbroken
    check_complete(tmp_path, large.photos)


def test_the_unpacking_process_dies_with_its_parent(large: Mirror, tmp_path: Path) -> None:
    process = start(large.server, tmp_path, "--num_workers=1")
    wait_until(lambda: any(tmp_path.glob("small_images/.*.tmp/*.jpg")))
    process.kill()
    finish(process)
    with download_state.exclusive(tmp_path, lambda message: None):  # held by the process until it is gone
        staged = len(list(tmp_path.glob("small_images/.*.tmp/*.jpg")))
        assert staged < 1200
        assert not (tmp_path / ".download" / "small_images-00.tar.gz.photos").exists()


def test_killed_again_and_again(mirror: Mirror, tmp_path: Path) -> None:
    server = mirror.server
    generator = random.Random(11)
    folder = tmp_path / "killed"
    resumed = kills = 0
    while True:
        server.requests.clear()
        server.hold_after(generator.randrange(60_000, 200_000))
        process = start(server, folder)
        if not held_or_ended(server, process):
            break
        wait_until(lambda: all(has_arrived(folder / ".download", request) for request in server.gets()))
        process.send_signal(generator.choice([signal.SIGKILL, signal.SIGINT]))
        finish(process)
        server.release()
        resumed += sum(request.range is not None for request in server.gets())
        kills += 1
    server.release()
    assert finish(process)[0] == 0
    assert kills >= 4
    assert resumed >= 4
    assert tree(folder) == mirror.unbroken


@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGINT"])
def test_killed_while_raw_photos_are_brought_too(server: FaultServer, tmp_path: Path, signal_name: str) -> None:
    add_raw(server)
    flags = ("--download_raw", f"--base_url={server.url}", "--num_workers=2")
    unbroken = run_interrupted(signal_name, 0, SCRIPT, f"--dataset_dir={tmp_path / 'unbroken'}", *flags)
    assert unbroken.returncode == 0, unbroken.stderr
    operations = int(unbroken.stderr.splitlines()[-1])
    killed = f"--dataset_dir={tmp_path / 'killed'}"
    ended = [run_interrupted(signal_name, at, SCRIPT, killed, *flags) for at in (operations // 4, operations // 3)]
    assert ended[0].returncode == (-signal.SIGKILL if signal_name == "SIGKILL" else 130)
    done = recorded(tmp_path / "killed" / ".download")
    server.requests.clear()
    last = run_interrupted(signal_name, 0, SCRIPT, killed, *flags)
    assert last.returncode == 0, last.stderr
    assert not done & {request.path.rpartition("/")[2] for request in server.gets()}
    assert tree(tmp_path / "killed") == tree(tmp_path / "unbroken")
    assert len(list((tmp_path / "killed" / "raw_images").iterdir())) == 240
    check_complete(tmp_path / "killed")


def held_or_ended(server: FaultServer, process: subprocess.Popen[str]) -> bool:
    """Waits for either; True when the server holds."""
    wait_until(lambda: server.held.is_set() or process.poll() is not None)
    return process.poll() is None


def test_threads_raise_what_they_cannot_handle_and_stop_the_others() -> None:
    stop = threading.Event()

    def work(item: int) -> None:
        if item == 0:
            raise OSError("disk full")
        stop.wait()

    with pytest.raises(OSError, match="disk full"):
        threads.run(work, range(4), 4, stop)
