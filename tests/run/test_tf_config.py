"""This process's place in a job, from TF_CONFIG."""

from __future__ import annotations

import json

import pytest

from benchmark.run.tf_config import Place, place
from flair.errors import FlairError


def _config(task, **cluster):
    return json.dumps({"cluster": cluster, "task": task})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Place(0, 1)),
        ("{}", Place(0, 1)),
        (_config({"type": "worker", "index": 1}, worker=["a:1", "b:1"]), Place(1, 2, ("a:1", "b:1"))),
        (
            _config({"type": "chief", "index": 0}, chief=["a:1"], worker=["b:1", "c:1"]),
            Place(0, 3, ("a:1", "b:1", "c:1")),
        ),
        (
            _config({"type": "worker", "index": 1}, chief=["a:1"], worker=["b:1", "c:1"]),
            Place(2, 3, ("a:1", "b:1", "c:1")),
        ),
    ],
)
def test_place(monkeypatch, text, expected):
    monkeypatch.setenv("TF_CONFIG", text)
    assert place() == expected


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "[" * 100_000,
        _config({"type": "worker", "index": 2}, worker=["a:1", "b:1"]),
        _config({}, worker=["a:1"]),
        _config({"type": "evaluator", "index": 0}, worker=["a:1"]),
        _config({"type": "worker", "index": 0}, worker="localhost:12345"),
        _config({"type": "worker", "index": 1.7}, worker=["a:1", "b:1"]),
    ],
)
def test_nonsense_is_one_line(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(FlairError, match=r"TF_CONFIG=.*expected JSON such as") as caught:
        place()
    assert "\n" not in str(caught.value)
