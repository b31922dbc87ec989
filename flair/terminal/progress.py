"""Progress of long work on stderr: a tqdm bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

LINE_INTERVAL_SECONDS = 15.0


class Progress:
    """Counts units of work and shows how many, how fast, and the time left.

    >>> with Progress(total=2, description="photos", unit="photo") as progress:
    ...     progress.add(2)
    >>> progress.done
    2
    """

    def __init__(self, total: int | None, description: str, unit: str, *, scale: bool = False, done: int = 0) -> None:
        self.total, self.description, self.unit, self.scale = total, description, unit, scale
        self.done = self._start_done = done
        self._start = self._last_line = time.monotonic()
        self._bar: tqdm | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=total, desc=description, unit=unit, unit_scale=scale, initial=done, dynamic_ncols=True
            )

    def add(self, count: int = 1, note: str = "") -> None:
        """Counts `count` more units as done; `note` (short) is shown at the end of the line."""
        self.done += count
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
            return
        now = time.monotonic()
        if now - self._last_line >= LINE_INTERVAL_SECONDS:
            self._last_line = now
            print(self.line(now, note), file=sys.stderr, flush=True)

    def line(self, now: float, note: str = "") -> str:
        """The plain log line at time `now` (seconds of `time.monotonic`)."""
        rate = (self.done - self._start_done) / max(now - self._start, 1e-9)
        text = f"{self.description}: {self._amount(self.done)}"
        if self.total is not None:
            text += f" of {self._amount(self.total)} ({100 * self.done / max(self.total, 1):.0f}%)"
        text += f", {self._amount(rate)} {self.unit}/s"
        if self.total is not None and rate > 0:
            text += f", {duration((self.total - self.done) / rate)} left"
        return f"{text}, {note}" if note else text

    def close(self) -> None:
        """Takes the bar off the screen."""
        if self._bar is not None:
            self._bar.close()

    def _amount(self, value: float) -> str:
        return str(tqdm.format_sizeof(value)) if self.scale else f"{value:,.0f}" if value >= 10 else f"{value:,.3g}"

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> duration(4), duration(75), duration(7384)
    ('4.0 s', '1 min 15 s', '2 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def size(num_bytes: float) -> str:
    """Bytes as a person says them, in powers of 1000 as disks are sold.

    >>> size(84_354_539_520)
    '84.4 GB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if abs(num_bytes) < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
