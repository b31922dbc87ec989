"""Saved parts: rows come back in order, whatever was lost or left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flair.errors import FlairError
from flair.files.growing import PartStore


@settings(deadline=None)  # each save waits for the disk, which others may keep busy
@given(
    sizes=st.lists(st.integers(0, 4), max_size=12),
    runs=st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=6),
    lost=st.integers(0, 5),
)
def test_rows_are_those_of_the_tasks_in_order(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], runs: list[tuple[int, bool]], lost: int
) -> None:
    tasks = np.split(np.arange(sum(sizes), dtype=np.int64), np.cumsum(sizes)[:-1]) if sizes else []
    folder = tmp_path_factory.getbasetemp() / "parts"
    for count, saved in [*runs, (len(tasks), True)]:
        store = PartStore(folder, np.dtype(np.int64))
        for rows in tasks[store.done : store.done + count]:
            store.add(rows)
            if saved:
                store.save()
        parts = sorted(folder.iterdir())
        if count < len(tasks) and lost < len(parts):
            parts[lost].unlink()
    store = PartStore(folder, np.dtype(np.int64))
    assert store.done == len(tasks)
    assert store.num_rows == sum(sizes)
    assert store.rows().tolist() == list(range(sum(sizes)))
    store.discard()
    assert not folder.exists()


@pytest.mark.parametrize("content", [b"", b"junk"])
def test_a_damaged_part_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "part-000000000-000000001.npy"
    path.write_bytes(content)
    with pytest.raises(FlairError, match=f"{path.name}: is damaged .*; delete it"):
        PartStore(tmp_path, np.dtype("<i4"))


def test_what_a_killed_run_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".part-000000000-000000001.npy.77.tmp").write_bytes(b"half")
    store = PartStore(tmp_path, np.dtype(np.int64))
    assert (store.done, list(tmp_path.iterdir())) == (0, [])
