"""reviews.json: marks of many writers, damaged files, and what marks do to near duplicates."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flair.curation.exclusion import Exclusion
from flair.curation.reviews import NO_REVIEWS, Mark, PairChange, PhotoChange, ReviewFile, Reviews, pair, read_reviews
from flair.errors import FlairError
from flair.reviewing.groups import Group, anchor, decide, decisions, is_decided, read_neighbors

PAIRS = list(itertools.combinations("abcd", 2))
WRITER = """
import sys
from flair.curation.reviews import PhotoChange, ReviewFile
file, who = ReviewFile(sys.argv[1]), sys.argv[2]
for number in range(25):
    file.update(lambda _: [PhotoChange(f"{who}{number}", "ok"), PhotoChange("shared", "blacklist")], who, "now")
"""


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "reviews.json"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), who]) for who in "abc"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    reviews = read_reviews(path)
    assert reviews.photos_marked("ok") == {f"{who}{number}" for who in "abc" for number in range(25)}
    history = [mark.reviewer for mark in reviews.photos["shared"]]
    assert sorted(history) == sorted("abc" * 25)


def test_reviews_behind_a_link_are_written_where_it_points(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "reviews.json").symlink_to(tmp_path / "shared" / "reviews.json")
    ReviewFile(tmp_path / "reviews.json").update(lambda _: [PhotoChange("1", "ok")], "me", "now")
    ReviewFile(tmp_path / "shared" / "reviews.json").update(lambda _: [PhotoChange("2", "ok")], "me", "now")
    assert (tmp_path / "reviews.json").is_symlink()
    assert len(read_reviews(tmp_path / "reviews.json").photos) == 2


def test_the_last_mark_counts_and_the_others_are_kept(tmp_path: Path) -> None:
    file = ReviewFile(tmp_path / "reviews.json")
    for mark, who in (("blacklist", "Ann"), ("none", "Bo"), ("problematic", "Ann")):
        file.update(lambda _, mark=mark: [PhotoChange("1", mark)], who, f"at {who}")  # type: ignore[misc]
    reviews = ReviewFile(tmp_path / "reviews.json").read()
    assert reviews.photo_mark("1") == "problematic" and reviews.photo_mark("2") == "none"
    assert [(mark.mark, mark.reviewer) for mark in reviews.photos["1"]] == [
        ("blacklist", "Ann"),
        ("none", "Bo"),
        ("problematic", "Ann"),
    ]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"format": "flair-reviews", "format_version": 9, "photos": {}, "pairs": {}}',
        '{"format": "flair-reviews", "format_version": 1, "photos": [], "pairs": {}}',
        '{"format": "flair-reviews", "format_version": 1, "photos": {"../x": []}, "pairs": {}}',
        '{"format": "flair-reviews", "format_version": 1, "photos": {"1": [{"mark": "ok"}]}, "pairs": {}}',
        '{"format": "flair-reviews", "format_version": 1, "photos": {}, "pairs": {"2 1": []}}',
    ],
)
def test_a_damaged_file_is_told_and_never_written_over(tmp_path: Path, content: str) -> None:
    path = tmp_path / "reviews.json"
    path.write_text(content)
    file = ReviewFile(path)
    with pytest.raises(FlairError, match=r"reviews\.json"):
        file.read()
    with pytest.raises(FlairError, match=r"reviews\.json"):
        file.update(lambda _: [PhotoChange("1", "ok")], "me", "now")
    assert path.read_text() == content


@pytest.mark.parametrize("name", ["", "   ", "x" * 81, "a\nb", "a\x00", "\u202eevil"])
def test_a_reviewer_has_a_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(FlairError, match="reviewer"):
        ReviewFile(tmp_path / "r.json").update(lambda _: [PhotoChange("1", "ok")], name, "now")
    assert not (tmp_path / "r.json").exists()


def marked(tmp_path: Path, *changes: PairChange) -> Reviews:
    return ReviewFile(tmp_path / "reviews.json").update(lambda _: changes, "me", "now")


def test_pairs_join_and_come_apart(tmp_path: Path) -> None:
    found = Exclusion(listed=["9"], components=[{"1", "2", "3"}, {"4", "5"}, {"6", "7"}])
    assert NO_REVIEWS.applied_to(found).components == found.components
    apart = [PairChange(pair(one, "3"), "not") for one in "12"]
    reviews = marked(tmp_path, *apart, PairChange(("4", "5"), "not"), PairChange(("7", "8"), "duplicate"))
    result = reviews.applied_to(found)
    assert result.components == (frozenset("12"), frozenset("678"))
    assert result.listed == {"9"}


@pytest.mark.parametrize("distance", ["NaN", "Infinity", "1" + "0" * 400, "null", '"3"'])
def test_a_distance_that_is_no_finite_number_is_refused(tmp_path: Path, distance: str) -> None:
    path = tmp_path / "neighbors.json"
    path.write_text(f'{{"1": {{"l2": [["2", {distance}]]}}}}')
    with pytest.raises(FlairError, match=r"neighbors.json: .*; expected the neighbors.json that"):
        read_neighbors(path)


def test_a_photo_that_joins_a_reviewed_group_is_one_more_decision(tmp_path: Path) -> None:
    members = ("2", "5", "8")
    group = Group(members, True)
    reviews = marked(tmp_path, *decide(group, "5", "duplicate", NO_REVIEWS))
    reviews = marked(tmp_path, *decide(group, "8", "not", reviews))
    assert decisions(group, reviews) == {"5": "duplicate", "8": "not"}
    assert is_decided(group, reviews)
    # The list of near duplicates is made again, and a photo that sorts first has joined.
    larger = Group(("1", *members), True)
    assert anchor(larger, reviews) == "2"
    assert decisions(larger, reviews) == {"1": "none", "5": "duplicate", "8": "not"}
    reviews = marked(tmp_path, *decide(larger, "1", "duplicate", reviews))
    assert is_decided(larger, reviews)
    assert reviews.applied_to(Exclusion(components=[larger.members])).components == (frozenset("125"),)


@given(marks=st.dictionaries(st.sampled_from(PAIRS), st.sampled_from(("duplicate", "not", "none"))))
def test_marks_of_other_groups_decide_nothing(marks: dict[tuple[str, str], str]) -> None:
    group = Group(tuple("abcd"), True)
    alone = Reviews({}, {key: (Mark(mark, "me", "now"),) for key, mark in marks.items()})
    others = {pair(f"x{number}", f"y{number}"): (Mark("not", "me", "now"),) for number in range(20)}
    among_others = Reviews({}, {**alone.pairs, **others})
    assert decisions(group, alone) == decisions(group, among_others)
    assert anchor(group, alone) == anchor(group, among_others)
    decided = {name for key, mark in marks.items() if mark != "none" for name in key}
    assert anchor(group, alone) == min(decided, default="a")


def test_a_decision_can_be_changed_and_taken_back(tmp_path: Path) -> None:
    group = Group(("1", "2", "3"), True)
    reviews = marked(tmp_path, *decide(group, "2", "not", NO_REVIEWS))
    reviews = marked(tmp_path, *decide(group, "2", "duplicate", reviews))
    assert reviews.applied_to(Exclusion(components=[group.members])).components == (frozenset("123"),)
    reviews = marked(tmp_path, *decide(group, "2", "none", reviews))
    assert decisions(group, reviews) == {"2": "none", "3": "none"}


def test_the_file_is_json_that_names_reviewer_and_time(tmp_path: Path) -> None:
    ReviewFile(tmp_path / "r.json").update(
        lambda _: [PhotoChange("1", "ok"), PairChange(("1", "2"), "not")], "Zoë", "2026-11-20T12:00:00+00:00"
    )
    content = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    entry = {"reviewer": "Zoë", "time": "2026-11-20T12:00:00+00:00"}
    assert content["photos"] == {"1": [{"mark": "ok", **entry}]}
    assert content["pairs"] == {"1 2": [{"mark": "not", **entry}]}
