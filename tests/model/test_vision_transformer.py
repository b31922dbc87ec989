"""ViT with weights of timm's names, against an implementation in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from benchmark.model import loading, networks, vision_transformer
from benchmark.model.identity import network_digest
from benchmark.model.safetensors import TensorsFile
from benchmark.model.trainable import body_and_head, choose, num_weights
from flair.errors import FlairError
from tests.support.tensor_files import write_safetensors

PATCH, WIDTH, DEPTH, HEADS = 8, 24, 3, 4
SHAPE = (16, 24, 3)
_erf = np.vectorize(math.erf)


def tiny(input_shape):
    """A small ViT, as `vit_b16` is a large one."""
    return vision_transformer.vision_transformer(input_shape, PATCH, WIDTH, DEPTH, HEADS)


SPEC = f"{__name__}:tiny"


def _tensors(seed=0):
    """Random weights under the names of timm/models/vision_transformer.py, PyTorch's shapes."""
    rng = np.random.default_rng(seed)
    tokens = SHAPE[0] // PATCH * (SHAPE[1] // PATCH) + 1
    shapes = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, tokens, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
        "head.weight": (1000, WIDTH),
        "head.bias": (1000,),
    }
    dense = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH)}
    dense |= {"mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH)}
    for number in range(DEPTH):
        for name, shape in dense.items():
            shapes |= {f"blocks.{number}.{name}.weight": shape, f"blocks.{number}.{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{number}.{name}.weight": (WIDTH,), f"blocks.{number}.{name}.bias": (WIDTH,)}
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def _features(tensors, pixels):
    """The class token's features float64 [b, width] of pixels [b, h, w, 3], one photo, head and query at a time."""
    t = {name: array.astype(np.float64) for name, array in tensors.items()}

    def linear(x, name):
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * t[f"{name}.weight"] + t[f"{name}.bias"]

    def attention(x, name):
        query, key, value = np.split(linear(x, f"{name}.qkv"), 3, axis=-1)
        size, out = WIDTH // HEADS, np.empty_like(query)
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            for token in range(len(x)):
                scores = np.exp(key[:, part] @ query[token, part] / math.sqrt(size))
                out[token, part] = scores @ value[:, part] / scores.sum()
        return linear(out, f"{name}.proj")

    found = []
    for photo in pixels:
        scaled = (photo / 255.0 - 0.5) / 0.5
        kernel, bias = t["patch_embed.proj.weight"], t["patch_embed.proj.bias"]
        patches = [
            np.einsum("ocij,ijc->o", kernel, scaled[row : row + PATCH, column : column + PATCH]) + bias
            for row in range(0, SHAPE[0], PATCH)
            for column in range(0, SHAPE[1], PATCH)
        ]
        x = np.stack([t["cls_token"][0, 0], *patches]) + t["pos_embed"][0]
        for number in range(DEPTH):
            name = f"blocks.{number}"
            x = x + attention(norm(x, f"{name}.norm1"), f"{name}.attn")
            hidden = linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
            x = x + linear(hidden * 0.5 * (1 + _erf(hidden / math.sqrt(2))), f"{name}.mlp.fc2")
        found.append(norm(x, "norm")[0])
    return np.stack(found)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.3)])
def test_features_are_those_of_an_independent_implementation(tmp_path, dtype, tolerance):
    tensors = _tensors()
    model = networks.build_model(SPEC, SHAPE, 17, compute_dtype=dtype)
    report = loading.load_backbone(model, write_safetensors(tmp_path / "vit.safetensors", tensors))
    assert set(report.skipped) == {"classifier", "head"}
    pixels = np.random.default_rng(1).integers(0, 256, (3, *SHAPE)).astype(np.uint8)
    expected = _features(tensors, pixels.astype(np.float64))
    np.testing.assert_allclose(body_and_head(model)[0](pixels, training=False), expected, atol=tolerance)
    assert np.abs(expected).std() > 0.1


@pytest.mark.parametrize("extra", ["step", "_step", "running_mean", "pos_embed/pos_embed", "norm", "mean"])
def test_other_bare_names_are_skipped(tmp_path, extra):
    tensors = _tensors()
    if extra == "pos_embed/pos_embed":
        tensors[extra] = tensors.pop("pos_embed")
    else:
        tensors |= {extra: np.zeros(3, np.float32), "_step": np.zeros(2, np.float32)}
    tensors["cls_token:0"] = tensors.pop("cls_token")
    path = write_safetensors(tmp_path / "vit.safetensors", tensors)
    with TensorsFile(path) as file:
        assert not file.has_batch_statistics
    report = loading.load_backbone(networks.build_model(SPEC, SHAPE, 17), path)
    assert {"cls_token", "pos_embed", "norm"} <= set(report.loaded)


def test_weights_follow_from_the_seed_and_film_trains_the_norms():
    one, same, other = (networks.build_model(SPEC, SHAPE, 17, seed=seed) for seed in (1, 1, 2))
    for name in ("cls_token", "pos_embed", "blocks.0.attn.qkv"):
        weights = [model.get_layer(name).get_weights()[0] for model in (one, same, other)]
        np.testing.assert_array_equal(weights[0], weights[1])
        assert not np.array_equal(weights[0], weights[2])
    assert network_digest(one) == network_digest(same) != network_digest(other)
    assert num_weights(choose(one, "film")) == (2 * DEPTH + 1) * 2 * WIDTH + (WIDTH + 1) * 17


def test_vit_b16_has_the_published_number_of_weights(monkeypatch):
    # Nobody looks at the numbers, and so many take seconds to draw.
    monkeypatch.setattr(tf.keras.initializers.TruncatedNormal, "__call__", lambda _, shape, **__: tf.zeros(shape))
    model = vision_transformer.vit_b16((224, 224, 3))
    assert model.count_params() == 85_798_656  # 86,567,656 with the classifier of 1,000 classes
    assert model.output_shape == (None, 768)
    assert model.get_layer("pos_embed").get_weights()[0].shape == (1, 197, 768)
    tf.keras.backend.clear_session()


def test_sizes_that_do_not_fit_are_one_line(tmp_path):
    with pytest.raises(FlairError, match="it raised ValueError: photos of 20 x 24 pixels; expected multiples of 8"):
        networks.build_model(SPEC, (20, 24, 3), 17)
    model = networks.build_model(SPEC, (24, 24, 3), 17)
    path = write_safetensors(tmp_path / "vit.safetensors", _tensors())
    with pytest.raises(FlairError, match=r"pos_embed.* of shape \[1, 7, 24\], needs \[1, 10, 24\]"):
        loading.load_backbone(model, path)
