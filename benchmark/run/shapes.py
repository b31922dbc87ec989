"""Whether a JSON value that is read has the shape of what a command wrote."""

from __future__ import annotations

from types import NoneType
from typing import Any

NUMBER = (int, float)
NUMBER_OR_NULL = (int, float, NoneType)
ESTIMATE = {"value": NUMBER_OR_NULL, "low": NUMBER_OR_NULL, "high": NUMBER_OR_NULL}


def misfit(value: Any, shape: Any, place: str = "") -> str | None:
    """Where and why `value` does not have `shape`, None where it has.

    Args:
      shape: a type or several; `[shape]`, a list of such values; `{"key": shape}`, an object with at least these keys,
        where `key?` may be missing and `*` stands for every key.

    >>> misfit({"a": [1, "x"]}, {"a": [int], "b?": str})
    'a[1]: expected int, found str'
    >>> misfit({"a": [1]}, {"a": [int], "b?": str}) is None
    True
    """
    kinds: Any = type(shape) if isinstance(shape, list | dict) else shape
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds in (NUMBER, NUMBER_OR_NULL, int)):
        names = [kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,))]
        return f"{place or 'it'}: expected {' or '.join(names)}, found {type(value).__name__}"
    if isinstance(shape, list):
        found = (misfit(item, shape[0], f"{place}[{index}]") for index, item in enumerate(value))
        return next((one for one in found if one is not None), None)
    if not isinstance(shape, dict):
        return None
    for key, inner in shape.items():
        name = key.removesuffix("?")
        if key == name != "*" and name not in value:
            return f"{f'{place}.{name}' if place else name}: is missing"
        for chosen in value if name == "*" else [name] if name in value else []:
            reason = misfit(value[chosen], inner, f"{place}.{chosen}" if place else chosen)
            if reason is not None:
                return reason
    return None
