"""The sizing of clusters against its formula, by hand where it can be."""

from __future__ import annotations

import json

import pytest

from benchmark import scale_main
from benchmark.speed import sizing
from flair.errors import FlairError
from tests.support.commands import ROOT, run

PARTS = sizing.Parts(
    photo_seconds=0.1,
    client_overhead=1.0,
    weights_bytes=40_000_000,
    aggregate_bytes=50_000_000,
    merge_seconds=0.01,
    fixed_seconds=0.5,
    worker_bytes=1_000_000_000,
)


def test_network_and_merging_follow_the_formula():
    found = sizing.size(PARTS, 200, 10, 4)
    assert found.workers == 40
    assert found.network_bytes == 10 * 40e6 + 40 * 50e6
    assert found.network_seconds == pytest.approx(2.4e9 / 1.25e9)
    assert found.merge_seconds == pytest.approx(0.5 + 38 * 0.01)
    total = found.training_seconds + found.network_seconds + found.merge_seconds
    assert found.round_seconds == pytest.approx(total)
    assert found.machine_bytes == 4e9


def test_one_worker_trains_everything():
    """5,000 users of FLAIR, with mean 8.35 photos before the cap: all of them on one core, twice."""
    found = sizing.size(PARTS, 5000, 1, 1)
    assert found.imbalance == 0
    photos = (found.training_seconds / PARTS.photo_seconds - 5000) / 2 / 5000
    assert 6.5 < photos < 8.35
    assert found.speedup == pytest.approx(1, abs=0.01)


def test_a_round_is_never_shorter_than_its_largest_client():
    many = sizing.size(PARTS, 200, 100, 2)
    more = sizing.size(PARTS, 200, 100, 4)
    assert many.training_seconds == more.training_seconds
    assert sizing.size(PARTS, 200, 100, 2, max_elements=64).training_seconds <= (2 * 64 + 1) * 0.1 + 1e-9


def test_the_table_shows_every_size():
    sizes = [sizing.size(PARTS, clients, machines, 2) for clients in (200, 5000) for machines in (10, 100)]
    lines = sizing.table(sizes).splitlines()
    assert len(lines) == 5
    assert "5,000" in lines[3] and "100" in lines[4]


def _command(*flags):
    return run("benchmark.scale_main", *flags, code=None)


def test_the_page_shows_what_the_command_prints():
    printed = _command().stdout.splitlines()[1:]
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert "\n".join(printed) in page


def test_the_command_computes_with_measured_parts(tmp_path):
    measured = tmp_path / "ray.json"
    measured.write_text(json.dumps({"parts": PARTS._asdict()}))
    flags = ["--clients=200", "--machines=10", "--workers_per_machine=4"]
    done = _command(f"--parts={measured}", *flags)
    assert done.returncode == 0
    assert done.stdout.splitlines()[1:] == sizing.table([sizing.size(PARTS, 200, 10, 4)]).splitlines()
    measured.write_text("{}")
    refused = _command(f"--parts={measured}", *flags)
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1 and str(measured) in refused.stderr


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"photo_seconds": "0.1"}, "parts.photo_seconds: expected int or float, found str"),
        ({"photo_seconds": float("nan")}, "parts.photo_seconds is not a size or a time"),
        ({"worker_bytes": -1}, "parts.worker_bytes is not a size or a time"),
        ({"weights_bytes": 10**30}, "is larger than 64 bits"),
        ({"merge_seconds": True}, "parts.merge_seconds: expected int or float, found bool"),
    ],
)
def test_parts_that_are_no_measurements_are_refused(tmp_path, change, reason):
    measured = tmp_path / "ray.json"
    measured.write_text(json.dumps({"parts": PARTS._asdict() | change}))
    with pytest.raises(FlairError) as refused:
        scale_main.main([f"--parts={measured}", "--clients=10", "--machines=1"])
    assert reason in str(refused.value) and str(measured) in str(refused.value)
