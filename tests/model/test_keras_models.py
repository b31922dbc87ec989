"""Saved models are Keras models: others load them without this toolkit, and see the same logits."""

from __future__ import annotations

import itertools
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorflow as tf

from benchmark.data.augmentation import resize
from benchmark.model import exporting, loading, networks, plain, specs, trainable, vision_transformer
from benchmark.model import saved as saved_model
from flair.errors import FlairError
from tests.support.commands import ROOT, assert_equal_weights, read_weights, run_program

SIZE = (48, 40, 3)
PHOTOS = np.random.default_rng(0).integers(0, 256, (3, *SIZE)).astype(np.float32)
# Name -> network, whether batch normalization is frozen, arithmetic, which weights train.
MODELS = {
    "frozen": ("cnn", True, "float32", "all"),
    "group": ("cnn", False, "float32", "film"),
    "half": ("cnn", True, "bfloat16", "head"),
    "keras": ("keras:MobileNetV3Small", False, "float32", "all"),
}
SAID = ("module", "class_name", "registered_name", "inbound_nodes")
LOAD = """
import sys
import numpy as np
import tensorflow as tf
photos = np.load("photos.npy")
for file in sys.argv[1:]:
    model = tf.keras.models.load_model(file)
    logits = model(photos, training=False)
    np.save(f"{file}.npy", logits)
    print(model.name, len(model.layers), np.array_equal(model(photos, training=True), logits))
assert not [name for name in sys.modules if name.partition(".")[0] in ("benchmark", "flair")]
"""


def build(name: str, seed: int = 3) -> tf.keras.Model:
    """A network of `MODELS` in which every number is different."""
    network, is_frozen, dtype, which = MODELS[name]
    model = networks.build_model(network, SIZE, 5, is_frozen, seed, dtype)
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if variable.shape.rank == 1:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return trainable.choose(model, which)


@pytest.fixture(scope="module")
def models() -> dict[str, tf.keras.Model]:
    """Every network of `MODELS`. Read only."""
    return {name: build(name) for name in MODELS}


@pytest.fixture(scope="module")
def folder(models: dict[str, tf.keras.Model], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every model, saved, and the photos."""
    folder = tmp_path_factory.mktemp("models")
    np.save(folder / "photos.npy", PHOTOS)
    for name, model in models.items():
        loading.save_model(model, folder / f"{name}.h5")
        assert loading.save_archive(model, folder / f"{name}.keras")
    return folder


@pytest.mark.slow
def test_keras_loads_them_without_our_code_and_gives_the_same_logits(
    folder: Path, models: dict[str, tf.keras.Model]
) -> None:
    files = sorted(path.name for path in folder.glob("*") if path.suffix in (".h5", ".keras"))
    done = run_program(LOAD, *files, cwd=folder)
    for file, line in zip(files, done.stdout.splitlines(), strict=True):
        model = models[file.partition(".")[0]]
        wanted = model(PHOTOS, training=False).numpy()
        assert line.split()[:2] == [model.name, str(len(model.layers) + 1)]
        np.testing.assert_allclose(np.load(folder / f"{file}.npy"), wanted, atol=1e-5 * np.abs(wanted).max())
        # Batch normalization in the file is frozen: training mode computes the same.
        assert line.split()[2] == "True" or MODELS[file.partition(".")[0]][0] != "cnn"


@pytest.mark.parametrize("name", MODELS)
def test_the_file_is_what_keras_itself_writes_of_its_own_layers(
    folder: Path, models: dict[str, tf.keras.Model], tmp_path: Path, name: str
) -> None:
    config = plain.legacy(plain.of_any_size(plain.description(models[name]) or {}))["config"]
    again = tf.keras.Model.from_config(config, custom_objects=plain.classes(models[name]))
    again.set_weights(models[name].get_weights())
    again.save(folder / "keras_own.h5.tmp", save_format="h5", include_optimizer=False)
    again.save(tmp_path / "own.keras")
    with zipfile.ZipFile(tmp_path / "own.keras") as keras, zipfile.ZipFile(folder / f"{name}.keras") as ours:
        assert keras.namelist() == ours.namelist()
        descriptions = [json.loads(archive.read("config.json"))["config"]["layers"] for archive in (keras, ours)]
        for one, other in zip(*descriptions, strict=True):
            assert {key: one[key] for key in SAID} == {key: other[key] for key in SAID}
            assert other["config"].items() <= one["config"].items()
        keras.extract("model.weights.h5", tmp_path / "keras")
        ours.extract("model.weights.h5", tmp_path / "ours")
    assert_equal_weights(tmp_path / "keras" / "model.weights.h5", tmp_path / "ours" / "model.weights.h5")
    with h5py.File(folder / f"{name}.h5") as ours, h5py.File(folder / "keras_own.h5.tmp") as keras:
        for key in ("layer_names", "backend", "keras_version"):
            assert np.array_equal(*(np.array(file["model_weights"].attrs[key], "S") for file in (ours, keras)))
    # Keras calls a weight by its layer twice, or once, depending on how the layer was made; a reader goes by the order.
    found = [
        {(path.split("/")[1:-1][0], path.rpartition("/")[2]): array for path, array in read_weights(file).items()}
        for file in (folder / f"{name}.h5", folder / "keras_own.h5.tmp")
    ]
    assert found[0].keys() == found[1].keys()
    assert all(np.array_equal(array, found[1][key]) for key, array in found[0].items())


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        *itertools.product(("frozen", "half"), (".h5", ".keras")),
        ("keras", ".keras"),
        pytest.param("keras", ".h5", marks=pytest.mark.slow),
    ],
)
def test_a_loaded_model_scales_photos_of_any_size_as_evaluation_does(
    folder: Path, models: dict[str, tf.keras.Model], name: str, suffix: str
) -> None:
    loaded, model = tf.keras.models.load_model(folder / f"{name}{suffix}"), models[name]
    for size in ((64, 64), (31, 90), SIZE[:2]):
        photos = np.random.default_rng(1).integers(0, 256, (2, *size, 3)).astype(np.float32)
        wanted = model(resize(photos, SIZE[:2]), training=False).numpy()
        np.testing.assert_allclose(loaded(photos, training=False), wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_what_keras_loads_and_saves_again_is_read_at_its_size(
    folder: Path, models: dict[str, tf.keras.Model], tmp_path: Path, suffix: str
) -> None:
    tf.keras.models.load_model(folder / f"frozen{suffix}").save(tmp_path / f"again{suffix}")
    found = saved_model.describe(tmp_path / f"again{suffix}")
    assert (found.network, found.image_size, found.is_size_known) == ("cnn", SIZE[:2], True)
    wanted = models["frozen"](PHOTOS, training=False)
    np.testing.assert_array_equal(saved_model.load(found)(PHOTOS, training=False), wanted)


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.parametrize("name", MODELS)
def test_we_read_both_formats(folder: Path, models: dict[str, tf.keras.Model], name: str, suffix: str) -> None:
    found = saved_model.describe(folder / f"{name}{suffix}")
    network, is_frozen, dtype, _ = MODELS[name]
    assert (found.network, found.image_size, found.compute_dtype) == (network, SIZE[:2], dtype)
    assert found.has_batch_statistics == is_frozen or network != "cnn"
    wanted = models[name](PHOTOS, training=False).numpy()
    np.testing.assert_array_equal(saved_model.load(found)(PHOTOS, training=False).numpy(), wanted)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_model_is_the_same_bytes(folder: Path, tmp_path: Path, name: str) -> None:
    model = build(name)
    loading.save_model(model, tmp_path / "again.h5")
    loading.save_archive(model, tmp_path / "again.keras")
    for suffix in (".h5", ".keras"):
        assert (tmp_path / f"again{suffix}").read_bytes() == (folder / f"{name}{suffix}").read_bytes()


def patches(shape: tuple[int, int, int]) -> tf.keras.Model:
    """A small ViT."""
    return vision_transformer.vision_transformer(shape, patch=8, width=16, depth=1, heads=2)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["keras:ConvNeXtTiny", "keras:ResNet50", "keras:RegNetY002", f"{__name__}:patches"])
def test_with_one_import_keras_loads_layers_that_are_not_its_own(network: str, tmp_path: Path) -> None:
    model = networks.build_model(network, SIZE, 5)
    np.save(tmp_path / "photos.npy", PHOTOS)
    loading.save_model(model, tmp_path / "a.h5")
    loading.save_archive(model, tmp_path / "a.keras")
    program = LOAD.replace("import sys", f"import sys\nsys.path.append({str(ROOT)!r})\nimport benchmark.flair_model")
    run_program(program.replace("\nassert not", "\n_ ="), "a.h5", "a.keras", cwd=tmp_path)
    wanted = model(PHOTOS, training=False).numpy()
    for suffix in (".h5", ".keras"):
        np.testing.assert_allclose(np.load(tmp_path / f"a{suffix}.npy"), wanted, atol=1e-5 * np.abs(wanted).max())
        saved_model.describe(tmp_path / f"a{suffix}", network if specs.is_function(network) else None)


def test_old_files_of_weights_alone_are_read(models: dict[str, tf.keras.Model], tmp_path: Path) -> None:
    model = models["frozen"]
    model.save_weights(tmp_path / "old.h5", save_format="h5")
    again = build("frozen", seed=4)
    assert not loading.load_by_name(again, tmp_path / "old.h5").skipped
    np.testing.assert_array_equal(again(PHOTOS), model(PHOTOS))


def test_a_head_alone_is_saved_too(models: dict[str, tf.keras.Model], tmp_path: Path) -> None:
    _, head = trainable.body_and_head(models["frozen"])
    loading.save_model(head, tmp_path / "head.h5")
    features = np.ones((2, *head.input_shape[1:]), np.float32)
    np.testing.assert_array_equal(tf.keras.models.load_model(tmp_path / "head.h5")(features), head(features))


class Mute(tf.keras.layers.Layer):
    """A layer that cannot say how it was made."""

    def __init__(self, made_of: object, **options: Any) -> None:
        super().__init__(**options)
        self.made_of = made_of


@pytest.mark.parametrize("made_of", [object(), 2])  # of arguments that JSON can say Keras makes up a configuration
def test_a_network_that_cannot_be_described_is_saved_as_weights(made_of: object, tmp_path: Path) -> None:
    pixels = tf.keras.Input(SIZE)
    x = tf.keras.layers.Conv2D(4, 3, name="conv")(Mute(made_of)(pixels))
    model = tf.keras.Model(pixels, tf.keras.layers.GlobalAveragePooling2D()(x), name="mute")
    loading.save_model(model, tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        assert "model_config" not in file.attrs and "layer_names" in file.attrs
    assert loading.load_by_name(model, tmp_path / "a.h5").loaded == ["conv"]
    (tmp_path / "a.keras").touch()  # of an earlier model, which nobody may take for this one
    assert not loading.save_archive(model, tmp_path / "a.keras")
    assert not (tmp_path / "a.keras").exists()


def twice(x: tf.Tensor) -> tf.Tensor:
    """An activation of somebody's."""
    return 2 * x


def of_functions(shape: tuple[int, int, int]) -> tf.keras.Model:
    """A network of functions, one of TensorFlow's and one of somebody's, that no stranger's file may name."""
    pixels = tf.keras.Input(shape)
    x = tf.keras.layers.Conv2D(4, 3, activation=twice, name="conv")(pixels)
    return tf.keras.Model(pixels, tf.keras.layers.GlobalAveragePooling2D()(tf.nn.leaky_relu(x)))


def test_a_network_of_ones_own_functions_reads_what_it_saved(models: dict[str, tf.keras.Model], tmp_path: Path) -> None:
    network = f"{__name__}:of_functions"
    model, again = (networks.build_model(network, SIZE, 3, seed=seed) for seed in (0, 1))
    loading.save_model(model, tmp_path / "a.h5")
    loading.save_archive(model, tmp_path / "a.keras")
    for suffix in (".h5", ".keras"):
        again.set_weights([0 * array for array in again.get_weights()])
        assert not loading.load_by_name(again, tmp_path / f"a{suffix}").skipped
        np.testing.assert_array_equal(again(PHOTOS), model(PHOTOS))
        with pytest.raises(FlairError, match=r"twice|leaky_relu|function"):
            loading.load_by_name(models["frozen"], tmp_path / f"a{suffix}")
    found = saved_model.describe(tmp_path / "a.h5", network)
    with pytest.raises(FlairError, match=r"cannot be written as savedmodel: .* take --format=safetensors"):
        exporting.export(model, found, "savedmodel", tmp_path / "folder", 0)  # Keras does not know `twice`
    exporting.export(model, found, "safetensors", tmp_path / "a.safetensors", 0)
