"""Checks and what they found: a line each, and a report."""

from __future__ import annotations

from typing import Any

MAX_EXAMPLES = 5


class Check:
    """One thing to be true of many: counts how many were looked at and how many failed, and keeps the first examples.

    >>> check = Check("photos exist", "photos", checked=160)
    >>> check.fail("small_images/15.jpg")
    >>> check.line()
    'FAIL  photos exist: 1 of 160 photos: small_images/15.jpg'
    """

    def __init__(self, name: str, unit: str, checked: int = 0) -> None:
        self.name, self.unit, self.checked = name, unit, checked
        self.failures = 0
        self.examples: list[str] = []

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return self.failures == 0

    def fail(self, example: str) -> None:
        """Counts one more failure."""
        self.failures += 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(example)

    def line(self) -> str:
        """The check on one line."""
        if self.ok:
            return f"OK    {self.name}: {self.checked:,} {self.unit}"
        more = "; ..." if self.failures > len(self.examples) else ""
        return f"FAIL  {self.name}: {self.failures:,} of {self.checked:,} {self.unit}: {'; '.join(self.examples)}{more}"

    def to_json(self) -> dict[str, Any]:
        """The check as plain data."""
        return {
            "name": self.name,
            "ok": self.ok,
            "failures": self.failures,
            "checked": self.checked,
            "unit": self.unit,
            "examples": self.examples,
        }
