"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import functools
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flair.errors import FlairError
from flair.files import atomic
from flair.records.hdf5.writer import write_hdf5
from flair.terminal.command import explain_os_error
from tests.support.commands import ROOT


def test_the_final_name_appears_only_when_the_writing_is_done(tmp_path: Path) -> None:
    final = tmp_path / "new" / "folder" / "result.bin"
    with atomic.replacing(final) as temporary:
        temporary.write_bytes(b"whole")
        assert not final.exists()
        assert temporary.parent == final.parent
    assert final.read_bytes() == b"whole"
    assert os.listdir(final.parent) == ["result.bin"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    final = tmp_path / "result.txt"
    atomic.write_text(final, "old")

    def write_half() -> None:
        with atomic.replacing(final) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(error):
        write_half()
    assert final.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.txt"]


def test_writing_nothing_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic.replacing(tmp_path / "result.txt"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_killed_writer_leaves_the_old_file_and_a_leftover_that_is_recognised(tmp_path: Path) -> None:
    final = tmp_path / "result.txt"
    final.write_text("old")
    writer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import signal, sys\nfrom flair.files import atomic\n"
            "with atomic.replacing(sys.argv[1]) as temporary:\n"
            "    temporary.write_text('half')\n    print('ready', flush=True)\n    signal.pause()\n",
            str(final),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        writer.send_signal(signal.SIGKILL)
    assert final.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == [f".result.txt.{writer.pid}.tmp", "result.txt"]
    assert atomic.remove_leftovers(tmp_path) == 1
    assert os.listdir(tmp_path) == ["result.txt"]


def test_text_is_utf8_and_json_ends_in_a_newline(tmp_path: Path) -> None:
    atomic.write_text(tmp_path / "t", "né\n")
    assert (tmp_path / "t").read_bytes() == b"n\xc3\xa9\n"
    atomic.write_json(tmp_path / "j", {"né": [1, 2]})
    text = (tmp_path / "j").read_text(encoding="utf-8")
    assert "né" in text and text.endswith("}\n")
    assert json.loads(text) == {"né": [1, 2]}


@pytest.mark.parametrize(
    "name", ["a" * 248 + ".json", "é" * 125 + ".json", "写" * 83 + ".json", "a" * 140, "b" * 255], ids=len
)
def test_every_name_that_the_file_system_takes_is_written(tmp_path: Path, name: str) -> None:
    with atomic.replacing(tmp_path / name) as temporary:
        temporary.write_text("new")
        assert temporary.name.startswith(".") and temporary.name.endswith(".tmp")
        atomic.write_text(tmp_path / f"{name[:-1]}x", "of a name that differs at its end")
    assert (tmp_path / name).read_text() == "new"
    assert len(os.listdir(tmp_path)) == 2


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=255))
def test_a_hidden_name_is_short_and_of_whole_characters(name: str) -> None:
    hidden = atomic.beside(Path("folder") / f"x{name}", "unfinished")
    assert len(hidden.name.encode()) <= 143 and hidden.parent == Path("folder")
    assert hidden == atomic.beside(Path("folder") / f"x{name}", "unfinished")
    assert hidden != atomic.beside(Path("folder") / f"x{name}y", "unfinished")
    if len(name.encode()) < 130:
        assert hidden.name == f".x{name}.unfinished"


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    there, links = tmp_path / "there", tmp_path / "links"
    there.mkdir()
    links.mkdir()
    (there / "file").write_text("old")
    (links / "to file").symlink_to("../there/file")
    (links / "dangling").symlink_to(there / "new" / "file")
    (links / "to link").symlink_to("to file")
    for name in ("to file", "dangling", "to link"):
        with atomic.replacing(links / name) as temporary:
            temporary.write_text(name)
            assert temporary.parent == (links / name).resolve().parent
        assert (links / name).is_symlink() and (links / name).resolve().read_text() == name
    assert sorted(path.name for path in there.rglob("*")) == ["file", "file", "new"]


@pytest.mark.parametrize("kind", ["fifo", "device", "link to a device", "folder", "circle", "too long", "below a file"])
def test_what_no_file_can_replace_is_refused_before_the_work(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    path = tmp_path / kind
    ends = os.openpty()
    for end in ends:
        request.addfinalizer(functools.partial(os.close, end))
    terminal = os.ttyname(ends[1])  # of a folder where nothing can be made, should this test ever fail
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path = Path(terminal)
    elif kind == "link to a device":
        path.symlink_to(terminal)
    elif kind == "folder":
        path.mkdir()
    elif kind == "circle":
        path.symlink_to(path)
    elif kind == "too long":
        path = tmp_path / ("a" * 256)
    else:
        path.write_text("a file")
        path = path / "x" / "y"
    before = sorted(os.listdir(tmp_path))
    with pytest.raises((FlairError, OSError)) as refused, atomic.replacing(path):
        pytest.fail("the work began")
    text = explain_os_error(refused.value) if isinstance(refused.value, OSError) else str(refused.value)
    assert str(path) in text and "\n" not in text and ".tmp" not in text
    assert sorted(os.listdir(tmp_path)) == before


def test_what_is_not_there_is_not_removed_from_a_file_system_that_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    atomic.remove(tmp_path / ".unfinished")


def test_errors_name_the_file_that_was_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as large:
            atomic.write_text(folder / "name", "more than fits")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with pytest.raises(FileNotFoundError) as gone, atomic.replacing(folder / "name") as temporary:
        pass
    assert large.value.filename == gone.value.filename == str(folder / "name")
    with (
        pytest.raises(FileNotFoundError) as other,
        atomic.replacing(folder / "name") as temporary,
        open(folder / "another"),
    ):
        temporary.write_text("x")
    assert other.value.filename == str(folder / "another")


def test_a_path_that_is_no_text_can_be_named_in_a_file(tmp_path: Path) -> None:
    place = os.fsdecode(b"data \xff")
    atomic.write_json(tmp_path / place, {"dataset_dir": place})
    text = (tmp_path / place).read_bytes().decode("utf-8")
    assert json.loads(text) == {"dataset_dir": place}


@pytest.mark.parametrize("name", ["a" * 248 + ".h5", "é" * 126 + ".h5"], ids=len)
def test_preparation_takes_every_name_and_writes_through_links(tmp_path: Path, miniature: Path, name: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / name)
    for path in (tmp_path / "link", tmp_path / name):
        write_hdf5(miniature, path, image_format="jpeg", num_workers=1)
    assert sorted(os.listdir(tmp_path)) == sorted(["link", name]) and (tmp_path / "link").is_symlink()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FlairError, match="fifo: is a pipe or a device"):
        write_hdf5(miniature, tmp_path / "fifo", num_workers=1)


@pytest.mark.parametrize("position", [None, 2])
def test_all_bytes_are_written_where_the_system_takes_some_at_a_time(
    position: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, pwrite = os.write, os.pwrite
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, place: pwrite(descriptor, data[:3], place))
    with open(tmp_path / "file", "w+b", buffering=0) as file:
        atomic.write_all(file.fileno(), b"0123456789", position)
        file.seek(0)
        assert file.read() == bytes(position or 0) + b"0123456789"


def test_csv_keeps_every_digit_and_quotes_what_needs_it(tmp_path: Path) -> None:
    rows = [["name", "value"], ["a,b", 0.1 + 0.2], ['say "x"', None]]
    atomic.write_csv(tmp_path / "rows.csv", rows)
    assert (tmp_path / "rows.csv").read_bytes() == b'name,value\n"a,b",0.30000000000000004\n"say ""x""",\n'
