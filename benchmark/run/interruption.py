"""Ctrl-C and SIGTERM wait for a safe point: the step or round ends, and is saved."""

from __future__ import annotations

import signal
import sys
from types import FrameType

from flair.parallel.stopping import Terminated

STOPPING = (signal.SIGINT, signal.SIGTERM)


class SafePoints:
    """While entered, SIGINT and SIGTERM only set `requested`; the caller saves and calls `stop()`.

    After the first signal, another one of either kind interrupts at once, as without this class.
    """

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.requested: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> SafePoints:
        for number in STOPPING:
            self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_error: object) -> None:
        self._restore()

    def stop(self) -> None:
        """Raises what the signal would have raised: KeyboardInterrupt or Terminated."""
        if self.requested == signal.SIGINT:
            raise KeyboardInterrupt
        if self.requested == signal.SIGTERM:
            raise Terminated

    def _request(self, number: int, _frame: FrameType | None) -> None:
        self.requested = number
        print(f"finishing this {self.unit}, then saving; again to stop at once", file=sys.stderr, flush=True)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()
