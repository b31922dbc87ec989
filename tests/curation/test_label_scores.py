"""Score files: both forms of CSV, JSON, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from flair.curation.scores import read_scores
from flair.errors import FlairError

SAME = {
    "scores.json": '{"1": {"art": 0.25, "food": 1}, "2": {"art": 0.5}}',
    "long.csv": "image_id,label,score\n1,art,0.25\n2,art,0.5\n1,food,1\n",
    "wide.csv": "\ufeffimage_id,art,food\r\n1,0.25,1.0\r\n2,0.5,\r\n",
}


@pytest.mark.parametrize("name", SAME)
def test_every_form_reads_the_same(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(SAME[name], encoding="utf-8", newline="")
    scores = read_scores(tmp_path / name)
    assert [scores.get("1", "art"), scores.get("1", "food"), scores.get("2", "art")] == [0.25, 1.0, 0.5]
    assert scores.get("2", "food") is None and scores.get("3", "art") is None
    assert scores.count("1", ["art", "food", "games"]) == 2
    assert scores.photos() == {"1", "2"} and scores.range() == (0.25, 1.0)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", ""),
        ("a.json", "[]"),
        ("a.json", "{}"),
        ("a.json", '{"1": 0.5}'),
        ("a.json", '{"1": {"art": "much"}}'),
        ("a.json", '{"1": {"art": "\u0663"}}'),
        ("a.json", '{"1": {"art": NaN}}'),
        ("a.json", '{"1": {"art": true}}'),
        ("a.json", '{"../1": {"art": 0.5}}'),
        ("a.csv", ""),
        ("a.csv", "id,art\n1,0.5\n"),
        ("a.csv", "image_id,label,score\n1,art\n"),
        ("a.csv", "image_id,label,score\n1,art,0.5,6\n"),
        ("a.csv", "image_id,label,score\n1,art,inf\n"),
        ("a.csv", "image_id,label,score\n1,art,1_0\n"),
        ("a.csv", "image_id,art,art\n1,0.1,0.9\n"),
        ("a.csv", 'image_id,art\n1,"1\n'),
        ("a.csv", "image_id,label,score\n1,art,0.5\n1,art,0.6\n"),
    ],
)
def test_what_is_no_score_file_is_named_in_one_line(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(FlairError) as error:
        read_scores(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
