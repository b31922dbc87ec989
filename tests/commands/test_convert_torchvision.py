"""Converted torchvision weights against a ResNet-18 forward pass written in NumPy, in torch's own layout."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark import convert_torchvision
from benchmark.model import loading, networks, safetensors
from flair.errors import FlairError
from tests.support.bounded_memory import bounded_memory
from tests.support.commands import run
from tests.support.tensor_files import write_safetensors

CLASSES = 10


@pytest.fixture(scope="module")
def tensors():
    """Random weights under torchvision's names; the last classes fewer than ImageNet's, for speed."""
    rng = np.random.default_rng(0)
    result = {"conv1.weight": rng.normal(0, 0.1, (64, 3, 7, 7)), **_batch_norm(rng, "bn1", 64)}
    inputs = 64
    for stage, filters in enumerate((64, 128, 256, 512), start=1):
        for block in (0, 1):
            name = f"layer{stage}.{block}"
            for part, channels in ((1, inputs), (2, filters)):
                scale = np.sqrt(2 / (9 * channels))
                result[f"{name}.conv{part}.weight"] = rng.normal(0, scale, (filters, channels, 3, 3))
                result |= _batch_norm(rng, f"{name}.bn{part}", filters)
            if inputs != filters:
                result[f"{name}.downsample.0.weight"] = rng.normal(0, 0.1, (filters, inputs, 1, 1))
                result |= _batch_norm(rng, f"{name}.downsample.1", filters)
            inputs = filters
    result["fc.weight"], result["fc.bias"] = rng.normal(0, 0.05, (CLASSES, 512)), rng.normal(size=CLASSES)
    return {name: np.asarray(array, np.int64 if "tracked" in name else np.float32) for name, array in result.items()}


def _batch_norm(rng, name, channels):
    return {
        f"{name}.weight": rng.uniform(0.5, 1.5, channels),
        f"{name}.bias": rng.normal(0, 0.1, channels),
        f"{name}.running_mean": rng.normal(0, 0.1, channels),
        f"{name}.running_var": rng.uniform(0.5, 1.5, channels),
        f"{name}.num_batches_tracked": np.array(7),
    }


def _conv(x, weight, stride, padding):
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    size = weight.shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))[:, :, ::stride, ::stride]
    return np.einsum("nchwij,ocij->nohw", windows, weight, optimize=True)


def _forward(t, x):
    """torchvision's ResNet-18 in evaluation mode, [n, 3, h, w] standardized pixels to logits."""

    def norm(x, name):
        mean, var, weight, bias = (
            t[f"{name}.{part}"].reshape(1, -1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * weight + bias

    x = np.maximum(norm(_conv(x, t["conv1.weight"], 2, 3), "bn1"), 0)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    x = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2].max((-1, -2))
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            out = np.maximum(norm(_conv(x, t[f"{name}.conv1.weight"], stride, 1), f"{name}.bn1"), 0)
            out = norm(_conv(out, t[f"{name}.conv2.weight"], 1, 1), f"{name}.bn2")
            if stride == 2:
                x = norm(_conv(x, t[f"{name}.downsample.0.weight"], 2, 0), f"{name}.downsample.1")
            x = np.maximum(out + x, 0)
    return x.mean((2, 3)) @ t["fc.weight"].T + t["fc.bias"]


@pytest.fixture(scope="module")
def converted(tensors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    write_safetensors(folder / "model.safetensors", tensors, "F32")
    flags = (f"--weights={folder / 'model.safetensors'}", f"--output_file={folder / 'resnet18.h5'}")
    done = run("benchmark.convert_torchvision", *flags)
    assert "41 layers" in done.stdout
    return folder / "resnet18.h5"


def test_logits_equal_an_independent_forward_pass(tensors, converted):
    model = networks.build_model("resnet18", (64, 64, 3), CLASSES, pretrained_norm=True, seed=1)
    assert not loading.load_by_name(model, converted).skipped
    pixels = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    standardized = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    expected = _forward(tensors, standardized.transpose(0, 3, 1, 2))
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(model(pixels), expected, atol=1e-4 * np.abs(expected).max())


def test_keras_itself_loads_the_file_by_name(converted):
    model = networks.build_model("resnet18", (64, 64, 3), 17, pretrained_norm=True, seed=1)
    kernel = model.get_layer("classifier").kernel.numpy()
    model.load_weights(converted, by_name=True, skip_mismatch=True)
    with h5py.File(converted) as file:
        stored = file["layer3_downsample_norm/layer3_downsample_norm/moving_variance:0"][()]
    np.testing.assert_array_equal(model.get_layer("layer3_downsample_norm").moving_variance, stored)
    np.testing.assert_array_equal(model.get_layer("classifier").kernel, kernel)


@pytest.mark.parametrize(("dtype", "precision"), [("F16", 2**-10), ("BF16", 2**-7), ("F64", 0)])
def test_other_precisions_are_read(tmp_path, dtype, precision):
    array = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    write_safetensors(tmp_path / "a.safetensors", {"a": array}, dtype)
    np.testing.assert_allclose(safetensors.read(tmp_path / "a.safetensors")["a"], array, rtol=precision, atol=1e-4)


def test_other_networks_are_refused(tensors):
    with pytest.raises(FlairError, match=r"has no bn1\.weight, so it is no torchvision ResNet-18"):
        convert_torchvision.convert({name: t for name, t in tensors.items() if name != "bn1.weight"})
    wrong = {**tensors, "layer2.0.conv1.weight": np.zeros((128, 64, 1, 1), np.float32)}
    with pytest.raises(FlairError, match=r"layer2\.0\.conv1\.weight has the shape \(128, 64, 1, 1\); ResNet-18 has"):
        convert_torchvision.convert(wrong)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"a": ("F32", [2], [0, 8]), "b": ("F32", [2], [4, 12])}, "do not begin where another one's end"),
        ({"a": ("F32", [2], [0, 8]), "b": ("F32", [2], [12, 20])}, "do not begin where another one's end"),
        ({"a": ("F32", [2], [0, 8])}, "have 8 bytes, but 64 are there"),
        ({"a": ("F32", [18], [0, 72])}, "have 72 bytes, but 64 are there"),
        ({"a": ("F32", [1 << 40], [0, 1 << 42])}, "but 64 are there"),
        ({"a": ("F32", [3], [0, 8])}, "does not fit its bytes 0 to 8"),
        ({"a": ("F32", [-2, -1], [0, 8])}, "not whole numbers from 0 on"),
        ({"a": ("F32", [2.0], [0, 8])}, "not whole numbers from 0 on"),
        ({"a": ("F32", [True, 2], [0, 8])}, "not whole numbers from 0 on"),
        ({"a": ("F32", [2], [8, 0])}, "does not fit"),
        ({"a": ("F32", [2], [0, 8, 16])}, "not whole numbers from 0 on"),
        ({"a": ("F32", [1] * 40, [0, 4])}, "not whole numbers from 0 on"),
        ({"a": ("F8_E4M3", [8], [0, 8])}, "has the type 'F8_E4M3'; expected one of F64"),
        ({"a": ([], [8], [0, 8])}, "has the type"),
        ({"a\n\x1b[2J": ("?", [8], [0, 8])}, r"has the type '\?'"),
    ],
)
def test_tensors_that_cannot_be_are_refused_in_one_line(tmp_path, entries, words):
    header = {
        name: dict(zip(("dtype", "shape", "data_offsets"), entry, strict=True)) for name, entry in entries.items()
    }
    _refused(tmp_path, json.dumps(header).encode(), words)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"[" * 100_000, "nested too deep"),
        (b"[]", "not a JSON object"),
        (b'{"a": 3}', "has no dtype"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, %s]}}' % (b"9" * 5000), "larger than 64 bits"),
        (b'{"a": {}, "a": {}}', "stands twice"),
        (b"\xff{}", "not UTF-8"),
    ],
    ids=["deep", "list", "number", "digits", "twice", "bytes"],
)
def test_headers_that_cannot_be_are_refused_in_one_line(tmp_path, header, words):
    _refused(tmp_path, header, words)


def test_a_huge_header_is_refused_in_one_line(tmp_path):
    _refused(tmp_path, b"{}", "header is longer than the file", 1 << 60)


def _refused(folder, header, words, length=None):
    path = folder / "a.safetensors"
    path.write_bytes((length or len(header)).to_bytes(8, "little") + header + bytes(64))
    with bounded_memory(), pytest.raises(FlairError, match=words) as caught:
        safetensors.read(path)
    assert str(caught.value).startswith(f"{path}: is not a .safetensors file")
    assert str(caught.value).isprintable()


def test_tensors_that_no_network_can_compute_with_are_refused_by_name(tensors):
    for name, value in (("layer1.0.conv1.weight", np.nan), ("fc.bias", np.inf), ("bn1.running_var", -1.0)):
        wrong = {**tensors, name: np.full_like(tensors[name], value)}
        with pytest.raises(FlairError, match=rf"weights: {name} holds (numbers that are not|a variance below 0)"):
            convert_torchvision.convert(wrong)
    for wrong in (tensors["fc.bias"].astype(np.int32), np.float32(3)):
        with pytest.raises(FlairError, match=r"fc\.bias holds int32|fc\.(weight|bias) has the shape"):
            convert_torchvision.convert({**tensors, "fc.bias": np.asarray(wrong)})


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_files_are_refused_or_read_but_never_crash(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "a.safetensors"
    write_safetensors(path, {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(4, np.float32)})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        safetensors.read(path)
    except FlairError as error:
        assert "a.safetensors" in str(error)  # noqa: PT017 either outcome is right


def test_a_missing_file_is_one_line(tmp_path):
    done = run("benchmark.convert_torchvision", "--weights=/none", f"--output_file={tmp_path}/a.h5", code=1)
    assert "/none: no such file" in done.stderr
    assert not (tmp_path / "a.h5").exists()
