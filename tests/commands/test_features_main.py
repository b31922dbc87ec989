"""Features of a saved model: those of its pooling layer, continued after a stop, and read by the audit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flair.dataset.metadata import load_records, photo_path
from flair.duplicates.features import read_features
from flair.errors import FlairError
from flair.files.feature_file import ids_path
from tests.support.commands import run
from tests.support.feature_files import write_features


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with seeded weights."""
    from benchmark.model import loading, networks

    path = tmp_path_factory.mktemp("model") / "cnn_17labels.h5"
    loading.save_model(networks.build_model("cnn", (48, 64, 3), 17, seed=3), path)
    return path


def test_features_are_those_of_the_pooling_layer(saved_model: Path, miniature: Path, tmp_path: Path) -> None:
    import tensorflow as tf

    from benchmark import features_main
    from benchmark.data.augmentation import decode_evaluation
    from benchmark.model import loading, networks

    output = tmp_path / "features.npy"
    flags = [f"--model={saved_model}", f"--dataset_dir={miniature}", f"--output_file={output}"]
    assert features_main.main([*flags, "--partitions", "val", "test", "--eval_batch_size=3"]) == 0
    records = [record for record in load_records(miniature) if record.partition != "train"]
    ids = json.loads(ids_path(output).read_text())["image_ids"]
    assert ids == [record.image_id for record in records]
    table = read_features(output, ids[::-1])
    model = networks.build_model("cnn", (48, 64, 3), 17)
    loading.load_by_name(model, saved_model)
    pooled = tf.keras.Model(model.input, model.get_layer("global_pooling").output)
    pixels = [decode_evaluation(photo_path(miniature, name).read_bytes(), (48, 64)) for name in ids[:2]]
    expected = pooled(tf.stack(pixels)).numpy()
    assert np.asarray(table.values[:2]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    distance = table.squared_distances(np.array([len(ids) - 1]), np.array([len(ids) - 2]))
    assert distance[0] == pytest.approx(((expected[0] - expected[1]) ** 2).sum(), rel=1e-3)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["features.json", "features.npy"]


def test_a_stopped_run_continues(
    saved_model: Path, miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmark.features_main import write_model_features

    records = load_records(miniature)[:10]
    write_model_features(saved_model, miniature, records, tmp_path / "whole.npy", 4)
    read = []

    def read_jpeg(dataset_dir: Path, record: object) -> object:
        read.append(record)
        if len(read) == 6:
            raise KeyboardInterrupt
        return original(dataset_dir, record)

    from flair.dataset import images

    original = images.read_jpeg
    monkeypatch.setattr(images, "read_jpeg", read_jpeg)
    with pytest.raises(KeyboardInterrupt):
        write_model_features(saved_model, miniature, records, tmp_path / "stopped.npy", 4)
    write_model_features(saved_model, miniature, records, tmp_path / "stopped.npy", 4)
    assert len(read) == 6 + 6
    assert np.array_equal(np.load(tmp_path / "whole.npy"), np.load(tmp_path / "stopped.npy"))


def test_mistakes_end_in_one_line(tmp_path: Path, miniature: Path) -> None:
    for flags, code, message in (
        (["--model=none.h5", "--output_file=f.npy"], 1, "--model=none.h5: no such file"),
        (["--model=none.h5", "--output_file=f.txt"], 2, "expected a name that ends in .npy"),
    ):
        result = run("benchmark.features_main", f"--dataset_dir={miniature}", *flags, code=code)
        assert message in result.stderr.splitlines()[-1]
    np.save(tmp_path / "features.npy", np.zeros((2, 3), np.float32))
    with pytest.raises(FlairError, match=r"has no features.json beside it; python -m benchmark.features_main"):
        read_features(tmp_path / "features.npy", ["1"])
    for text in ('{"image_ids": ["1"]}', "[]", "nonsense", "[" * 100_000):
        (tmp_path / "features.json").write_text(text)
        with pytest.raises(FlairError, match="is no file of features, or does not fit its ids"):
            read_features(tmp_path / "features.npy", ["1"])


def test_an_archive_of_arrays_is_no_file_of_features(tmp_path: Path) -> None:
    write_features(tmp_path / "features.npy", np.ones((1, 2), np.float32), ["1"], {})
    with open(tmp_path / "features.npy", "wb") as file:
        np.savez(file, features=np.ones((1, 2), np.float32))
    with pytest.raises(FlairError, match="is no file of features"):
        read_features(tmp_path / "features.npy", ["1"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_of_a_diverged_model_are_refused(tmp_path: Path, value: float) -> None:
    write_features(tmp_path / "features.npy", np.array([[1.0], [value]], np.float32), ["1", "2"], {})
    with pytest.raises(FlairError, match="no finite numbers"):
        read_features(tmp_path / "features.npy", ["1", "2"]).squared_distances(np.array([0]), np.array([1]))
