"""The speed of the data path: the arithmetic of its table, and a run of every step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.speed_data import Measured, Step, choose, main, make_steps, measure, process_tree, summarize
from flair.errors import FlairError


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
    measured = measure(Step("allocate", [sys.executable, "-c", code], 1, None))
    assert measured.memory > 150_000_000
    assert measured.seconds > 1
    assert os.getpid() in process_tree(os.getpid())


def test_a_step_that_fails_is_told() -> None:
    with pytest.raises(FlairError, match=r"broken failed: .*no luck"):
        measure(Step("broken", [sys.executable, "-c", "import sys; sys.exit('no luck')"], 1, None))


def test_every_step_runs_and_cleans_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--work_dir={tmp_path}", "--num_images=60", "--repeats=1", "--num_workers=1"]
    assert main([*flags, f"--json={tmp_path / 'speed.json'}"]) == 0
    output = capsys.readouterr().out
    report = json.loads((tmp_path / "speed.json").read_text())
    names = [row["step"] for row in report["steps"]]
    assert names == [s.name for s in make_steps(tmp_path, tmp_path / "synthetic-60-0", tmp_path, 1)]
    assert all(f"\n{name} " in output for name in names)
    assert sorted(os.listdir(tmp_path)) == ["speed.json", "synthetic-60-0", "synthetic-60-0-archives"]


def test_help_is_quick_and_names_every_flag() -> None:
    code = "from benchmark.speed_data import main; main(['--help'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0
    assert "--num_images" in result.stdout


def test_the_command_names_its_subjects() -> None:
    for flags, code, text in (
        (["--help"], 0, "data "),
        ([], 2, "data "),
        (["nothing"], 2, "unknown subject 'nothing'"),
    ):
        result = subprocess.run(
            [sys.executable, "-m", "benchmark.speed_main", *flags], capture_output=True, text=True, timeout=60
        )
        assert result.returncode == code
        assert text in result.stdout + result.stderr
