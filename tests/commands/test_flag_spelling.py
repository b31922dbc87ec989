"""One name for one thing, on every command line: bounds that --help tells, and spellings of earlier versions."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmark import central_main, federated_main, personalize_main
from benchmark.speed_main import SUBJECTS
from tests.support.commands import only_line, run

# Flags with which a command ends soon after it has looked at its flags; FILE is a file, NEW a name that is free.
DOORS = {
    "download_dataset.py": ["--dataset_dir=FILE"],
    "prepare_dataset.py": ["--dataset_dir=/none --output_file=NEW"],
    "prepare_tfrecords.py": ["--dataset_dir=/none --tfrecords_dir=NEW"],
    "flair.duplicate_calibration": ["--dataset_dir=/none"],
    "flair.export": ["--dataset_dir=/none --output_dir=NEW"],
    "flair.mirror": ["--archives_dir=/none"],
    "flair.near_duplicates": ["--dataset_dir=/none --output_dir=NEW"],
    "flair.review": ["--dataset_dir=/none"],
    "flair.sample_testset": [
        "threshold --dataset_dir=/none --name=a",
        "top --dataset_dir=/none --name=a --scores=FILE",
        "matched --dataset_dir=/none --name=a",
    ],
    "flair.stats": ["--dataset_dir=/none --output_dir=NEW"],
    "flair.synthetic": ["--dataset_dir=FILE --num_users=20"],
    "flair.verify": ["--dataset_dir=/none"],
    "benchmark.agreement_main": ["--tfrecords_dir=/none --models=/none --output_file=NEW"],
    "benchmark.analytics_main": ["--tfrecords_dir=/none --output_file=NEW --epsilon=1"],
    "benchmark.audit_main": ["--run_dir=/none"],
    "benchmark.central_main": ["--tfrecords_dir=/none"],
    "benchmark.convert_torchvision": ["--weights=/none --output_file=NEW"],
    "benchmark.demo_main": ["--output_dir=FILE"],
    "benchmark.discriminator_main": ["--dataset_dir=/none --features=/none --sets=val,val"],
    "benchmark.evaluate_main": ["--tfrecords_dir=/none --models=/none --output_dir=NEW"],
    "benchmark.export_main": ["--model=/none --output_file=NEW.keras"],
    "benchmark.features_main": ["--dataset_dir=/none --model=/none --output_file=NEW.npy"],
    "benchmark.federated_main": [
        f"--tfrecords_dir=/none {more}" for more in ("", "--epsilon=2", "--noise_multiplier=1")
    ],
    "benchmark.personalize_main": [
        "--tfrecords_dir=/none --model=FILE",
        "--tfrecords_dir=/none --model=FILE --episodes=labels",
    ],
    "benchmark.privacy_main": [
        f"--also_spent=/none {more}"
        for more in ("--epsilon=2 --mechanism=banded", "--epsilon=2", "--noise_multiplier=1")
    ],
    "benchmark.report_main": ["/none --output_dir=NEW"],
    "benchmark.scale_main": ["--parts=/none"],
    "benchmark.sweep_main": ["--output_dir=NEW"],
    "benchmark.tfds_main": ["--dataset_dir=/none --tfds_data_dir=NEW"],
    **{f"benchmark.speed_main {subject}": ["stray"] for subject in SUBJECTS},
}
PROBES = (-1, 0, 1e-7, 0.3, 2, 10**5)
BOUND = r"(at least|above|at most|below) ([-\d.,e+]*\d)"

# door -> old spelling -> new one
RENAMED = {
    "flair.duplicate_calibration": {"output": "output_file"},
    "flair.mirror": {"folder": "archives_dir"},
    "flair.review": {"export": "output_file"},
    "flair.sample_testset": {"output_dir": "testsets_dir"},
    "flair.verify": {"report": "output_file"},
    "benchmark.convert_torchvision": {"output": "output_file"},
    "benchmark.demo_main": {"demo_dir": "output_dir"},
    "benchmark.features_main": {"output": "output_file", "batch_size": "eval_batch_size"},
    "benchmark.privacy_main": {"figure": "output_file"},
    "benchmark.sweep_main": {"sweep_dir": "output_dir"},
    **{f"benchmark.speed_main {subject}": {"json": "output_file"} for subject in SUBJECTS},
}


def given(base: str, folder: Path) -> list[str]:
    file = folder / "file"
    file.write_text("{}")
    return [word.replace("FILE", str(file)).replace("NEW", str(folder / "new")) for word in base.split()]


def paragraphs(door: str) -> dict[str, str]:
    """Flag -> what --help says of it, on one line."""
    name, *subject = door.split()
    _, *parts = re.split(r"^  (?=--)", run(name, *subject, "--help").stdout, flags=re.M)
    return {re.match(r"--(\[no\])?(\w+)", part)[2]: " ".join(part.split()) for part in parts}


def refusal(door: str, flags: list[str], name: str, folder: Path) -> str | None:
    """What a command says is out of bounds about a flag by itself; None where it has another reason to end."""
    program, *subject = door.split()
    said = run(program, *subject, *flags, code=None, cwd=folder).stderr.replace("; --help lists the flags", "")
    found = re.search(rf"--{name}(=\S+)?: (.*)", said)
    if found is None or not re.search(r"expected|invalid|at (least|most) [\d]|above|below", found[2]):
        return None
    depends = re.search(
        r"--\w+|\d users|banded noise is", found[2].partition("; leave")[0]
    )  # on another flag, or on the data
    return None if depends else found[2]


def is_told(value: float, told: str, paragraph: str) -> bool:
    holds = {"at least": value.__ge__, "above": value.__gt__, "at most": value.__le__, "below": value.__lt__}
    gap = re.search(r"from ([\d.e-]+), or 0", paragraph)
    return all(holds[word](float(bound.replace(",", ""))) for word, bound in re.findall(BOUND, told)) and not (
        gap and 0 < value < float(gap[1])
    )


@pytest.mark.parametrize("door", DOORS)
def test_help_tells_every_bound_that_is_enforced(door: str, tmp_path: Path) -> None:
    wrong, numbers = [], 0
    for name, paragraph in paragraphs(door).items():
        if any(f"--{name}=" in base for base in DOORS[door]) and not re.search(
            "(epsilon|noise_multiplier|num_users)$", name
        ):
            continue
        said = refusal(door, [*given(DOORS[door][0], tmp_path), f"--{name}=word"], name, tmp_path)
        if said is None or not re.search(r"number|invalid (int|float) value", said):
            continue
        numbers += 1
        is_whole = bool(re.search("whole|invalid int", said))
        told = re.search(rf"\(((?:{BOUND}(?: and )?)*)[;)]", paragraph)
        told = told[1] if told else ""
        edges = [float(bound.replace(",", "")) + step for _, bound in re.findall(BOUND, told) for step in (-1, 0, 1)]
        for value in sorted({*edges, *PROBES}):
            if is_whole and value != int(value):
                continue
            text = f"{value:.0f}" if is_whole else f"{value:.7f}"
            bases = ([*given(base, tmp_path), f"--{name}={text}"] for base in DOORS[door])
            line = next(filter(None, (refusal(door, flags, name, tmp_path) for flags in bases)), None)
            if bool(line) == is_told(float(value), told, paragraph):
                wrong.append(f"--{name}={text}: {line or 'taken'}, and --help says: {paragraph}")
    assert wrong == []
    assert numbers or door in ("benchmark.convert_torchvision", "benchmark.report_main")


@pytest.mark.parametrize("door", RENAMED)
def test_an_old_spelling_does_the_same_and_says_so(door: str, tmp_path: Path) -> None:
    program, *subject = door.split()
    for old, new in RENAMED[door].items():
        assert new in paragraphs(door) and old not in paragraphs(door)
        flags = [flag for flag in given(DOORS[door][0], tmp_path) if not flag.startswith(f"--{new}=")]
        value = next((flag.partition("=")[2] for flag in given(DOORS[door][0], tmp_path) if f"--{new}=" in flag), "7")
        ended = {}
        for name in (old, new):
            done = run(program, *subject, *flags, f"--{name}={value}", code=None, cwd=tmp_path)
            ended[name] = done.returncode, done.stderr
        note = f"--{old} is now --{new}; the old spelling works as well\n"
        assert ended[old] == (ended[new][0], note + ended[new][1])


def test_an_old_spelling_in_a_file_of_flags_and_behind_a_space(miniature: Path, tmp_path: Path) -> None:
    flags = tmp_path / "old.flags"
    flags.write_text("--figure\nnoise.png\n")
    done = run("benchmark.privacy_main", "--epsilon=2", f"--flagfile={flags}", code=1)
    note, line = done.stderr.splitlines()
    assert note.startswith("--figure is now --output_file;")
    assert line.startswith("benchmark.privacy_main: --output_file=noise.png has no effect without --compare")
    report = tmp_path / "report.json"
    done = run("flair.verify", "--dataset_dir", miniature, "--report", report)
    assert only_line(done).startswith("--report is now --output_file;")
    assert json.loads(report.read_text())


def test_no_flag_of_a_run_was_renamed() -> None:
    """A continued run is compared with its flags.txt by name; and the published flags stay what they are."""
    for door in (central_main, federated_main, personalize_main):
        assert [flag.name for flag in door.FLAGS if flag.was is not None] == []
