"""The arrows between rooms: one-way, written down, and through a room's front only."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.support.commands import ROOT
from tests.support.rooms import Arrow, House

# Room -> the rooms that it may import, and does. Whoever adds an arrow here changes the design: see
# docs/architecture.md. `flair` itself (FlairError, the version) is open to all, and a door may open any room.
ARROWS = {
    "flair.parallel": "",
    "flair.terminal": "flair.parallel",
    "flair.files": "",
    "flair.dataset": "flair.files",
    "flair.statistics": "flair.dataset flair.files flair.terminal",
    "flair.curation": "flair.dataset flair.files",
    "flair.download": "flair.dataset flair.files flair.parallel flair.terminal",
    "flair.miniature": "flair.dataset flair.files flair.parallel flair.terminal",
    "flair.records": "flair.curation flair.dataset flair.files flair.terminal",
    "flair.records.tfrecord": "flair.dataset flair.files flair.parallel flair.records flair.terminal",
    "flair.records.hdf5": "flair.dataset flair.files flair.parallel flair.records flair.terminal",
    "flair.checks": (
        "flair.curation flair.dataset flair.files flair.parallel flair.records flair.records.hdf5 "
        "flair.records.tfrecord flair.terminal"
    ),
    "flair.duplicates": "flair.curation flair.dataset flair.files flair.parallel flair.terminal",
    "flair.publishing": (
        "flair.curation flair.dataset flair.files flair.parallel flair.records flair.records.hdf5 "
        "flair.records.tfrecord flair.terminal"
    ),
    "flair.reviewing": "flair.curation flair.dataset flair.files flair.terminal",
    "flair.testsets": "flair.curation flair.dataset flair.files flair.records.tfrecord flair.terminal",
    "benchmark.metrics": "",
    "benchmark.run": "flair.files flair.parallel flair.records.tfrecord flair.terminal",
    "benchmark.privacy": "benchmark.run flair.files flair.statistics flair.terminal",
    "benchmark.model": "benchmark.run flair.dataset flair.files flair.records flair.records.hdf5",
    "benchmark.data": (
        "benchmark.run flair.curation flair.dataset flair.files flair.records.hdf5 flair.records.tfrecord "
        "flair.terminal"
    ),
    "benchmark.sweep": "benchmark.privacy benchmark.run flair.files flair.parallel flair.terminal",
    "benchmark.rounds": "benchmark.data benchmark.metrics benchmark.model benchmark.privacy benchmark.run",
    "benchmark.evaluation": (
        "benchmark.data benchmark.features benchmark.metrics benchmark.model benchmark.run flair.curation "
        "flair.dataset flair.files flair.parallel flair.records.tfrecord flair.terminal"
    ),
    "benchmark.personalization": (
        "benchmark.data benchmark.features benchmark.metrics benchmark.model benchmark.run flair.curation "
        "flair.dataset flair.files flair.records.tfrecord flair.statistics flair.terminal"
    ),
    "benchmark.features": "benchmark.data benchmark.model flair.dataset flair.files flair.terminal",
    "benchmark.training": (
        "benchmark.data benchmark.evaluation benchmark.features benchmark.metrics benchmark.model benchmark.run "
        "flair.dataset flair.files flair.terminal"
    ),
    "benchmark.analytics": "benchmark.privacy flair.terminal",
    "benchmark.report": (
        "benchmark.evaluation benchmark.metrics benchmark.privacy benchmark.run flair.files flair.statistics "
        "flair.terminal"
    ),
    "benchmark.central": (
        "benchmark.data benchmark.evaluation benchmark.metrics benchmark.model benchmark.run "
        "benchmark.training flair.terminal"
    ),
    "benchmark.federated": (
        "benchmark.data benchmark.evaluation benchmark.metrics benchmark.model benchmark.privacy "
        "benchmark.rounds benchmark.run benchmark.training flair.files flair.statistics flair.terminal"
    ),
    "benchmark.cluster": (
        "benchmark.data benchmark.evaluation benchmark.features benchmark.federated benchmark.model benchmark.privacy "
        "benchmark.rounds benchmark.run flair.terminal"
    ),
    "benchmark.speed": (
        "benchmark.central benchmark.cluster benchmark.data benchmark.evaluation benchmark.features "
        "benchmark.federated benchmark.metrics benchmark.model benchmark.privacy benchmark.rounds benchmark.run "
        "flair.dataset flair.download flair.files flair.miniature flair.parallel flair.records.tfrecord flair.terminal"
    ),
}


@pytest.fixture(scope="module")
def house() -> House:
    return House(ROOT)


def test_every_arrow_between_rooms_is_written_down(house: House) -> None:
    found = {room: to for room, to in house.arrows_between_rooms().items() if room in house.rooms}
    assert ARROWS.keys() == house.rooms
    assert {room: found.get(room, set()) for room in ARROWS} == {room: set(to.split()) for room, to in ARROWS.items()}


def test_no_file_and_no_room_leads_back_to_itself(house: House) -> None:
    assert house.circles() == []


def test_no_import_goes_past_a_rooms_front(house: House) -> None:
    assert house.bypasses() == set()
    assert house.unused_fronts() == set()


def test_nobody_imports_a_door(house: House) -> None:
    assert [arrow for arrow in house.arrows if house.room(arrow.imported).endswith(".doors")] == []


def test_the_dataset_does_not_know_the_benchmark(house: House) -> None:
    assert [a for a in house.arrows if a.importer.startswith("flair") and a.imported.startswith("benchmark")] == []


def test_the_root_of_a_package_holds_doors_only(house: House) -> None:
    doors = {module for module in house.modules if house.room(module).endswith(".doors")}
    for module in doors - PUBLISHED:
        text = (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        assert '\nif __name__ == "__main__":\n' in text, module


PUBLISHED = {
    "benchmark.flair_data",
    "benchmark.flair_metrics",
    "benchmark.flair_model",
    "benchmark.flair_tfds",
    "flair.hdf5",
}


def test_a_room_says_what_it_is_for_what_enters_and_what_leaves(house: House) -> None:
    for room in house.rooms:
        text = " ".join((ROOT / room.replace(".", "/") / "__init__.py").read_text(encoding="utf-8").split())
        assert "What enters is" in text and "What leaves is" in text, room


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A copy of the packages' Python files, to plant a fault in."""
    for package in ("flair", "benchmark"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "page"))
    return tmp_path


def _append(file: Path, line: str) -> None:
    file.write_text(f"{file.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")


def test_a_planted_arrow_is_seen(planted: Path) -> None:
    _append(planted / "flair/dataset/metadata.py", "def f():\n    from flair.terminal import progress")
    assert House(planted).arrows_between_rooms()["flair.dataset"] == {"flair.files", "flair.terminal"}


def test_a_planted_circle_is_seen(planted: Path) -> None:
    _append(
        planted / "benchmark/run/seeds.py", "if TYPE_CHECKING:\n    from benchmark.run.checkpoint import Checkpoints"
    )
    _append(planted / "benchmark/run/checkpoint.py", "import benchmark.run.seeds")
    assert ["benchmark.run.checkpoint", "benchmark.run.seeds"] in House(planted).circles()


def test_a_planted_circle_of_rooms_is_seen(planted: Path) -> None:
    _append(planted / "flair/parallel/threads.py", "from flair.terminal import progress")
    assert ["flair.parallel", "flair.terminal"] in House(planted).circles()


def test_a_planted_relative_import_is_refused(planted: Path) -> None:
    _append(planted / "flair/dataset/metadata.py", "from ..download import client")
    with pytest.raises(ValueError, match="relative import"):
        House(planted)


def test_a_planted_bypass_is_seen(planted: Path) -> None:
    _append(planted / "benchmark/run/seeds.py", "from flair.download import staging")
    assert House(planted).bypasses() == {Arrow("benchmark.run.seeds", "flair.download.staging")}


def test_no_flags_are_global(house: House) -> None:
    for module in house.modules - {"benchmark.run.flags"}:
        path = ROOT / module.replace(".", "/")
        text = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
        assert not re.search(r"\.DEFINE_|absl\w*\.FLAGS|from absl import flags\n", text), module


def test_below_a_door_only_modules_about_flags_take_flags(house: House) -> None:
    users = {arrow.importer for arrow in house.arrows if arrow.imported == "benchmark.run.flags"}
    below = {module for module in users if not house.room(module).endswith(".doors")}
    assert below == {
        "benchmark.run.command",
        *(f"benchmark.{room}.flags" for room in ("central", "federated", "personalization", "training")),
        # What flags mean together, which of them are refused, and a plan that shows them.
        *(f"benchmark.federated.{name}" for name in ("settings", "checks", "privacy_checks")),
        *("benchmark.training.inputs", "benchmark.training.loss", "benchmark.training.start"),
        *("benchmark.central.dry_run", "benchmark.federated.dry_run"),
        "benchmark.sweep.grid",
    }, "a module below a door takes plain data, not flags"
