"""The log of episodes: exact numbers, in order, and half a line of a killed process is no row."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark.personalization.log import EpisodeLog, LabelResult, UserResult
from flair.errors import FlairError
from flair.files import atomic

RESULTS = [
    UserResult(0, "10@N00", 7, 3, 3, 0.1, 1 / 3, 2 / 3, 0.1 + 0.2, 1e-17),
    UserResult(1, "9,@N01", 4, 1, 2, 0.25, 0.5, 0.5, float("nan"), float("nan")),
    UserResult(2, "8@N01", 4, 1, 2, 0.25, 5e300, 0.5, 0.25, 1.0),
]


def _same(one, other):
    return all(
        a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b)) for a, b in zip(one, other, strict=True)
    )


@given(st.integers(0, 400))
def test_whatever_was_cut_off_whole_rows_come_back(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("log") / "episodes.csv"
    log = EpisodeLog(path, UserResult)
    for result in RESULTS:
        log.add(result)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - min(cut, len(whole))])
    again = EpisodeLog(path, UserResult)
    assert len(again.results) <= 3
    assert all(_same(one, other) for one, other in zip(again.results, RESULTS, strict=False))
    assert len(again.results) == max(0, path.read_bytes().count(b"\n") - 1)
    for result in RESULTS[len(again.results) :]:
        again.add(result)
    assert path.read_bytes() == whole


def test_results_of_labels_come_back(tmp_path):
    result = LabelResult(0, "animal", 5, 30, 10, 0.5, 1 / 7, 2 / 7)
    EpisodeLog(tmp_path / "episodes.csv", LabelResult).add(result)
    assert EpisodeLog(tmp_path / "episodes.csv", LabelResult).results == [result]


def test_episodes_come_in_order(tmp_path):
    log = EpisodeLog(tmp_path / "episodes.csv", UserResult)
    with pytest.raises(ValueError, match="episode 1 came where 0 was due"):
        log.add(RESULTS[1])


@pytest.mark.parametrize("damage", [b"\x00\x00\x00", b"1,9,4", b"0,10@N00,7,3,3,0.1,0.3,0.6,0.3,0.1"])
def test_a_damaged_line_within_is_named_not_a_traceback(tmp_path, damage):
    path = tmp_path / "episodes.csv"
    log = EpisodeLog(path, UserResult)
    for result in RESULTS:
        log.add(result)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], damage, *lines[3:]]))
    with pytest.raises(FlairError, match=r"episodes\.csv: .*--overwrite"):
        EpisodeLog(path, UserResult)


def test_no_changed_byte_is_taken_for_a_result(tmp_path):
    path = tmp_path / "episodes.csv"
    log = EpisodeLog(path, UserResult)
    for result in RESULTS:
        log.add(result)
    data = path.read_bytes()
    for place in range(len(data) - 1):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(FlairError, match=r"episodes\.csv: .*--overwrite"):
            EpisodeLog(path, UserResult)
    path.write_bytes(data + b"\xff\n")
    with pytest.raises(FlairError, match="is damaged at byte"):
        EpisodeLog(path, UserResult)


def test_a_log_of_an_older_version_is_continued(tmp_path):
    path = tmp_path / "episodes.csv"
    path.write_text(atomic.csv_text([UserResult._fields, *RESULTS[::2][:1]]))
    log = EpisodeLog(path, UserResult)
    assert log.results == RESULTS[:1]
    log.add(RESULTS[1])
    assert EpisodeLog(path, UserResult).results[0] == RESULTS[0]
    assert path.read_text().splitlines()[0].endswith(",crc32c")
