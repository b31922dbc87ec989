"""Reads JSON that anybody may have written or damaged: one exception for everything that can be wrong with it."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

from flair.files import regular_file
from flair.files.text_file import NotText, decode

_LARGEST = 2**63 - 1


class BadJson(ValueError):
    """The text is not JSON that can be used; the message is one clause that says why, without the file's name."""


def read(path: str | Path) -> Any:
    """The value in a JSON file; BadJson as `parse`, OSError if the file cannot be read."""
    return parse(regular_file.read_bytes(path))


def parse(text: str | bytes) -> Any:
    """The value of a JSON text in UTF-8, with or without a byte order mark.

    Raises:
      BadJson: what JSON does not allow, a key that stands twice in an object, half of a surrogate pair, a whole number
        outside 64 bits, or lists and objects nested too deep to be read.

    >>> parse(b'\\xef\\xbb\\xbf{"a": [1, 2]}')
    {'a': [1, 2]}
    >>> parse('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    flair.files.json_text.BadJson: the key 'a' stands twice in one object
    """
    try:
        if isinstance(text, bytes):
            text = decode(text)
        value = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=distinct, parse_int=whole_number)
        if "\\u" in text:
            refuse_half_pairs(value)
    except BadJson:
        raise
    except NotText as error:
        raise BadJson(str(error)) from None
    except json.JSONDecodeError as error:
        raise BadJson(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise BadJson("lists and objects are nested too deep") from None
    return value


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of `pairs`, for json's object_pairs_hook; BadJson if a key stands twice."""
    value = dict(pairs)
    if len(value) < len(pairs):
        counts = collections.Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise BadJson(f"the key {shown(twice)} stands twice in one object")
    return value


def whole_number(digits: str) -> int:
    """The number, for json's parse_int; BadJson outside 64 bits, before the digits are multiplied out."""
    if len(digits) > 20 or not -_LARGEST <= int(digits) <= _LARGEST:
        raise BadJson(f"the whole number {shown(digits)} is larger than 64 bits")
    return int(digits)


def refuse_half_pairs(value: Any) -> None:
    """BadJson if a string in `value` cannot be written as UTF-8, as JSON's escape of half a surrogate pair cannot."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadJson(f"\\u{ord(error.object[error.start]):04x} is half of a surrogate pair, no character") from None


def shown(text: str, most: int = 40) -> str:
    """`text` in quotes, cut where it is long."""
    return repr(text) if len(text) <= most else f"{text[:most]!r}... ({len(text):,} characters)"
