"""The Python that docs/formats.md shows runs, on a miniature in the places that it names."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import pytest

from benchmark.model import loading, networks
from flair.records.hdf5.writer import write_hdf5
from flair.records.tfrecord.writer import write_tfrecords
from tests.support.commands import ROOT, run
from tests.support.markdown import blocks

PAGE = ROOT / "docs/formats.md"
PYTHON = ["\n".join(block.lines) for block in blocks(PAGE.read_text(encoding="utf-8")) if block.language == "python"]
# The class of the page, used as torch's loader does; torch itself is no dependency.
USE_OF_TORCH = """
photos = UserPhotos("/path/to/flair.h5", "val", next(iter(HDF5File("/path/to/flair.h5").groups("val"))))
assert len(photos) and photos.images.shape[1:] == (256, 256, 3) and photos.labels[0]
"""
STAND_IN = types.SimpleNamespace(utils=types.SimpleNamespace(data=types.SimpleNamespace(Dataset=object)))


@pytest.fixture(scope="module")
def places(miniature, tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    write_tfrecords(miniature, folder / "tfrecords")
    write_tfrecords(miniature, folder / "for_tff", feature_names="tff")
    write_hdf5(miniature, folder / "flair.h5")
    model = networks.build_model("cnn", (32, 32, 3), 17)
    loading.save_archive(model, folder / "federated" / "cnn_federated_17labels.keras")
    if importlib.util.find_spec("tensorflow_datasets") is not None:
        run("benchmark.tfds_main", f"--dataset_dir={miniature}", f"--tfds_data_dir={folder / 'tfds'}")
    return folder


def test_the_page_shows_each_way():
    text = PAGE.read_text(encoding="utf-8")
    for way in ("TFRecords, a file a user", "TFRecords, shards", "HDF5", "PyTorch", "TFDS", "TFF's own loader"):
        assert f"\n**{way}" in text
    assert len(PYTHON) >= 6


@pytest.mark.slow
@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_its_python_runs(code: str, places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "benchmark.tfds" in code.replace("flair_tfds", "tfds") and not (places / "tfds").exists():
        pytest.skip("the extra 'tfds' is not installed")
    if "import torch" in code:
        monkeypatch.setitem(sys.modules, "torch", STAND_IN)
        code += USE_OF_TORCH
    exec(code.replace("/path/to/", f"{places}/"), {"__name__": "__main__"})
