"""Re-sampled test sets by their command line: rules, refusals, revisions, failures."""

from __future__ import annotations

import json
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from flair.curation.reviews import PairChange, PhotoChange, ReviewFile, pair
from tests.support.commands import run
from tests.support.metadata_only import make_metadata, write

RULES = ("threshold", "matched", "top")


class Workshop:
    """A dataset, and a folder for sets made from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dataset = folder / "dataset"
        self.records = make_metadata(self.dataset)
        self.by_id = {str(record["image_id"]): record for record in self.records}
        scores = {name: {label: (int(name) % 97) / 97 for label in item["labels"]} for name, item in self.by_id.items()}
        (folder / "scores.json").write_text(json.dumps(scores))

    def run(self, rule: str, *flags: str, name: str = "flair-b") -> int:
        """Exit code of the command."""
        arguments = [rule, f"--dataset_dir={self.dataset}", f"--name={name}", f"--testsets_dir={self.folder / 'sets'}"]
        if rule == "top":
            arguments.append(f"--scores={self.folder / 'scores.json'}")
        ended = run("flair.sample_testset", *arguments, *flags, code=None)
        print(ended.stdout, end="")
        print(ended.stderr, end="", file=sys.stderr)
        return ended.returncode

    def manifest(self, name: str = "flair-b-0") -> dict[str, Any]:
        content = json.loads(self.path(name).read_text())
        assert isinstance(content, dict)
        return content

    def path(self, name: str = "flair-b-0") -> Path:
        return self.folder / "sets" / f"{name}.json"

    def photos(self, partition: str = "test") -> list[str]:
        return sorted(name for name, record in self.by_id.items() if record["partition"] == partition)

    def mark(self, **marks: str) -> str:
        """Marks photos (`_` before an id, which is no name in Python); the flag for it."""
        changes = [PhotoChange(name.removeprefix("_"), mark) for name, mark in marks.items()]
        ReviewFile(self.folder / "reviews.json").update(lambda _: changes, "me", "2026-11-20T12:00:00+00:00")
        return f"--reviews={self.folder / 'reviews.json'}"

    def exclude(self, duplicates: dict[str, list[str]]) -> str:
        (self.folder / "near_duplicates.json").write_text(json.dumps(duplicates))
        return f"--exclude={self.folder / 'near_duplicates.json'}"


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


@pytest.mark.parametrize("rule", RULES)
def test_same_seed_same_photos(workshop: Workshop, rule: str) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert workshop.run(rule, f"--seed={seed}", name=name) == 0
    first, again, other = (workshop.manifest(f"{name}-0") for name in "abc")
    assert first["image_ids"] == again["image_ids"] == sorted(set(first["image_ids"]))
    assert first["is_valid"] and first["rule"] == rule and first["seed"] == 1 and first["starting_from"] is None
    assert set(first["image_ids"]) <= set(workshop.photos())
    assert len(first["image_ids"]) == -(-len(workshop.photos()) // 2)
    if rule != "top":
        assert first["image_ids"] != other["image_ids"]


@pytest.mark.parametrize("rule", RULES)
def test_an_existing_set_is_never_overwritten(
    workshop: Workshop, rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert workshop.run(rule) == 0
    before = workshop.path().read_bytes()
    capsys.readouterr()
    assert workshop.run(rule, "--seed=5") == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "never overwritten" in message and "--starting_from=flair-b-0" in message
    assert workshop.path().read_bytes() == before
    assert [path.name for path in workshop.path().parent.iterdir()] == ["flair-b-0.json"]


@pytest.mark.parametrize("flags", [["threshold"], ["matched"], ["matched", "--match=user_size"], ["top"]])
@pytest.mark.parametrize("which", [0, 17, -1])
def test_one_photo_blacklisted_changes_exactly_one_photo(workshop: Workshop, flags: list[str], which: int) -> None:
    assert workshop.run(*flags) == 0
    before = workshop.manifest()["image_ids"]
    gone = before[which]
    assert workshop.run(*flags, "--starting_from=flair-b-0", workshop.mark(**{f"_{gone}": "blacklist"})) == 0
    after = workshop.manifest("flair-b-1")
    assert set(before) - set(after["image_ids"]) == {gone}
    assert len(after["image_ids"]) == len(before)
    assert after["refusals"] == {gone: "blacklisted"}
    assert (after["revision"], after["starting_from"]) == (1, "flair-b-0")
    assert workshop.manifest()["image_ids"] == before


def test_without_any_change_a_revision_keeps_its_photos(workshop: Workshop) -> None:
    assert workshop.run("threshold") == 0
    assert workshop.run("threshold", f"--starting_from={workshop.path()}", "--seed=99") == 0
    assert workshop.manifest("flair-b-1")["image_ids"] == workshop.manifest()["image_ids"]


def expected_shares(counts: list[int], total: int) -> list[int]:
    """Largest remainder, ties to the higher index, in fractions."""
    quotas = [Fraction(count * total, sum(counts)) if sum(counts) else Fraction(0) for count in counts]
    shares = [int(quota) for quota in quotas]
    for _ in range(total - sum(shares) if sum(counts) else 0):
        lacking = [quota - share for quota, share in zip(quotas, shares, strict=True)]
        shares[max(range(len(counts)), key=lambda index: (lacking[index], index))] += 1
    return shares


@pytest.mark.parametrize("reference", ["test", "train"])
@pytest.mark.parametrize("num_images", [40, 77])
def test_matched_histograms_equal_the_reference_after_rounding(
    workshop: Workshop, reference: str, num_images: int
) -> None:
    assert workshop.run("matched", f"--reference={reference}", f"--num_images={num_images}", "--borrow") == 0
    chosen = workshop.manifest()["image_ids"]
    counts = Counter(label for record in workshop.records for label in record["labels"])

    def table(image_ids: list[str]) -> dict[str, list[int]]:
        bins: dict[str, list[int]] = {label: [0] * 5 for label in counts}
        for name in image_ids:
            labels = list(workshop.by_id[name]["labels"])
            share = Fraction(1, len(labels))
            rarest = min(labels, key=lambda label: (counts[label], label))
            bins[rarest][sum(share >= Fraction(edge, 10) for edge in (2, 4, 6, 8))] += 1
        return bins

    of_reference = table(workshop.photos(reference))
    classes = sorted((label for label in counts if sum(of_reference[label])), key=lambda x: (counts[x], x))
    totals = expected_shares([sum(of_reference[label]) for label in classes], num_images)
    wanted = {label: expected_shares(of_reference[label], n) for label, n in zip(classes, totals, strict=True)}
    found = table(chosen)
    assert {label: found[label] for label in classes} == wanted
    written = workshop.manifest()["histogram"]
    assert {label: row["chosen"] for label, row in written.items()} == wanted
    assert {label: row["reference"] for label, row in written.items()} == {x: of_reference[x] for x in classes}
    eligible = table(workshop.photos())
    assert {label: row["candidates"] for label, row in written.items()} == {x: eligible[x] for x in classes}


@pytest.mark.parametrize("seed", range(3))
def test_matched_labels_that_photos_do_not_count_for_follow_the_reference_too(workshop: Workshop, seed: int) -> None:
    assert workshop.run("matched", "--num_images=80", f"--seed={seed}") == 0
    chosen, reference = workshop.manifest()["image_ids"], workshop.photos()
    of_set, of_reference = (
        Counter(label for name in names for label in workshop.by_id[name]["labels"]) for names in (chosen, reference)
    )
    for label, count in of_reference.items():
        assert abs(of_set[label] - count * len(chosen) / len(reference)) <= 2  # a uniform draw is off by 4 or so


def test_matched_user_sizes_equal_the_reference_after_rounding(workshop: Workshop) -> None:
    assert workshop.run("matched", "--match=user_size", "--reference=val", "--num_images=30") == 0
    sizes = Counter(record["user_id"] for record in workshop.records)
    size = {name: sizes[record["user_id"]] for name, record in workshop.by_id.items()}
    of_reference = [size[name] for name in workshop.photos("val")]

    def table(image_ids: list[str]) -> list[int]:
        bins = [0] * 5
        for name in image_ids:
            below = sum(other < size[name] for other in of_reference)
            bins[sum(10 * below >= edge * len(of_reference) for edge in (2, 4, 6, 8))] += 1
        return bins

    assert table(workshop.manifest()["image_ids"]) == expected_shares(table(workshop.photos("val")), 30)


def test_each_label_of_a_threshold_set_has_enough_positives(workshop: Workshop) -> None:
    assert workshop.run("threshold", "--min_positives=12", "--num_images=90") == 0
    manifest = workshop.manifest()
    positives = Counter(label for name in manifest["image_ids"] for label in workshop.by_id[name]["labels"])
    kept = manifest["parameters"]["labels"]
    assert kept and "games" not in kept
    assert all(positives[label] >= 12 for label in kept)
    assert all(set(workshop.by_id[name]["labels"]) & set(kept) for name in manifest["image_ids"])
    below = {name for name, reason in manifest["refusals"].items() if reason == "below the threshold"}
    assert below == {n for n in workshop.photos() if not set(workshop.by_id[n]["labels"]) & set(kept)}


def test_top_takes_the_highest_scores_of_each_label(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    assert workshop.run("top", "--images_per_label=3") == 0
    assert "favours" in capsys.readouterr().out
    counts = Counter(label for record in workshop.records for label in record["labels"])
    by_label: dict[str, list[str]] = {}
    for name in workshop.photos():
        labels = list(workshop.by_id[name]["labels"])
        by_label.setdefault(min(labels, key=lambda label: (counts[label], label)), []).append(name)
    for names in by_label.values():
        chosen = sorted(int(name) % 97 for name in names if name in workshop.manifest()["image_ids"])
        assert chosen == sorted(int(name) % 97 for name in names)[-3:]


def test_every_refusal_has_the_first_reason_that_applies(workshop: Workshop) -> None:
    photos = [name for name in workshop.photos() if len(list(workshop.by_id[name]["labels"])) > 1]
    few = next(name for name in workshop.photos() if len(list(workshop.by_id[name]["labels"])) == 1)
    train = workshop.photos("train")[0]
    scores = {name: dict.fromkeys(workshop.by_id[name]["labels"], 0.9) for name in workshop.photos()}
    for name in (photos[0], photos[2], few):
        scores[name] = dict.fromkeys(scores[name], 0.1)
    (workshop.folder / "scores.json").write_text(json.dumps(scores))
    flags = [
        workshop.mark(**{f"_{photos[0]}": "blacklist", f"_{photos[1]}": "problematic", f"_{photos[5]}": "ok"}),
        workshop.exclude({photos[0]: [train], few: [train], photos[2]: [train], photos[3]: [train]}),
        "--min_annotations=2",
        "--min_score=0.5",
        "--require_reviewed",
    ]
    assert workshop.run("threshold", f"--scores={workshop.folder / 'scores.json'}", "--min_positives=1", *flags) == 1
    refusals = workshop.manifest()["refusals"]
    assert [refusals[name] for name in (photos[0], photos[1])] == ["blacklisted", "blacklisted"]
    assert refusals[few] == "too few annotations"
    assert refusals[photos[2]] == "below the threshold"
    assert refusals[photos[3]] == "near duplicate"
    assert refusals[photos[4]] == "unreviewed"
    assert photos[5] not in refusals
    assert set(refusals) == set(workshop.photos()) - {photos[5]}


def test_near_duplicates_leave_and_reviewers_have_the_last_word(workshop: Workshop) -> None:
    a, b, c, d, e, f = workshop.photos()[:6]
    train = workshop.photos("train")[0]
    flags = [workshop.exclude({a: [b], c: [train], d: [train]}), "--partition=test"]
    assert workshop.run("threshold", *flags) == 0
    assert workshop.manifest()["refusals"] == dict.fromkeys((b, c, d), "near duplicate")
    marks = [(pair(d, train), "not"), (pair(c, d), "not"), (pair(e, f), "duplicate")]
    changes = [PairChange(*mark) for mark in marks]
    ReviewFile(workshop.folder / "reviews.json").update(lambda _: changes, "me", "now")
    flags.append(workshop.mark(**{f"_{a}": "problematic"}))
    assert workshop.run("threshold", *flags, "--starting_from=flair-b-0") == 0
    assert workshop.manifest("flair-b-1")["refusals"] == {a: "blacklisted", c: "near duplicate", f: "near duplicate"}


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["threshold", "--num_images=100000"], "100,000 photos wanted"),
        (["threshold", "--min_positives=500"], "no label would have 500 positives"),
        (["matched", "--num_images=100000"], "photos wanted"),
        (["top", "--images_per_label=1000"], "1,000 photos wanted"),
    ],
)
def test_a_rule_that_cannot_be_fulfilled_is_written_as_invalid(
    workshop: Workshop, flags: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert workshop.run(*flags) == 1
    manifest = workshop.manifest()
    assert manifest["is_valid"] is False and problem in manifest["problem"]
    assert "INVALID" in capsys.readouterr().out
    assert workshop.run(flags[0], "--starting_from=flair-b-0") == 0
    assert workshop.manifest("flair-b-1")["is_valid"]


def test_an_empty_bin_borrows_from_the_next_higher_only_when_allowed(workshop: Workshop) -> None:
    for record in workshop.records:
        if record["partition"] == "val" and len(list(record["labels"])) == 2:
            record["partition"] = "train"  # the bin of half shares is empty in val
    for record in workshop.records:
        record["user_id"] = f"{record['user_id']}-{record['partition']}"  # no user is in two partitions
    write(workshop.dataset, workshop.records)
    assert workshop.run("matched", "--partition=val", "--reference=test", "--num_images=20") == 1
    assert "bin 2" in workshop.manifest()["problem"]
    assert workshop.run("matched", "--partition=val", "--reference=test", "--num_images=20", "--borrow", name="c") == 0
    assert len(workshop.manifest("c-0")["image_ids"]) == 20


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["top2"], 2, "invalid choice"),
        (["seen_users"], 2, "--heldout_fraction"),
        (["threshold", "--images_per_label=3"], 2, "--images_per_label goes with"),
        (["threshold", "--num_images=0"], 2, "at least 1"),
        (["threshold", "--require_reviewed"], 2, "needs --reviews"),
        (["top", "--min_score=nan"], 2, "expected a number"),
        (["threshold", "--starting_from=nothing-0"], 1, "no such test set"),
        (["threshold", "--reviews=/dev/null"], 1, "not JSON"),
        (["threshold", "--exclude=nothing.json"], 1, "no such file"),
        (["matched", "--match=score", "--scores=nothing.json"], 1, "no such file"),
    ],
)
def test_mistakes_end_in_one_line(
    workshop: Workshop, flags: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert workshop.run(*flags) == code
    assert message in capsys.readouterr().err
    assert not workshop.path().exists()


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "", "x" * 200])
def test_a_name_cannot_be_a_path(workshop: Workshop, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert workshop.run("threshold", name=name) == 1
    assert "test set name" in capsys.readouterr().err
    assert not (workshop.folder / "sets").exists()
