"""Files appear whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flair import atomic

ROOT = Path(__file__).resolve().parents[1]


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
            "import signal, sys\nfrom flair import atomic\n"
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
