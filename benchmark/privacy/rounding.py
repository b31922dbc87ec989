"""Numbers of privacy as they are printed and kept: rounded to the side on which what is said still holds."""

from __future__ import annotations

import decimal
import math


def rounded_up(value: float, digits: int = 4) -> str:
    """An epsilon or a delta in so many significant digits, rounded up, so that the claim holds as it is printed.

    >>> rounded_up(2.0003), rounded_up(0.01), rounded_up(8.40e-06 + 1e-12), rounded_up(math.inf)
    ('2.001', '0.01', '8.401e-06', 'inf')
    """
    return _rounded(value, digits, decimal.ROUND_CEILING) if math.isfinite(value) else str(value)


def rounded_down(value: float | None) -> str:
    """A lower bound in four significant digits, rounded down, so that it holds as it is printed; None: infinite.

    >>> rounded_down(0.71299), rounded_down(0.0), rounded_down(None)
    ('0.7129', '0', 'infinite')
    """
    if value is None or math.isinf(value):
        return "infinite"
    return _rounded(value, 4, decimal.ROUND_FLOOR)


def epsilon_text(epsilon: float | None) -> str:
    """An epsilon of a JSON file, rounded up, where None is one that is not finite.

    >>> epsilon_text(2.0003), epsilon_text(None)
    ('2.001', 'infinite')
    """
    return "infinite" if epsilon is None else rounded_up(epsilon)


def spent_text(epsilon: float | None) -> str:
    """The epsilon of a statement: as `epsilon_text`, and what an infinite one means."""
    return "infinite (NO GUARANTEE)" if epsilon is None else rounded_up(epsilon)


def as_text(value: float | int | None) -> str:
    """A number that claims nothing, in words: four significant digits; a whole one in full, "-" for none."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def finite(value: float | None) -> float | None:
    """The value for JSON, which has no infinity: None in its place."""
    return value if value is not None and math.isfinite(value) else None


def small_delta(num_users: int, most: float) -> str:
    """The largest delta of one digit at which users * delta is at most `most`.

    >>> small_delta(41131, 0.01)
    '2e-07'
    """
    return f"{float(decimal.Context(prec=1, rounding=decimal.ROUND_FLOOR).divide(decimal.Decimal(most), num_users)):g}"


def _rounded(value: float, digits: int, rounding: str) -> str:
    exact = decimal.Context(prec=digits, rounding=rounding).create_decimal(repr(float(value)))
    return f"{float(exact):.{digits}g}"
