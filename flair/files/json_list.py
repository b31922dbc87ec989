"""A JSON list too long to be held as one tree: its items, one after the other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

from flair.files.json_text import BadJson, distinct, refuse_half_pairs, whole_number

_DECODER = json.JSONDecoder(object_pairs_hook=distinct, parse_int=whole_number)
_LONG = 1 << 21  # characters; a photo's record has less than a thousand
_LONGEST = 12_000_000
_MOST_BRACKETS = 100_000
_END_OR_NUMBER = ("", *"0123456789.eE+-")
_WHITESPACE = re.compile(r"[ \t\n\r]*")


class NotJsonList(ValueError):
    """The text is not a JSON list that can be used; the message begins with the line."""


class JsonList:
    """The items of the JSON list in a text file, one at a time; an item that a block cuts is read again with the next.

    >>> import io
    >>> list(JsonList(io.StringIO('[{"a": 1}, 2]')))
    [{'a': 1}, 2]

    Raises:
      NotJsonList: while iterating, at the first thing that `json_text.parse` refuses, or if the text is no list.
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
            self._check_end()
            return
        while True:
            yield self._next_item()
            separator = self._next_character()
            self._position += 1
            if separator == "]":
                return self._check_end()
            if separator != ",":
                raise self._error("not JSON: expected ',' or ']' after an item")

    def _check_end(self) -> None:
        if self._next_character():
            raise self._error("not JSON: expected nothing after the list")

    def _next_item(self) -> Any:
        while True:
            self._next_character()
            start = self._position
            try:
                item, end = _DECODER.raw_decode(self._text, self._position)
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
                self._refuse_half_pairs(item)
            # A number that the block cuts goes on in the next one.
            if self._text[end : end + 1] not in _END_OR_NUMBER or not self._read_more():
                self._position += end - start
                self._block = self._first_block
                return item

    def _refuse_half_pairs(self, item: Any) -> None:
        try:
            refuse_half_pairs(item)
        except BadJson as error:
            raise self._error(str(error)) from None

    def _is_no_record(self, start: int) -> bool:
        """Whether the item is so long, or has so many parts, that to read on would fill the memory."""
        length = len(self._text) - start
        if length <= _LONG:
            return False
        return length > _LONGEST or sum(self._text.count(one, start) for one in "[{") > _MOST_BRACKETS

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
