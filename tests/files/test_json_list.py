"""The blockwise JSON list reader agrees with the standard library on every text and every block size."""

from __future__ import annotations

import gc
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flair.files.json_text import BadJson, JsonList, NotJsonList, parse
from tests.support.bounded_memory import bounded_memory
from tests.support.commands import run_program

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(_VALUES, max_size=6), st.integers(1, 40), st.sampled_from([None, 2]))
def test_items_are_those_of_json_loads(items: list[Any], block: int, indent: int | None) -> None:
    text = json.dumps(items, indent=indent)
    assert list(JsonList(io.StringIO(text), block)) == json.loads(text)


@given(st.lists(_VALUES, max_size=4), st.integers(1, 40), st.data())
def test_a_damaged_text_is_refused_where_it_is_as_a_whole(items: list[Any], block: int, data: st.DataObject) -> None:
    text = json.dumps(items)
    at = data.draw(st.integers(0, len(text) - 1))
    text = text[:at] + data.draw(st.characters(codec="ascii")) + text[at + data.draw(st.integers(0, 1)) :]
    try:
        expected = parse(text)
    except BadJson:
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


@pytest.mark.parametrize("repeated", ["[],", "x", '{"a":1},', "[{", '"",'])
def test_an_item_that_is_no_record_does_not_fill_the_memory(repeated: str) -> None:
    """Sixty megabytes of empty lists, 0.3 MB on the wire, became 1.6 GB."""
    begin = '["' if repeated == "x" else "[["
    text = begin + repeated * (40_000_000 // len(repeated))
    file = io.StringIO(text)
    with bounded_memory(), pytest.raises(NotJsonList, match="line 1: "):
        list(JsonList(file))


@pytest.mark.parametrize("block", [3, 1 << 20])
@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ("1" * 5000, "the whole number .* is larger than 64 bits"),
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        (r'"\ud800"', "half of a surrogate pair"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_what_no_json_of_ours_may_hold_is_refused_with_its_line(item: str, reason: str, block: int) -> None:
    with pytest.raises(NotJsonList, match=f"^line 2: .*{reason}"):
        list(JsonList(io.StringIO(f"[1,\n{item}]"), block))


def test_a_number_that_a_block_cuts_is_read_whole() -> None:
    text = "[123456789012345678901234.5, 1]"
    for block in range(1, len(text)):
        assert list(JsonList(io.StringIO(text), block)) == json.loads(text)


_DEEP_WHILE_HDF5_IS_GARBAGE = """
import contextlib, gc, io, sys, threading
import h5py
from flair.files.json_text import BadJson, JsonList, NotJsonList, parse

file = h5py.File(sys.argv[1], "w")
for allocations in range(950, 1050):  # after which garbage is collected: somewhere here the stack ends
    for read in (parse, lambda text: list(JsonList(io.StringIO(text)))):
        gc.collect()
        knot = [file["/"]]
        knot.append(knot)
        gc.set_threshold(allocations)
        del knot
        with contextlib.suppress(BadJson, NotJsonList):
            read("[" * 5000)
        gc.set_threshold(1_000_000)

def try_the_lock():
    if free := h5py._objects.phil.acquire(blocking=False):
        h5py._objects.phil.release()
    print(free)

other = threading.Thread(target=try_the_lock)
other.start()
other.join()
"""


def test_brackets_by_the_thousand_leave_no_lock_of_hdf5_held(tmp_path: Path) -> None:
    assert run_program(_DEEP_WHILE_HDF5_IS_GARBAGE, tmp_path / "some.hdf5").stdout == "True\n"


def test_the_collector_stays_on_where_a_thread_finds_it_off_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(gc, "isenabled", lambda: False)  # seen just before the other thread enables it
        assert parse("[1]") == [1]
    assert gc.isenabled()
