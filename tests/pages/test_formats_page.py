"""The Python that docs/formats.md shows runs, on a miniature in the places that it names."""

from __future__ import annotations

import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest

from benchmark.model import loading, networks
from flair.records.hdf5.writer import write_hdf5
from flair.records.tfrecord.writer import write_tfrecords
from tests.support.commands import ROOT, run
from tests.support.interop import run_interop
from tests.support.markdown import blocks

PAGE = ROOT / "docs/formats.md"
ALL = ["\n".join(block.lines) for block in blocks(PAGE.read_text(encoding="utf-8")) if block.language == "python"]
# What runs in the environment of `make interop`, and what runs here.
INTEROP = [code for code in ALL if re.search(r"import (datasets|grain|mlcroissant)\b|from flwr_datasets\b", code)]
PYTHON = [code for code in ALL if code not in INTEROP]
# The class of the page, used as torch's loader does; torch itself is no dependency.
USE_OF_TORCH = """
photos = UserPhotos("/path/to/flair.h5", "val", next(iter(HDF5File("/path/to/flair.h5").groups("val"))))
assert len(photos) and photos.images.shape[1:] == (256, 256, 3) and photos.labels[0]
"""
# Torch's wheel has gigabytes for GPUs; where it is missing, this calls the page's code as torch's loader does.
IMPORT_TORCH = """
try:
    import torch
except ImportError:
    import types
    def load(rows, batch_size, shuffle, collate_fn):
        for start in range(0, len(rows), batch_size):
            yield collate_fn([rows[number] for number in range(start, min(start + batch_size, len(rows)))])
    utils = types.SimpleNamespace(data=types.SimpleNamespace(DataLoader=load))
    torch = types.SimpleNamespace(from_numpy=lambda array: array, utils=utils)
"""
# What each of them must have found at its end; names are those of the page.
FOUND = {
    "DataLoader": "assert tuple(images.shape)[1:] == (3, 256, 256) and len(images) == len(labels) and labels[0]",
    "grain": "assert batch['image'].shape[1:] == (256, 256, 3) and batch['labels'].any(axis=1).all()",
    "flwr_datasets": "assert len(set(photos_of_a_user['user_id'])) == 1 and num_users == 32",
    "mlcroissant": "assert image.size == (256, 256) and user_id and labels",
    "datasets": "assert photo['image'].size == (256, 256) and labels and len(photos) > 100",
}
STAND_IN = types.SimpleNamespace(utils=types.SimpleNamespace(data=types.SimpleNamespace(Dataset=object)))


@pytest.fixture(scope="module")
def places(miniature, tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    write_tfrecords(miniature, folder / "tfrecords")
    write_tfrecords(miniature, folder / "for_tff", feature_names="tff")
    write_hdf5(miniature, folder / "flair.h5")
    if importlib.util.find_spec("pyarrow") is not None:
        run("flair.export", f"--dataset_dir={miniature}", f"--output_dir={folder / 'parquet'}")
    model = networks.build_model("cnn", (32, 32, 3), 17)
    loading.save_archive(model, folder / "federated" / "cnn_federated_17labels.keras")
    if importlib.util.find_spec("tensorflow_datasets") is not None:
        run("benchmark.tfds_main", f"--dataset_dir={miniature}", f"--tfds_data_dir={folder / 'tfds'}")
    return folder


def test_the_page_shows_each_way():
    text = PAGE.read_text(encoding="utf-8")
    for way in ("TFRecords, a file a user", "TFRecords, shards", "HDF5", "PyTorch", "TFDS", "TFF's own loader"):
        assert f"\n**{way}" in text
    for way in (
        "Hugging Face's `datasets`",
        "Flower",
        "PyTorch, through `datasets`",
        "JAX, through grain",
        "Croissant",
    ):
        assert f"\n**{way}" in text
    assert len(PYTHON) >= 6 and len(INTEROP) == 5


@pytest.mark.slow
@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_its_python_runs(code: str, places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "benchmark.tfds" in code.replace("flair_tfds", "tfds") and not (places / "tfds").exists():
        pytest.skip("the extra 'tfds' is not installed")
    if "import torch" in code:
        monkeypatch.setitem(sys.modules, "torch", STAND_IN)
        code += USE_OF_TORCH
    exec(code.replace("/path/to/", f"{places}/"), {"__name__": "__main__"})


@pytest.mark.long
@pytest.mark.parametrize("code", INTEROP, ids=range(len(INTEROP)))
def test_its_python_runs_with_other_peoples_tools(code: str, places: Path, tmp_path: Path) -> None:
    found = next(check for name, check in FOUND.items() if name in code)
    program = code.replace("/path/to/", f"{places}/").replace("import torch\n", IMPORT_TORCH)
    run_interop(f"{program}\n{found}", home=tmp_path)
