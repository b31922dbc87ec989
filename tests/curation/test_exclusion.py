"""Exclusion: which photos leave a partition, and the one line that a malformed file ends in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components as scipy_components

from flair.curation.exclusion import Exclusion, connected_components, read_exclusion
from flair.errors import FlairError

IDS = [f"{number:02d}" for number in range(20)]
GRAPHS = st.lists(st.tuples(st.sampled_from(IDS), st.sampled_from(IDS)), max_size=25)
PARTITION_OF = st.fixed_dictionaries({image_id: st.sampled_from(["train", "val", "test"]) for image_id in IDS})


def near_duplicates(edges: list[tuple[str, str]]) -> dict[str, list[str]]:
    """The file's content for the components of `edges`, computed by scipy."""
    rows, columns = [IDS.index(one) for one, _ in edges], [IDS.index(other) for _, other in edges]
    graph = coo_array((np.ones(len(edges)), (rows, columns)), shape=(len(IDS), len(IDS)))
    _, group = scipy_components(graph, directed=False)
    members = {one: [other for other in IDS if group[IDS.index(other)] == group[IDS.index(one)]] for one in IDS}
    return {one: [other for other in others if other != one] for one, others in members.items() if len(others) > 1}


def read(folder: Path, content: object) -> Exclusion:
    path = folder / "exclusion.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_exclusion(path)


@given(edges=GRAPHS, partition_of=PARTITION_OF)
def test_what_stays_has_no_twin_inside_a_partition_and_none_elsewhere(
    tmp_path_factory: pytest.TempPathFactory, edges: list[tuple[str, str]], partition_of: dict[str, str]
) -> None:
    twins = near_duplicates(edges)
    exclusion = read(tmp_path_factory.getbasetemp(), twins)
    photos = {p: {i for i in IDS if partition_of[i] == p} for p in ("train", "val", "test")}
    stays = {partition: ids - exclusion.leaving(ids, partition) for partition, ids in photos.items()}
    for image_id in IDS:
        group = {image_id, *twins.get(image_id, [])}
        assert exclusion.component_of(image_id) == group
        own = partition_of[image_id]
        remaining = {other for other in group if other in stays[partition_of[other]]}
        if {partition_of[other] for other in group} == {own}:
            assert remaining == {min(group)}
        else:
            assert remaining == {other for other in group if partition_of[other] == "train"}


@given(edges=GRAPHS, partition=st.sampled_from(["train", "val", "test"]))
def test_one_direction_and_any_order_of_the_pairs_are_enough(edges: list[tuple[str, str]], partition: str) -> None:
    whole = Exclusion(components=connected_components(edges))
    turned = Exclusion(components=connected_components([(other, one) for one, other in reversed(edges)]))
    assert whole.digest == turned.digest
    assert whole.components == turned.components
    assert whole.leaving(IDS[:10], partition) == turned.leaving(set(IDS[:10]), partition)


def test_a_list_always_leaves_and_strangers_in_it_do_not_matter(tmp_path: Path) -> None:
    exclusion = read(tmp_path, ["3", "1", "3", "77"])
    assert exclusion.leaving({"1", "2", "3"}, "train") == {"1", "3"}
    assert exclusion.leaving(["1", "2"], "test") == {"1"}
    assert exclusion.ids == {"1", "3", "77"}
    assert exclusion.digest == read(tmp_path, ["77", "1", "3"]).digest != read(tmp_path, ["1", "3"]).digest


@pytest.mark.parametrize("content", [[], {}, {"5": []}])
def test_nothing_to_exclude(tmp_path: Path, content: object) -> None:
    assert read(tmp_path, content).leaving({"5", "6"}, "test") == frozenset()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"not JSON"),
        ('{"1": ["2"]', r"not JSON"),
        pytest.param("[" * 100_000, r"nested too deep", id="nested deeply"),
        ('"1"', r"expected a list of image ids, or an object .*, found the text '1'"),
        ("null", r"found null"),
        ([1], r"exclusion.json, item 0: expected an image id in quotes, found 1"),
        (["1", ["2"]], r"item 1: expected an image id in quotes, found a list"),
        (["../x"], r"item 0: image id '../x' is not an id"),
        ({"1": "2"}, r"image 1: expected a list of its near duplicates, found the text '2'"),
        ({"1": {"2": 3}}, r"image 1: expected a list of its near duplicates, found an object"),
        ({"1": ["2", 3]}, r"image 1: expected an image id in quotes, found 3"),
        ({"": ["2"]}, r"image id '' is not an id"),
        ('{"1": ["2"], "1": ["3"]}', r"the key '1' stands twice"),
    ],
)
def test_a_malformed_file_ends_in_one_line(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(FlairError, match=message) as caught:
        read(tmp_path, content)
    assert "\n" not in str(caught.value)
    assert "exclusion.json" in str(caught.value)


def test_what_is_no_readable_file(tmp_path: Path) -> None:
    with pytest.raises(FlairError, match=r"no such file; expected a JSON list"):
        read_exclusion(tmp_path / "missing.json")
    with pytest.raises(FlairError, match=r"is a directory; expected a file"):
        read_exclusion(tmp_path)
    (tmp_path / "bytes").write_bytes(b'["\xff"]')
    with pytest.raises(FlairError, match=r"not UTF-8 text"):
        read_exclusion(tmp_path / "bytes")


@given(st.text(max_size=40) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    try:
        exclusion = read(tmp_path_factory.getbasetemp(), text)
    except FlairError:
        return
    assert json.loads(text) in ([], {}) or exclusion.ids <= set(json.loads(text))


def test_an_unknown_partition_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="'dev'"):
        Exclusion().leaving(["1"], "dev")
