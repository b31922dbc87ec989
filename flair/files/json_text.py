"""Reads JSON that anybody may have damaged: a whole text, or a long list item by item.

The list reader stays our own, though `ijson` has one: of 429,078 records ijson is no faster (4.9 to 6.4 s of processor
time, ours 4.6 to 4.9 s, 186 MB both), gives the last of two equal keys, "?" for half a surrogate pair and no line
number, and dies for lack of memory of a hundred thousand brackets.
"""

from __future__ import annotations

import collections
import gc
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO, TypeVar

from flair.files import regular_file
from flair.files.text_file import NotText, decode

_LARGEST = 2**63 - 1
# Of one item of a list; a photo's record has fewer than a thousand characters and ten brackets.
_LONG = 1 << 21  # characters, from which on its brackets are counted
_LONGEST = 12_000_000
_MOST_BRACKETS = 100_000  # each of them a list or an object of sixty bytes and more
_END_OR_NUMBER = ("", *"0123456789.eE+-")
_WHITESPACE = re.compile(r"[ \t\n\r]*")

_T = TypeVar("_T")


class BadJson(ValueError):
    """The text is not JSON that can be used; the message is one clause that says why, without the file's name."""


class NotJsonList(ValueError):
    """The text is not a JSON list that can be used; the message begins with the line."""


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
        value = _uncollected(_DECODER.decode, text.removeprefix("\ufeff"))
        if "\\u" in text:
            _refuse_half_pairs(value)
    except BadJson:
        raise
    except NotText as error:
        raise BadJson(str(error)) from None
    except json.JSONDecodeError as error:
        raise BadJson(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise BadJson("lists and objects are nested too deep") from None
    return value


def _uncollected(function: Callable[..., _T], *arguments: Any) -> _T:
    """Calls a function of json's without collecting garbage meanwhile."""
    # Brackets by the thousand lead to the end of the stack. An object of h5py that is freed there cannot give back the
    # lock that it takes for it, and whoever reads HDF5 in another thread then waits forever.
    if not gc.isenabled():  # another thread is here, and will enable it
        return function(*arguments)
    gc.disable()
    try:
        return function(*arguments)
    finally:
        gc.enable()


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of `pairs`, for json's object_pairs_hook; BadJson if a key stands twice."""
    value = dict(pairs)
    if len(value) < len(pairs):
        counts = collections.Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise BadJson(f"the key {shown(twice)} stands twice in one object")
    return value


def _whole_number(digits: str) -> int:
    """The number, for json's parse_int; BadJson outside 64 bits, before the digits are multiplied out."""
    if len(digits) > 20 or not -_LARGEST <= int(digits) <= _LARGEST:
        raise BadJson(f"the whole number {shown(digits)} is larger than 64 bits")
    return int(digits)


def _refuse_half_pairs(value: Any) -> None:
    """BadJson if a string in `value` cannot be written as UTF-8, as JSON's escape of half a surrogate pair cannot."""
    try:
        _uncollected(_ENCODER.encode, value).encode()
    except UnicodeEncodeError as error:
        raise BadJson(f"\\u{ord(error.object[error.start]):04x} is half of a surrogate pair, no character") from None


def shown(text: str, most: int = 40) -> str:
    """`text` in quotes, cut where it is long."""
    return repr(text) if len(text) <= most else f"{text[:most]!r}... ({len(text):,} characters)"


_DECODER = json.JSONDecoder(object_pairs_hook=_distinct, parse_int=_whole_number)
_ENCODER = json.JSONEncoder(ensure_ascii=False)


class JsonList:
    """The items of the JSON list in a text file, one at a time; an item that a block cuts is read again with the next.

    >>> import io
    >>> list(JsonList(io.StringIO('[{"a": 1}, 2]')))
    [{'a': 1}, 2]

    Raises:
      NotJsonList: while iterating, at the first thing that `parse` refuses, or if the text is not a list.
    """

    def __init__(self, file: TextIO, block: int = 1 << 20) -> None:
        self._file = file
        self._text, self._position, self._lines_before = "", 0, 0
        self._block = self._first_block = block  # in characters

    def __iter__(self) -> Iterator[Any]:
        if self._next_character() != "[":
            raise self._error("expected a JSON list")
        self._position += 1
        if self._next_character() == "]":
            self._position += 1
        else:
            separator = ","
            while separator == ",":
                yield self._next_item()
                separator = self._next_character()
                self._position += 1
            if separator != "]":
                raise self._error("not JSON: expected ',' or ']' after an item")
        if self._next_character():
            raise self._error("not JSON: expected nothing after the list")

    def _next_item(self) -> Any:
        while True:
            self._next_character()
            start = self._position
            try:
                item, end = _uncollected(_DECODER.raw_decode, self._text, self._position)
            except json.JSONDecodeError as error:
                if self._is_no_record(start) or not self._read_more():
                    self._position = error.pos - start
                    raise self._error(f"not JSON: {error.msg}") from None
                continue
            except RecursionError:
                raise self._error("lists and objects are nested too deep") from None
            except BadJson as error:
                # The digits of a number that the block cuts may be those before a point.
                if self._text[-1:] not in _END_OR_NUMBER or not self._read_more():
                    raise self._error(str(error)) from None
                continue
            if self._text.find("\\u", start, end) >= 0:
                try:
                    _refuse_half_pairs(item)
                except BadJson as error:
                    raise self._error(str(error)) from None
            # A number that the block cuts goes on in the next one.
            if self._text[end : end + 1] not in _END_OR_NUMBER or not self._read_more():
                self._position += end - start
                self._block = self._first_block
                return item

    def _is_no_record(self, start: int) -> bool:
        """Whether the item is so long, or has so many parts, that to read on would fill the memory."""
        length = len(self._text) - start
        return length > _LONGEST or (
            length > _LONG and self._text.count("[", start) + self._text.count("{", start) > _MOST_BRACKETS
        )

    def _next_character(self) -> str:
        while True:
            self._position = _WHITESPACE.match(self._text, self._position).end()  # type: ignore[union-attr]
            if self._position < len(self._text) or not self._read_more():
                return self._text[self._position : self._position + 1]

    def _read_more(self) -> bool:
        more = self._file.read(self._block)
        self._block *= 2  # so that a broken record costs no more than twice the rest of the file
        self._lines_before += self._text.count("\n", 0, self._position)
        self._text, self._position = self._text[self._position :] + more, 0
        return bool(more)

    def _error(self, reason: str) -> NotJsonList:
        line = self._lines_before + self._text.count("\n", 0, self._position) + 1
        return NotJsonList(f"line {line}: {reason}")
