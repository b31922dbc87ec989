"""The blockwise JSON list reader agrees with the standard library on every text and every block size."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flair.json_list import JsonList, NotJsonList

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(_VALUES, max_size=6), st.integers(1, 40), st.sampled_from([None, 2]))
def test_items_are_those_of_json_loads(items: list[Any], block: int, indent: int | None) -> None:
    text = json.dumps(items, indent=indent)
    assert list(JsonList(io.StringIO(text), block)) == json.loads(text)


@given(st.lists(_VALUES, max_size=4), st.integers(1, 40), st.data())
def test_a_damaged_text_is_refused_where_json_loads_refuses_it(
    items: list[Any], block: int, data: st.DataObject
) -> None:
    text = json.dumps(items)
    at = data.draw(st.integers(0, len(text) - 1))
    text = text[:at] + data.draw(st.characters(codec="ascii")) + text[at + data.draw(st.integers(0, 1)) :]
    try:
        expected = json.loads(text)
    except ValueError:
        expected = None
    try:
        found: Any = list(JsonList(io.StringIO(text), block))
    except NotJsonList:
        found = None
    assert found == (expected if isinstance(expected, list) else None)


def test_the_error_names_the_line_in_a_later_block() -> None:
    text = "[\n" + "1,\n" * 50 + "oops]"
    with pytest.raises(NotJsonList, match=r"^line 52: not JSON"):
        list(JsonList(io.StringIO(text), 16))
