"""--flagfile: as absl reads it, and also in a text that an editor of another system saved."""

from __future__ import annotations

from pathlib import Path

import pytest
from absl import flags

from benchmark.flag_file import expand
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
    for flag, message in (
        (f"--flagfile={path}", r"a b\.flags: is UTF-16 text; save it as UTF-8"),
        (f"--flagfile={loop}", "loop: names itself"),
        (f"--flagfile={path.parent}", "cannot be read .Is a directory."),
        ("--flagfile=/none", "--flagfile=/none: cannot be read .No such file"),
        ("--flagfile", "expected a file"),
    ):
        with pytest.raises(FlairError, match=message):
            expand([flag])
