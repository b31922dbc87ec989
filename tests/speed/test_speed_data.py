"""The speed of the data path: the arithmetic of its table, and a run of every step."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.speed import download
from benchmark.speed.data import choose, make_steps, summarize
from benchmark.speed.harness import Measured, Step, process_tree, run
from benchmark.speed_main import main
from flair.errors import FlairError
from flair.miniature.archives import pack
from tests.support import commands
from tests.support.tiny_flair import tree


def step(name: str, baseline: str | None = None, needs: tuple[str, ...] = ()) -> Step:
    return Step(name, [sys.executable, "-c", "pass"], 8_000_000, None, baseline, needs)


def test_medians_and_ratios_are_those_of_a_hand_calculation() -> None:
    runs = {
        "copy": [Measured(1.0, 10), Measured(4.0, 30), Measured(2.0, 20)],
        "pack": [Measured(3.0, 99), Measured(4.0, 70), Measured(5.0, 80)],
    }
    copy, pack = summarize([step("copy"), step("pack", "copy")], runs, 100)
    assert copy["seconds"] == 2.0
    assert copy["photos_per_second"] == 50
    assert copy["megabytes_per_second"] == 4
    assert copy["ratio"] is None
    assert pack["ratio"] == 2.5  # of 3, 1 and 2.5
    assert pack["peak_memory_bytes"] == 99


def test_chosen_steps_bring_what_they_depend_on() -> None:
    steps = [step("copy"), step("other", "copy"), step("pack", "copy"), step("verify", "copy", ("pack",))]
    assert [chosen.name for chosen in choose(steps, ["VERI"])] == ["copy", "pack", "verify"]
    with pytest.raises(FlairError, match="expected part of copy, other, pack, verify"):
        choose(steps, ["nothing"])


def test_memory_is_that_of_all_processes() -> None:
    child = "import time; data = bytearray(150_000_000); data[::4096] = data[::4096]; time.sleep(1)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    measured = run(Step("allocate", [sys.executable, "-c", code], 1, None))
    assert measured.memory > 150_000_000
    assert measured.seconds > 1
    assert os.getpid() in process_tree(os.getpid())


def test_a_step_that_fails_is_told() -> None:
    with pytest.raises(FlairError, match=r"broken failed: .*no luck"):
        run(Step("broken", [sys.executable, "-c", "import sys; sys.exit('no luck')"], 1, None))


def test_every_step_runs_and_cleans_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--work_dir={tmp_path}", "--num_images=60", "--repeats=1", "--num_workers=1"]
    assert main(["data", *flags, f"--output_file={tmp_path / 'speed.json'}"]) == 0
    output = capsys.readouterr().out
    report = json.loads((tmp_path / "speed.json").read_text())
    names = [row["step"] for row in report["steps"]]
    assert names == [s.name for s in make_steps(tmp_path, tmp_path / "synthetic-60-0", tmp_path, 1)]
    assert all(f"\n{name} " in output for name in names)
    assert sorted(os.listdir(tmp_path)) == ["speed.json", "synthetic-60-0", "synthetic-60-0-archives"]


def test_memory_counts_processes_that_threads_have_started() -> None:
    child = "import time; data = bytearray(150_000_000); data[::4096] = data[::4096]; time.sleep(1)"
    start = f"subprocess.run([sys.executable, '-c', {child!r}])"
    code = f"import subprocess, sys, threading; threading.Thread(target=lambda: {start}).start()"
    assert run(Step("allocate", [sys.executable, "-c", code], 1, None)).memory > 150_000_000


def test_both_downloads_bring_the_same_files(miniature: Path, tmp_path: Path) -> None:
    pack(miniature, tmp_path / "archives", 5)
    places = tmp_path / "curl", tmp_path / "ours"
    with download.serving(tmp_path / "archives") as address:
        for step in download.at(address, download.make_steps(*places, 1, 5)):
            subprocess.run(step.command, check=True, capture_output=True)
    shutil.rmtree(places[1] / ".download")
    assert tree(places[0] / "small_images") == tree(places[1] / "small_images") == tree(miniature / "small_images")
    assert sorted(os.listdir(places[0])) == sorted(os.listdir(places[1]))


def test_an_archive_that_curl_cannot_bring_fails_the_step(miniature: Path, tmp_path: Path) -> None:
    pack(miniature, tmp_path / "archives", 2)
    (tmp_path / "archives" / "images" / "small" / "small_images-01.tar.gz").unlink()
    with download.serving(tmp_path / "archives") as address:
        (curl, _) = download.at(address, download.make_steps(tmp_path / "curl", tmp_path / "ours", 1, 2))
        with pytest.raises(FlairError, match=r"curl \| tar, 4 at a time failed"):
            run(curl)


def test_without_curl_its_step_is_skipped_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None if name == "curl" else f"/usr/bin/{name}")
    steps = download.make_steps(tmp_path / "curl", tmp_path / "ours", 1, 2)
    assert [step.name for step in download.without_missing_programs(steps)] == ["download: ours, 4 workers"]
    assert capsys.readouterr().out == "Skipped: download: curl | tar, 4 at a time: curl not on this machine\n"


def test_help_is_quick_and_names_every_flag() -> None:
    result = commands.run_program("from benchmark.speed_main import main; main(['data', '--help'])")
    assert "--num_images" in result.stdout


def test_the_command_names_its_subjects() -> None:
    for flags, code, text in (
        (["--help"], 0, "data "),
        ([], 2, "data "),
        (["nothing"], 2, "unknown subject 'nothing'"),
    ):
        result = commands.run("benchmark.speed_main", *flags, code=code)
        assert text in result.stdout + result.stderr


def test_a_process_that_has_gone_is_a_tree_of_one() -> None:
    """It ended between being listed and being looked at, and the measurement with it."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert process_tree(gone.pid) == [gone.pid]
