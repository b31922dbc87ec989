"""Signals wait for a safe point."""

from __future__ import annotations

import signal

import pytest

from benchmark.run.interruption import SafePoints
from flair.parallel.stopping import Terminated


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_is_raised_at_the_safe_point(number, raised, capsys):
    before = signal.getsignal(number)
    with SafePoints("round") as points:
        points.stop()
        signal.raise_signal(number)
        assert points.requested == number
        assert "finishing this round, then saving" in capsys.readouterr().err
        with pytest.raises(raised):
            points.stop()
    assert signal.getsignal(number) == before


def test_a_second_signal_interrupts_at_once():
    with SafePoints("step"):
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
