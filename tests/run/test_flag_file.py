"""--flagfile: as absl reads it, and also in a text that an editor of another system saved."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from absl import flags

from benchmark.run.flag_file import expand
from flair.errors import FlairError

TEXT = "# common\n--model=cnn\n\n  --iid  \n// more\n--epsilon\n2\n"
FLAGS = ["--model=cnn", "--iid", "--epsilon", "2"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "a b.flags"
    file.write_text(TEXT)
    return file


def test_every_form_is_read_as_absl_reads_it(path: Path) -> None:
    nested = path.with_name("nested")
    nested.write_text(f"--seed=1\n--flagfile={path}\n--seed=3\n")
    for arguments in (
        [f"--flagfile={path}", "--seed=4"],
        ["--seed=4", "-flagfile", str(path)],
        [f"-flagfile={nested}", "x"],
        ["--seed=4", "--", f"--flagfile={path}"],
        ["--flagfile=", "x"],
    ):
        assert expand(["program", *arguments]) == flags.FlagValues().read_flags_from_files(["program", *arguments])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_an_editor_adds_is_no_part_of_a_flag(path: Path, encoding: str, end: str) -> None:
    path.write_bytes(TEXT.replace("\n", end).encode(encoding))
    assert expand([f"--flagfile={path}"]) == FLAGS


def test_a_file_that_is_none_is_named(path: Path) -> None:
    path.write_bytes(TEXT.encode("utf-16"))
    loop = path.with_name("loop")
    loop.write_text(f"--flagfile={loop}")
    for number in range(1500):
        path.with_name(f"chain{number}").write_text(f"--flagfile={path.parent / f'chain{number + 1}'}\n")
    for number in range(18):
        path.with_name(f"twice{number}").write_text(f"--flagfile={path.parent / f'twice{number + 1}'}\n" * 2)
    path.with_name("twice18").write_text("--seed=1\n")
    for flag, message in (
        (f"--flagfile={path}", r"a b\.flags: is UTF-16 text; save it as UTF-8"),
        (f"--flagfile={loop}", "loop: names itself"),
        (f"--flagfile={path.parent}", "cannot be read .Is a directory."),
        (f"--flagfile={path.parent / 'chain0'}", r"chain20: is named by 20 files, each by the next"),
        (f"--flagfile={path.parent / 'twice0'}", r"hold more than 10,000 flags"),
        ("--flagfile=/dev/zero", r"/dev/zero: is a device, not a file of text"),
        ("--flagfile=/none", "--flagfile=/none: cannot be read .No such file"),
        ("--flagfile", "expected a file"),
    ):
        with pytest.raises(FlairError, match=message):
            expand([flag])


def test_a_pipe_will_do_and_one_that_nobody_writes_to_is_not_waited_for(path: Path) -> None:
    pipe = path.with_name("pipe")
    os.mkfifo(pipe)
    assert expand([f"--flagfile={pipe}"]) == []
    reading, writing = os.pipe()  # as the shell's <(command)
    writer = threading.Thread(target=lambda: os.write(writing, TEXT.encode()) and os.close(writing))
    writer.start()
    assert expand([f"--flagfile=/dev/fd/{reading}"]) == FLAGS
    writer.join()
    os.close(reading)
