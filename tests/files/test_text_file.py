"""Text from people's editors: a byte order mark and CRLF change nothing, and what is no UTF-8 is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flair.curation.exclusion import read_exclusion
from flair.curation.manifest import Testset, read_testset
from flair.curation.manifest import to_json as manifest_of
from flair.curation.reviews import NO_REVIEWS, read_reviews
from flair.curation.reviews import to_json as reviews_to_json
from flair.curation.scores import read_scores
from flair.dataset.metadata import Record, load_records, load_taxonomy, record_to_json
from flair.download.state import WORK_DIR, DownloadState
from flair.download.transfer import arrived_bytes
from flair.errors import FlairError
from flair.files import text_file
from flair.reviewing.groups import read_neighbors

METADATA = json.dumps([record_to_json(Record("1@N00", "10", ("animal",), ("dog",), "train"))])
TESTSET = manifest_of(Testset("mine", "test", ("10", "11")))
READERS: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "metadata": (
        "labels_and_metadata.json",
        lambda path: load_records(path.parent),
        METADATA,
    ),
    "taxonomy": ("label_relationship.txt", lambda path: load_taxonomy(path.parent), "dog -> animal\nsea -> liquid\n"),
    "exclusion": ("exclude.json", lambda path: read_exclusion(path).ids, '["10",\n"11"]'),
    "test set": ("mine.json", lambda path: read_testset(path), json.dumps(TESTSET, indent=1)),
    "reviews": ("reviews.json", lambda path: read_reviews(path), json.dumps(reviews_to_json(NO_REVIEWS), indent=1)),
    "neighbors": ("neighbors.json", read_neighbors, '{"1":\n{"l2": [["2", 0.5]]}}'),
    "scores": ("scores.json", lambda path: read_scores(path).range(), '{"10":\n{"dog": 0.5}}'),
    "scores as CSV": ("scores.csv", lambda path: read_scores(path).range(), "image_id,label,score\n10,dog,0.5\n"),
}


@pytest.mark.parametrize("kind", READERS)
def test_what_an_editor_adds_changes_nothing_and_what_is_no_utf8_is_named(tmp_path: Path, kind: str) -> None:
    name, read, text = READERS[kind]
    path = tmp_path / name
    path.write_bytes(text.encode())
    expected = read(path)
    windows = text.replace("\n", "\r\n")
    for saved in (text.encode("utf-8-sig"), windows.encode(), windows.encode("utf-8-sig")):
        path.write_bytes(saved)
        assert read(path) == expected
    for saved, reason in ((text.encode("utf-16"), "UTF-16"), (b"\xe9" + text.encode(), "not UTF-8")):
        path.write_bytes(saved)
        with pytest.raises(FlairError, match=f"{name}: .*{reason} text; save it as UTF-8") as error:
            read(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [kind for kind, (name, _, _) in READERS.items() if name.endswith(".json")])
@pytest.mark.parametrize(
    "value", ["1" * 5000, "[" * 100_000, r'"\ud800"', '{"a": 1, "a": 2}'], ids=["digits", "deep", "half pair", "twice"]
)
def test_no_json_ends_in_a_traceback(tmp_path: Path, kind: str, value: str) -> None:
    name, read, text = READERS[kind]
    (tmp_path / name).write_text(f"[{text[1:-1]}, {value}]" if text[0] == "[" else f'{text[:-1]}, "more": {value}}}')
    with pytest.raises(FlairError, match=name) as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, '{"version": 1' + "0" * 5000 + "}"])
def test_notes_of_a_download_that_are_no_json_are_known_as_such(tmp_path: Path, text: str) -> None:
    (tmp_path / WORK_DIR).mkdir()
    (tmp_path / WORK_DIR / "state.json").write_text(text)
    with pytest.raises(FlairError, match=r"state\.json: damaged .*; delete it to download everything again"):
        DownloadState(tmp_path)
    (tmp_path / "a.part").write_bytes(b"half")
    (tmp_path / "a.part.json").write_text(text)
    assert arrived_bytes(tmp_path / "a.part") == 0


def test_utf16_without_a_mark_is_seen_by_its_zero_bytes() -> None:
    with pytest.raises(text_file.NotText, match="zero bytes, as UTF-16 does"):
        text_file.decode("dog -> animal".encode("utf-16-le"))
