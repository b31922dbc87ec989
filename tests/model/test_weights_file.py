"""Files of weights that others wrote, damaged or made to do harm, as `load_by_name` and `describe` take them."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.model import loading, networks
from benchmark.model import saved as saved_model
from benchmark.model.normalization import FrozenBatchNormalization, GroupNormalization
from flair.errors import FlairError
from tests.support.bounded_memory import bounded_memory
from tests.support.damage import time_limit

NORM = ("gamma", "beta", "moving_mean", "moving_variance")
Layers = Mapping[str, Mapping[str, np.ndarray]]


@pytest.fixture(scope="module")
def model() -> tf.keras.Model:
    """conv1, frozen norm1 and classifier of four channels; tests load into it what they like."""
    inputs = tf.keras.Input((8, 8, 3))
    x = tf.keras.layers.Conv2D(4, 3, use_bias=False, name="conv1")(inputs)
    x = FrozenBatchNormalization(1e-5, name="norm1")(x)
    x = tf.keras.layers.GlobalAveragePooling2D(name="global_pooling")(x)
    return tf.keras.Model(inputs, tf.keras.layers.Dense(5, name="classifier")(x), name="tiny")


def layers_of(seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Random weights for `model`, every number different."""
    rng = np.random.default_rng(seed)
    shapes = {
        "conv1": {"kernel": (3, 3, 3, 4)},
        "norm1": dict.fromkeys(NORM, (4,)),
        "classifier": {"kernel": (4, 5), "bias": (5,)},
    }
    return {
        layer: {name: rng.uniform(0.5, 1.5, shape).astype(np.float32) for name, shape in weights.items()}
        for layer, weights in shapes.items()
    }


def write(path: Path, layers: Layers, form: str = "{layer}/{name}:0") -> Path:
    """A file in Keras's layout, every array by h5py's defaults."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in layers]
        for layer, weights in layers.items():
            group = file.create_group(layer)
            paths = [form.format(layer=layer, name=name) for name in weights]
            group.attrs["weight_names"] = [one.encode() for one in paths]
            for one, array in zip(paths, weights.values(), strict=True):
                group[one] = array
    return path


def weights_of(model: tf.keras.Model) -> dict[str, dict[str, np.ndarray]]:
    return {
        layer.name: {v.name.rpartition("/")[2].removesuffix(":0"): v.numpy() for v in layer.weights}
        for layer in model.layers
        if layer.weights
    }


def assert_same(found: Layers, wanted: Layers) -> None:
    assert {layer: set(weights) for layer, weights in found.items()} == {k: set(v) for k, v in wanted.items()}
    for layer, weights in wanted.items():
        for name, array in weights.items():
            np.testing.assert_array_equal(found[layer][name], array, f"{layer} {name}")


@pytest.mark.parametrize("form", ["{layer}/{name}:0", "{name}", "outer/{layer}/{name}:0"])
def test_weights_are_matched_by_name_in_whatever_order(model: tf.keras.Model, tmp_path: Path, form: str) -> None:
    layers = layers_of()
    for order in (NORM, sorted(NORM), NORM[::-1]):
        shuffled = {**layers, "norm1": {name: layers["norm1"][name] for name in order}}
        report = loading.load_by_name(model, write(tmp_path / "a.h5", shuffled, form))
        assert (report.loaded, report.skipped, report.by_position) == (list(layers), {}, {})
        assert_same(weights_of(model), layers)


def test_foreign_names_are_matched_by_position_and_the_report_says_so(model: tf.keras.Model, tmp_path: Path) -> None:
    layers = layers_of()
    foreign = {
        "conv1": {"w": layers["conv1"]["kernel"]},
        "norm1": dict(zip(("moving_variance", "scale", "offset", "mean"), range(4), strict=True)),
        "classifier": {"bias": layers["classifier"]["bias"], "weight": layers["classifier"]["kernel"]},
    }
    foreign["norm1"] = dict(
        zip(foreign["norm1"], (layers["norm1"][n] for n in (NORM[3], NORM[0], NORM[1], NORM[2])), strict=True)
    )
    report = loading.load_by_name(model, write(tmp_path / "a.h5", foreign))
    assert_same(weights_of(model), layers)
    assert report.by_position == {
        "conv1": "w as kernel",
        "norm1": "scale as gamma, offset as beta, mean as moving_mean",
        "classifier": "weight as kernel",
    }
    assert "by position, since their names are foreign: conv1 (w as kernel), norm1 (scale as gamma" in str(report)


def test_a_weight_of_a_known_name_is_never_taken_for_another_one(tmp_path: Path) -> None:
    inputs = tf.keras.Input((8, 8, 3))
    outputs = GroupNormalization(1, name="norm1")(tf.keras.layers.Conv2D(4, 3, name="conv1", use_bias=False)(inputs))
    model = tf.keras.Model(inputs, outputs)
    layers = layers_of()
    only_statistics = {name: layers["norm1"][name] for name in NORM[2:]}
    path = write(tmp_path / "a.h5", {"conv1": layers["conv1"], "norm1": only_statistics})
    report = loading.load_by_name(model, path)
    assert report.skipped == {"norm1": "has moving_mean, moving_variance, needs gamma, beta"}
    np.testing.assert_array_equal(model.get_layer("norm1").gamma, 1)


@pytest.mark.parametrize(
    ("layer", "name", "value", "words"),
    [
        ("conv1", "kernel", np.nan, "kernel of the layer conv1 holds numbers that are not finite"),
        ("norm1", "beta", np.inf, "beta of the layer norm1 holds numbers that are not finite"),
        ("classifier", "bias", 1e300, "bias of the layer classifier holds numbers that are not finite"),
        ("norm1", "moving_variance", -1.0, "moving_variance of the layer norm1 holds a variance below 0"),
    ],
)
def test_weights_that_cannot_be_computed_with_are_refused_by_name_and_nothing_is_loaded(
    model: tf.keras.Model, tmp_path: Path, layer: str, name: str, value: float, words: str
) -> None:
    layers = layers_of(1)
    layers[layer][name] = layers[layer][name].astype(np.float64 if value == 1e300 else np.float32)
    layers[layer][name].flat[2] = value
    before = weights_of(model)
    with pytest.raises(FlairError, match=rf"a\.h5: {words}"):
        loading.load_by_name(model, write(tmp_path / "a.h5", layers))
    assert_same(weights_of(model), before)


def _replaced(file: h5py.File, where: str = "conv1/conv1/kernel:0") -> tuple[h5py.Group, str]:
    parent, _, name = where.rpartition("/")
    del file[where]
    return file[parent], name


def _huge(file: h5py.File) -> None:
    group, name = _replaced(file)
    group.create_dataset(name, (90_000, 100_000), "f4")


def _huge_inside(file: h5py.File) -> None:
    group, name = _replaced(file)
    group.create_dataset(name, (3, 3, 3, 4), h5py.special_dtype(vlen=np.float32))


def _never_written(file: h5py.File) -> None:
    group, name = _replaced(file)
    group.create_dataset(name, (3, 3, 3, 4), "f4")


def _half_written(file: h5py.File) -> None:
    group, name = _replaced(file)
    group.create_dataset(name, (3, 3, 3, 4), "f4", chunks=(1, 3, 3, 4))[:2] = 1


def _text(file: h5py.File) -> None:
    group, name = _replaced(file)
    group[name] = np.full((3, 3, 3, 4), b"number")


def _complex(file: h5py.File) -> None:
    group, name = _replaced(file)
    group[name] = np.ones((3, 3, 3, 4), np.complex64)


def _compound(file: h5py.File) -> None:
    group, name = _replaced(file)
    group[name] = np.ones((3, 3, 3, 4), [("a", "f4"), ("b", "f4")])


def _references(file: h5py.File) -> None:
    group, name = _replaced(file)
    group.create_dataset(name, (3, 3, 3, 4), h5py.ref_dtype)[...] = file.ref


def _external_storage(file: h5py.File) -> None:
    secret = Path(file.filename).with_name("secret")
    secret.write_bytes(np.ones(108, np.float32).tobytes())
    group, name = _replaced(file)
    group.create_dataset(name, (3, 3, 3, 4), "f4", external=[(str(secret), 0, 432)])


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((3, 3, 3, 4), "f4")
    layout[...] = h5py.VirtualSource(_other(file), "x", (3, 3, 3, 4))
    group, name = _replaced(file)
    group.create_virtual_dataset(name, layout)


def _other(file: h5py.File) -> str:
    path = Path(file.filename).with_name("other.h5")
    with h5py.File(path, "w") as other:
        other["x"] = np.ones((3, 3, 3, 4), np.float32)
        other["g/conv1/kernel:0"] = np.ones((3, 3, 3, 4), np.float32)
        other["g"].attrs["weight_names"] = [b"conv1/kernel:0"]
    return str(path)


def _external_link(file: h5py.File) -> None:
    group, name = _replaced(file)
    group[name] = h5py.ExternalLink(_other(file), "x")


def _external_layer(file: h5py.File) -> None:
    del file["conv1"]
    file["conv1"] = h5py.ExternalLink(_other(file), "g")


def _external_root(file: h5py.File) -> None:
    file["model_weights"] = h5py.ExternalLink(_other(file), "/")


def _soft_link(file: h5py.File) -> None:
    group, name = _replaced(file)
    group[name] = h5py.SoftLink("/classifier/classifier/kernel:0")


def _gzip_bomb(file: h5py.File) -> None:
    group, name = _replaced(file)
    shape = (3, 3, 3, 4)
    dataset = group.create_dataset(name, shape, "f4", chunks=shape, compression="gzip")
    dataset.id.write_direct_chunk((0,) * 4, zlib.compress(bytes(1 << 24), 9)[:850])


def _large_bomb(file: h5py.File) -> None:
    """An eighth of the bytes that the chunk has unpacked, but they unpack to more than a hundred times as much."""
    kernel = np.ones((4, 150_000), np.float32)
    group, name = _replaced(file, "classifier/classifier/kernel:0")
    dataset = group.create_dataset(name, kernel.shape, "f4", chunks=kernel.shape, compression="gzip")
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1 << 24)) for _ in range(18)) + packer.flush()
    dataset.id.write_direct_chunk((0, 0), packed)


def _huge_chunk(file: h5py.File) -> None:
    group, name = _replaced(file)
    shape, chunks = (3, 3, 3, 4), (30, 30, 300, 4000)
    dataset = group.create_dataset(name, shape, "f4", maxshape=(None,) * 4, chunks=chunks, compression="gzip")
    dataset.id.write_direct_chunk((0,) * 4, zlib.compress(bytes(1000)))


def _unknown_filter(file: h5py.File) -> None:
    group, name = _replaced(file)
    group.create_dataset(name, data=np.ones((3, 3, 3, 4), np.float32), compression="lzf")


def _cycle(file: h5py.File) -> None:
    del file["norm1"]
    file["norm1"] = file["/"]
    file.attrs["weight_names"] = [("norm1/" * 300 + name).encode() for name in ("x", "y", "z", "gamma:0")]


def _no_array(file: h5py.File) -> None:
    group, name = _replaced(file)
    group.create_group(name)


def _null(file: h5py.File) -> None:
    group, name = _replaced(file)
    group[name] = h5py.Empty("f4")


def _many_names(file: h5py.File) -> None:
    file["conv1"].attrs.create("weight_names", np.array([b"a%d" % i for i in range(6000)]))


def _names_twice(file: h5py.File) -> None:
    file["norm1"].attrs["weight_names"] = [f"{part}/gamma:0".encode() for part in ("norm1", "x", "y", "z")]


def _layers_twice(file: h5py.File) -> None:
    file.attrs["layer_names"] = [b"conv1", b"norm1", b"conv1"]


def _not_utf8(file: h5py.File) -> None:
    file.attrs["layer_names"] = np.array([b"conv1", b"n\xf6rm"])


def _numbers_for_names(file: h5py.File) -> None:
    file.attrs["layer_names"] = np.arange(5)


def _references_for_names(file: h5py.File) -> None:
    file["conv1"].attrs.create("weight_names", np.array([file.ref] * 2, h5py.ref_dtype), dtype=h5py.ref_dtype)


def _odd_names(file: h5py.File) -> None:
    file["conv1"].attrs["weight_names"] = [b"../\x1b[2J\n"]


def _absolute_name(file: h5py.File) -> None:
    file["conv1"].attrs["weight_names"] = [b"/conv1/conv1/kernel:0"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_huge_inside, "not floating-point"),
        (_never_written, "not written whole"),
        (_half_written, "not written whole"),
        (_text, "not floating-point"),
        (_complex, "not floating-point"),
        (_compound, "not floating-point"),
        (_references, "not floating-point"),
        (_external_storage, "other files"),
        (_virtual, "other files"),
        (_external_link, "is a link"),
        (_external_layer, "is a link"),
        (_external_root, "is a link"),
        (_soft_link, "is a link"),
        (_gzip_bomb, "unpacks to more"),
        (_huge_chunk, "chunks of"),
        (_unknown_filter, "packed in another way"),
        (_cycle, "has no"),
        (_no_array, "is not an array"),
        (_null, "is not an array"),
        (_names_twice, "has the weight gamma twice"),
        (_layers_twice, "lists conv1 twice"),
        (_not_utf8, "not UTF-8"),
        (_numbers_for_names, "is not text"),
        (_references_for_names, "is not text"),
        (_odd_names, "has no"),
        (_absolute_name, "has no"),
    ],
)
def test_what_a_weights_file_must_not_hold_is_refused_in_one_line(
    model: tf.keras.Model, tmp_path: Path, change: Callable[[h5py.File], None], words: str
) -> None:
    path = write(tmp_path / "a.h5", layers_of())
    with h5py.File(path, "r+") as file:
        change(file)
    with bounded_memory(), pytest.raises(FlairError, match=words) as caught:
        loading.load_by_name(model, path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("change", "layer", "words"),
    [
        (_huge, "conv1", r"has shapes [(90000, 100000)], needs [(3, 3, 3, 4)]"),
        (_many_names, "conv1", "has a0, a1, a2, a3, a4, a5 and 5,994 more, needs kernel"),
        (_large_bomb, "classifier", r"has shapes [(4, 150000), (5,)], needs [(4, 5), (5,)]"),
    ],
)
def test_a_layer_that_does_not_fit_is_skipped_without_being_read(
    model: tf.keras.Model, tmp_path: Path, change: Callable[[h5py.File], None], layer: str, words: str
) -> None:
    path = write(tmp_path / "a.h5", layers_of())
    with h5py.File(path, "r+") as file:
        change(file)
    with bounded_memory():
        report = loading.load_by_name(model, path)
    assert report.skipped == {layer: words}


def test_packed_weights_are_read(model: tf.keras.Model, tmp_path: Path) -> None:
    layers = layers_of()
    path = write(tmp_path / "a.h5", layers)
    with h5py.File(path, "r+") as file:
        group, name = _replaced(file)
        group.create_dataset(
            name, data=layers["conv1"]["kernel"], chunks=(2, 2, 2, 3), compression="gzip", shuffle=True, fletcher32=True
        )
        group, name = _replaced(file, "norm1/norm1/gamma:0")
        group.create_dataset(name, data=layers["norm1"]["gamma"].astype(np.float64))
    assert not loading.load_by_name(model, path).skipped
    assert_same(weights_of(model), layers)


@pytest.mark.parametrize(
    ("attribute", "text", "words"),
    [
        ("flair_model", json.dumps({"input_shape": [16384, 16384, 3]}), r"input of '\[16384, 16384, 3\]'"),
        ("flair_model", json.dumps({"input_shape": [1025, 64, 3]}), "from 1 to 1024"),
        ("flair_model", json.dumps({"input_shape": [True, 64, 3]}), "input of"),
        ("flair_model", json.dumps({"input_shape": "64"}), "input of"),
        ("flair_model", json.dumps({"input_shape": [64, 64, 3], "compute_dtype": "float8"}), "arithmetic 'float8'"),
        ("flair_model", "[" * 100_000, "nested too deep"),
        ("flair_model", '{"input_shape": [%s]}' % ("9" * 5000), "larger than 64 bits"),
        ("model_config", "[" * 60_000, "nested too deep"),
        ("model_config", '{"config": {"layers": [{"config": {"batch_input_shape": [null, 9e9, 7, 3]}}]}}', "input of"),
    ],
    ids=["large", "larger", "true", "text", "dtype", "deep", "digits", "deep config", "config"],
)
def test_a_model_that_says_impossible_things_of_itself_is_refused(
    tmp_path: Path, attribute: str, text: str, words: str
) -> None:
    path = write(tmp_path / "a.h5", layers_of())
    with h5py.File(path, "r+") as file:
        file.attrs[attribute] = text
    with bounded_memory(), pytest.raises(FlairError, match=words) as caught:
        saved_model.describe(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_flags_beside_a_model_may_not_say_impossible_things_either(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", layers_of())
    for lines, words in (
        ("--image_height=16384\n--image_width=64\n", "input of"),
        (f"--image_height={'9' * 5000}\n--image_width=64\n", "input of"),
        ("--compute_dtype=float8\n", "arithmetic 'float8'"),
    ):
        (tmp_path / "flags.txt").write_text(lines)
        with pytest.raises(FlairError, match=words):
            saved_model.describe(path)
    (tmp_path / "flags.txt").write_text("--model=cnn\n")
    (tmp_path / "run.json").write_text('{"labels": ' + "[" * 100_000)
    with pytest.raises(FlairError, match=r"run\.json: lists and objects are nested too deep"):
        saved_model.describe(path)


def test_a_classifier_of_impossibly_many_outputs_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", layers_of())
    with h5py.File(path, "r+") as file:
        group, name = _replaced(file, "classifier/classifier/kernel:0")
        group.create_dataset(name, (4, 10**9), "f4", chunks=(4, 1000))
    with pytest.raises(FlairError, match="1,000,000,000 outputs; expected 1 to 32,768"):
        saved_model.describe(path)


def test_a_changed_byte_of_a_saved_model_is_seen(model: tf.keras.Model, tmp_path: Path) -> None:
    """In the weights, where nothing else would tell, and in what the file says of its network."""
    loading.save_model(model, tmp_path / "a.h5")
    good = (tmp_path / "a.h5").read_bytes()
    number = struct.pack("<f", float(model.get_layer("conv1").kernel.numpy().flat[5]))
    for old, new in ((number, bytes([number[0] ^ 1]) + number[1:]), (b'"input_shape": [8', b'"input_shape": [9')):
        assert good.count(old) == 1
        (tmp_path / "b.h5").write_bytes(good.replace(old, new))
        with pytest.raises(FlairError, match=r"b\.h5: .*it does not have the checksum that it was saved with"):
            loading.load_by_name(model, tmp_path / "b.h5")


@pytest.fixture(scope="module")
def saved(model: tf.keras.Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes, Layers]:
    """The bytes of a model of ours and of a foreign file with the same weights."""
    folder, layers = tmp_path_factory.mktemp("saved"), layers_of(3)
    foreign = write(folder / "foreign.h5", layers)
    loading.load_by_name(model, foreign)
    loading.save_model(model, folder / "ours.h5")
    return (folder / "ours.h5").read_bytes(), foreign.read_bytes(), layers


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused_or_loads_what_was_saved(
    model: tf.keras.Model,
    saved: tuple[bytes, bytes, Layers],
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
) -> None:
    *files, layers = saved
    is_ours = data.draw(st.booleans())
    good = files[0 if is_ours else 1]
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(good) - 1) | st.integers(0, 4000))
        damaged[at % len(good)] ^= data.draw(st.integers(1, 255))
    if data.draw(st.integers(0, 9)) == 0:
        del damaged[data.draw(st.integers(0, len(good) - 1)) :]
    path = tmp_path_factory.getbasetemp() / "damaged.h5"
    path.write_bytes(damaged)
    for layer in model.layers:
        layer.set_weights([np.zeros_like(array) for array in layer.get_weights()])
    try:
        with bounded_memory():
            report = loading.load_by_name(model, path)
    except FlairError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017 - either outcome is right
        assert str(error).isprintable()  # noqa: PT017
        return
    found = {layer: weights for layer, weights in weights_of(model).items() if layer in report.loaded}
    if is_ours:
        assert_same(found, {layer: weights for layer, weights in layers.items() if layer in report.loaded})
    elif not report.by_position:
        # A changed number of a foreign file cannot be noticed; that weights change places can.
        moved = [
            (layer, name)
            for layer, weights in found.items()
            for name, array in weights.items()
            if np.mean(array != layers[layer][name]) > 0.8
        ]
        assert not moved


def share_first_value(path: Path, length: int, count: int) -> None:
    """Lets the next `count` references lead to where the first one, to a value of `length`, leads."""
    data = bytearray(path.read_bytes())
    place = data.find(struct.pack("<I", length))
    while data[int.from_bytes(data[place + 4 : place + 12], "little") :][:4] != b"GCOL":
        place = data.index(struct.pack("<I", length), place + 1)
    data[place : place + 16 * count] = data[place : place + 16] * count
    path.write_bytes(data)


def _many_names_in_one_place(path: Path) -> None:
    """A megabyte of text under 3,000 names."""
    with h5py.File(write(path, layers_of()), "r+") as file:
        names = ["x" * 1_000_000, *(f"y{number}" for number in range(2999))]
        file.attrs.create("layer_names", names, dtype=h5py.string_dtype())
    share_first_value(path, 1_000_000, 3000)


def _many_arrays_in_one_place(path: Path) -> None:
    """Eight megabytes under 400 references, below a checksum that wants all of them."""
    with h5py.File(write(path, layers_of()), "r+") as file:
        file.attrs["flair_model"] = json.dumps({"crc32c": 1})
        del file["conv1/conv1/kernel:0"]
        arrays = file.create_dataset("conv1/conv1/kernel:0", (400,), dtype=h5py.vlen_dtype(np.uint8))
        for number in range(400):
            arrays[number] = np.full(8 << 20 if number == 0 else 5, 7, np.uint8)
    share_first_value(path, 8 << 20, 400)


def _many_layers_in_one_place(path: Path) -> None:
    """One layer of 4 MB under 60,000 names, a quarter of a terabyte to a checksum."""
    with h5py.File(path, "w", libver="latest") as file:
        group = file.create_group("conv1")
        group["kernel:0"] = np.zeros((1024, 1024), np.float32)
        group.attrs["weight_names"] = [b"kernel:0"]
        names = [f"conv{number}" for number in range(2, 60_000)]
        for name in names:
            file[name] = group
        file.attrs["layer_names"] = [name.encode() for name in ("conv1", *names)]
        file.attrs["flair_model"] = json.dumps({"crc32c": 1})


def _endless_path(path: Path) -> None:
    with h5py.File(path, "w", libver="latest") as file:
        group = file.create_group("conv1")
        group["self"] = group
        group["kernel:0"] = np.zeros((3, 3, 3, 4), np.float32)
        group.attrs["weight_names"] = [b"self/" * 1_500_000 + b"kernel:0"]
        file.attrs["layer_names"] = [b"conv1"]


def _long_name(path: Path) -> None:
    with h5py.File(write(path, layers_of()), "r+") as file:
        file.attrs["layer_names"] = ["é".encode() * 20_000]


def _damaged_heap(path: Path) -> None:
    with h5py.File(write(path, layers_of()), "r+") as file:
        file.attrs["flair_model"] = json.dumps({"name": "tiny"})  # of any length, as older versions have it
    data = path.read_bytes()
    start = data.index(b"GCOL") + 16
    path.write_bytes(data[:start] + bytes(16) + data[start + 16 :])


@pytest.mark.timeout(60)  # where the library goes round for ever nothing else ends it
@pytest.mark.parametrize(
    "make",
    [
        _many_names_in_one_place,
        _many_arrays_in_one_place,
        _many_layers_in_one_place,
        _endless_path,
        _long_name,
        _damaged_heap,
    ],
)
def test_a_small_file_takes_neither_hours_nor_all_memory(
    model: tf.keras.Model, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "a.h5")
    with bounded_memory(400_000_000), time_limit(5), pytest.raises(FlairError) as caught:
        loading.load_by_name(model, tmp_path / "a.h5")
    assert str(tmp_path / "a.h5") in str(caught.value)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1500


@pytest.mark.timeout(120)
def test_no_flipped_bit_of_a_heap_holds_the_reader_of_a_file_of_ours_for_ever(tmp_path: Path) -> None:
    """Keras keeps its version as a text of any length; 20 of 80 such flips could only be ended by SIGKILL."""
    model = networks.build_model("cnn", (32, 32, 3), 5)
    loading.save_model(model, tmp_path / "a.h5")
    data, whole = (tmp_path / "a.h5").read_bytes(), weights_of(model)
    start = data.index(b"GCOL")
    places, place = [*range(start, start + 16)], start + 16
    while place < start + 4096:  # the headers of its objects
        places += range(place, place + 16)
        index, size = struct.unpack_from("<H6xQ", data, place)
        place += size if index == 0 else 16 + -(-size // 8) * 8
    for number, place in enumerate(places):
        flipped = bytes([data[place] ^ 1 << number % 8])
        (tmp_path / "b.h5").write_bytes(data[:place] + flipped + data[place + 1 :])
        try:
            loading.load_by_name(model, tmp_path / "b.h5")
        except FlairError:
            continue
        assert_same(weights_of(model), whole)
