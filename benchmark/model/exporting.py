"""Writes a model for other tools, and looks whether what was written gives the model's logits.

Everything is written in Keras's own layers (`plain`), so that no tool needs ours.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from benchmark.model import networks, plain, safetensors, specs
from benchmark.model.loading import load_by_name, save_archive
from benchmark.model.saved import SavedModel
from benchmark.model.weights import weight_name
from benchmark.run.seeds import derive_generator
from flair.errors import FlairError
from flair.files.atomic import beside, destination, remove, sync
from flair.records.preparation import new_folder

_OPSET = 17  # of ONNX, of 2022
_PHOTOS = 4
# Of the largest logit: one pass of float32 and of bfloat16 through a deep network in another order of operations.
_TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2}
_Logits = Callable[[np.ndarray], Any]


def export(model: tf.keras.Model, saved: SavedModel, kind: str, output: Path, seed: int) -> tuple[float, float]:
    """Writes the model as `output`, whole or not at all, a folder for `savedmodel` and else a file.

    Returns:
      The largest difference of a logit on random photos between the model and what was written, and the largest logit.

    Raises:
      FlairError: it differs by more than arithmetic in another order does, or a tool for the format is missing.
    """
    output = output if kind == "savedmodel" else destination(output)
    pixels = derive_generator(seed, "export").integers(0, 256, (_PHOTOS, *model.input_shape[1:]))
    photos = pixels.astype(np.float32)
    wanted = model(photos, training=False).numpy()
    unfinished = beside(output, "unfinished")
    with new_folder(unfinished, output):
        made = unfinished / f"model.{kind}"
        try:
            logits = _WRITERS[kind](model, saved, made)
        except (LookupError, NotImplementedError, TypeError, ValueError) as error:
            if not specs.is_function(saved.network):
                raise
            raise FlairError(
                f"--network={saved.network}: cannot be written as {kind}: {specs.one_line(error)}; make its "
                "layers and functions known to Keras (docs/networks.md), or take --format=safetensors"
            ) from error
        difference = float(np.abs(np.asarray(logits(photos)) - wanted).max())
        largest = float(np.abs(wanted).max())
        # A difference that is not a number is not within the bound.
        if not difference <= _TOLERANCES[saved.compute_dtype] * max(1.0, largest):
            raise FlairError(
                f"{saved.path}: written as {kind}, its logits differ by {difference:.3g} on random photos, where the "
                f"largest is {largest:.3g}; nothing was left at {output}"
            )
        for path in [made, *made.rglob("*")]:
            if path.is_file():
                with open(path, "rb") as file:
                    sync(file.fileno())
        os.replace(made, output)
        remove(unfinished)
    return difference, largest


def _keras(model: tf.keras.Model, _saved: SavedModel, path: Path) -> _Logits:
    if not save_archive(model, path):
        raise TypeError("it has a layer without get_config")
    loaded = tf.keras.models.load_model(path, custom_objects=plain.classes(model), compile=False)
    return lambda photos: loaded(photos, training=False)


def _savedmodel(model: tf.keras.Model, _saved: SavedModel, path: Path) -> _Logits:
    again = plain.rebuilt(model)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # which would name the hidden folder
            again.export(str(path))
    except tf.errors.OpError as error:
        raise FlairError(f"{path.parent}: TensorFlow cannot write there ({specs.one_line(error)})") from None
    loaded = tf.saved_model.load(str(path))
    return lambda photos: loaded.serve(photos)  # which lives no longer than what was loaded


def _safetensors(model: tf.keras.Model, saved: SavedModel, path: Path) -> _Logits:
    named = {
        f"{layer}/{weight_name(name)}": array
        for layer, weights in plain.weights(model).items()
        for name, array in weights.items()
    }
    safetensors.write(path, named)
    shape, outputs = model.input_shape[1:], model.output_shape[-1]
    again = networks.build_model(saved.network, shape, outputs, saved.has_batch_statistics, 1, saved.compute_dtype)
    load_by_name(again, path)
    return lambda photos: again(photos, training=False)


def _onnx(model: tf.keras.Model, _saved: SavedModel, path: Path) -> _Logits:
    tf2onnx, reference = (importlib.import_module(name) for name in ("tf2onnx", "onnx.reference"))
    signature = [tf.TensorSpec([None, *model.input_shape[1:]], tf.float32, name="pixels")]
    tf2onnx.convert.from_keras(plain.rebuilt(model), signature, opset=_OPSET, output_path=str(path))
    evaluator = reference.ReferenceEvaluator(str(path))
    return lambda photos: evaluator.run(None, {"pixels": photos})[0]


_WRITERS: dict[str, Callable[[tf.keras.Model, SavedModel, Path], _Logits]] = {
    "keras": _keras,
    "savedmodel": _savedmodel,
    "safetensors": _safetensors,
    "onnx": _onnx,
}
