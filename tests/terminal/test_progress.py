"""Progress: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import io

import pytest

from flair.terminal import progress
from flair.terminal.progress import LINE_INTERVAL_SECONDS, Progress, duration, size


class Clock:
    """Stands for the clock: `now` seconds, moved by the test."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_without_a_terminal_a_line_is_printed_once_an_interval(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(total=400, description="photos", unit="photo") as shown:
        for _ in range(4):
            clock.now += LINE_INTERVAL_SECONDS / 2
            shown.add(50)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "photos: 100 of 400 (25%), 6.67 photo/s, 45.0 s left",
        "photos: 200 of 400 (50%), 6.67 photo/s, 30.0 s left",
    ]
    assert shown.done == 200


def test_what_was_done_before_does_not_count_as_speed(clock: Clock) -> None:
    shown = Progress(total=1000, description="resumed", unit="photo", done=900)
    shown.add(20)
    assert shown.line(clock.now + 10, "user 7") == "resumed: 920 of 1,000 (92%), 2 photo/s, 40.0 s left, user 7"


def test_an_unknown_total_shows_no_share_and_no_time_left(clock: Clock) -> None:
    shown = Progress(total=None, description="download", unit="B", scale=True)
    shown.add(2_000_000)
    assert shown.line(clock.now + 4) == "download: 2.00M, 500k B/s"


def test_no_progress_yet_promises_no_time(clock: Clock) -> None:
    assert Progress(total=10, description="p", unit="x").line(clock.now + 5) == "p: 0 of 10 (0%), 0 x/s"


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with Progress(total=4, description="photos", unit="photo", done=1) as shown:
        shown.add(3, "the last one")
        assert shown.done == 4
    assert "photos" in terminal.getvalue() and "4/4" in terminal.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (59.4, "59.4 s"), (60, "1 min 0 s"), (3599.6, "1 h 0 min"), (90_000, "25 h 0 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (5_740_000_000, "5.7 GB"), (1.2e12, "1.2 TB")]
)
def test_size(num_bytes: float, text: str) -> None:
    assert size(num_bytes) == text
