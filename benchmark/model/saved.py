"""Saved models: finding the .h5 files that a user names, and rebuilding the network of a file from the file itself.

A file of ours says its network, input size and arithmetic in an attribute. For older and for others' files the answer
comes from the run folder beside them, from Keras's own model description, or from the layer names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmark.model import specs
from benchmark.model.trainable import CLASSIFIER
from benchmark.run.files import read_flags
from benchmark.run.names import BEST_FILE, FLAGS_FILE, RUN_FILE, distinct, run_folder_of, short_names
from flair.dataset.catalog import IMAGE_SIZE
from flair.errors import FlairError
from flair.files import json_text

if TYPE_CHECKING:
    import tensorflow as tf

COMPUTE_DTYPES = ("float32", "bfloat16")
NETWORK_HELP = "MODULE:FUNCTION that a saved model's network comes from, which is imported; for such models only."
PUBLISHED_SIZE = (224, 224)
MOST_PIXELS = 4 * IMAGE_SIZE  # pixels, as of the flags of training; more would exhaust memory
_MOST_OUTPUTS = 1 << 15
_WHOLE_NUMBER = re.compile("[0-9]{1,9}")
_FIRST_LAYERS = {"initial_conv": "resnet18", "conv1": "cnn"}


class SavedModel(NamedTuple):
    """A saved model, as far as its file and its run folder tell.

    `image_size` is (height, width); `is_size_known` is False where nothing tells it and the published one is taken.
    `labels` are the names of its outputs and `binary_label` the one it was trained on, None where unknown.
    """

    path: Path
    name: str
    network: str
    image_size: tuple[int, int]
    is_size_known: bool
    num_outputs: int
    has_batch_statistics: bool
    compute_dtype: str
    run_dir: Path | None
    labels: tuple[str, ...] | None
    binary_label: str | None


def find_models(names: Sequence[str], network: str | None = None) -> list[SavedModel]:
    """The models of `--models`: .h5 or .keras files, run folders (their best.h5), folders of .h5 files or of runs.

    Each has a short name of its own, made from where the paths differ. `network` is as for `describe`; several are
    separated by commas.

    Raises:
      FlairError: there is no such file or folder, or it holds no model; one line that names it.
    """
    paths = [path for name in _rejoined(names) for path in _files(name)]
    found = distinct(paths)
    if not found:
        raise FlairError("--models: names no model; expected .h5 or .keras files, run folders or folders of .h5 files")
    # A run's best model is named after its run folder.
    is_of_run = [path.name == BEST_FILE and run_folder_of(path) == path.parent for path in found]
    names = short_names([path.parent if of_run else path for path, of_run in zip(found, is_of_run, strict=True)])
    models = [_describe(path, name, network) for path, name in zip(found, names, strict=True)]
    for one in (network or "").split(","):
        if one and one not in {model.network for model in models}:
            raise FlairError(f"--network={one}: none of the models is of this network; leave it out")
    return models


def describe(path: Path, network: str | None = None) -> SavedModel:
    """Reads everything but the weights.

    Args:
      network: the MODULE:FUNCTION that the user vouches for. A file of such a network is refused without it: loading
        a file that somebody sent must not import a module that the file names.

    Raises:
      FlairError: the file is not a Keras model file, not a network of this toolkit, or of another network.
    """
    found = _describe(path, path.stem, network)
    if network is not None and found.network != network:
        raise FlairError(f"--network={network}: {path} is of the network {found.network}; leave it out")
    return found


def _describe(path: Path, name: str, network: str | None) -> SavedModel:
    from benchmark.model.archive import open_model
    from flair.records.hdf5.objects import printable

    run_dir = run_folder_of(path)
    flags, labels = ({}, None) if run_dir is None else (read_flags(run_dir / FLAGS_FILE) or {}, _labels(run_dir))
    with open_model(path) as file:
        layers = [name for name, weights in file.layers.items() if weights]
        facts, has_batch_statistics = file.facts(), file.has_batch_statistics
        if not specs.is_function(str(facts.get("network"))):  # whose classes are known when it has been imported
            file.check_config()
        size = (
            _keras_size(file.keras_config(), path) or _flag_size(flags, run_dir)
            if facts.get("input_shape") is None
            else _checked_size(facts["input_shape"], path)
        )
        outputs = list(file.shapes(CLASSIFIER).values()) if CLASSIFIER in layers else []
    known = _network(facts, layers, path, network)
    if known is None or CLASSIFIER not in layers:
        found = ", ".join(map(printable, layers[:5])) or "no layer with weights"
        raise FlairError(
            f"{path}: is no network of this toolkit; expected a layer {CLASSIFIER} and one of "
            f"{', '.join(_FIRST_LAYERS)}, found {found}"
        )
    num_outputs = max(outputs, key=len)[-1] if any(outputs) else 0
    if not 0 < num_outputs <= _MOST_OUTPUTS:
        raise FlairError(f"{path}: its layer {CLASSIFIER} has {num_outputs:,} outputs; expected 1 to {_MOST_OUTPUTS:,}")
    return SavedModel(
        path=path,
        name=name,
        network=known,
        image_size=size or PUBLISHED_SIZE,
        is_size_known=size is not None,
        num_outputs=num_outputs,
        has_batch_statistics=has_batch_statistics,
        compute_dtype=_compute_dtype(facts, flags, path),
        run_dir=run_dir,
        labels=labels,
        binary_label=flags.get("binary_label"),
    )


def load(saved: SavedModel, image_size: tuple[int, int] | None = None) -> tf.keras.Model:
    """The network with its weights.

    Args:
      image_size: (height, width) other than the saved one.

    Raises:
      FlairError: a layer of the network has no fitting weights in the file.
    """
    from benchmark.model import loading, networks

    shape = (*_checked_size(image_size or saved.image_size, saved.path), 3)
    model = networks.build_model(
        saved.network, shape, saved.num_outputs, saved.has_batch_statistics, compute_dtype=saved.compute_dtype
    )
    report = loading.load_by_name(model, saved.path)
    if report.by_position:
        print(f"{saved.path}: {report}", flush=True)
    if report.skipped:
        layer, reason = next(iter(report.skipped.items()))
        raise FlairError(f"{saved.path}: does not fit the network {saved.network}: its layer {layer} {reason}")
    return model


def _network(facts: Mapping[str, Any], layers: Sequence[str], path: Path, trusted: str | None) -> str | None:
    """The network that a file says, or that its layers are of; None where it is none of ours."""
    said = facts.get("network")
    if said is None:
        return next((network for layer, network in _FIRST_LAYERS.items() if layer in layers), None)
    shown = json_text.shown(str(said))
    if not isinstance(said, str) or not said.isprintable():
        raise FlairError(f"{path}: says the network {shown}; expected {specs.NETWORK_FORMS}")
    if specs.is_function(said):
        if said not in (trusted or "").split(","):
            raise FlairError(
                f"{path}: is of the network {shown}, a function that has to be imported; if you trust that module, add "
                f"--network={said}" + (f" in place of --network={trusted}" if trusted else "")
            )
    elif not specs.is_keras(said) or specs.keras_name(said) not in specs.KERAS_NETWORKS:
        raise FlairError(f"{path}: says the network {shown}, which this version does not know")
    return said


def _rejoined(names: Sequence[str]) -> Iterator[str]:
    # The folders of a sweep have commas in their names, at which a list of names has been cut.
    rest = list(names)
    while rest:
        ends = range(1, len(rest) + 1)
        end = next((end for end in ends if os.path.exists(",".join(rest[:end]))), 1)
        yield ",".join(rest[:end])
        del rest[:end]


def _files(name: str) -> list[Path]:
    path = Path(name)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FlairError(
            f"--models={name}: no such file or folder; expected a .h5 or .keras file, a run folder or a folder"
        )
    if (path / "saved_model.pb").is_file():
        raise FlairError(
            f"--models={name}: is a SavedModel, a program that could do anything when it is loaded; give a .h5 or "
            ".keras file"
        )
    if (path / FLAGS_FILE).is_file():
        if not (path / BEST_FILE).is_file():
            raise FlairError(f"--models={name}: this run has no {BEST_FILE} yet; let it evaluate at least once")
        return [path / BEST_FILE]
    runs = sorted(flags.parent for flags in path.glob(f"*/{FLAGS_FILE}"))
    found = sorted(path.glob("*.h5")) or [run / BEST_FILE for run in runs if (run / BEST_FILE).is_file()]
    if not found:
        raise FlairError(f"--models={name}: holds no .h5 file, is no run folder and holds none with a {BEST_FILE}")
    return found


def _checked_size(size: Any, source: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width), as plain positive numbers for which a network can be built."""
    sides = list(size[:2]) if isinstance(size, list | tuple) else [size]
    if len(sides) != 2 or not all(type(side) is int and 0 < side <= MOST_PIXELS for side in sides):
        given = json_text.shown(str(size))
        raise FlairError(
            f"{source}: the model cannot have an input of {given} pixels; expected a height and a width from 1 to "
            f"{MOST_PIXELS}"
        )
    return sides[0], sides[1]


def _compute_dtype(facts: Mapping[str, Any], flags: Mapping[str, str], path: Path) -> str:
    dtype = facts.get("compute_dtype") or flags.get("compute_dtype", COMPUTE_DTYPES[0])
    if dtype not in COMPUTE_DTYPES:
        given = json_text.shown(str(dtype))
        raise FlairError(f"{path}: says the arithmetic {given}; expected {' or '.join(COMPUTE_DTYPES)}")
    return str(dtype)


def _keras_size(config: Any, path: Path) -> tuple[int, int] | None:
    """The input size in Keras's description of a whole model: of the input, or of what scales photos of any size."""
    for layer in _listed(_item(_item(config, "config"), "layers")):
        options = _item(layer, "config")
        shape = _listed(_item(options, "batch_input_shape"))
        if len(shape) == 4 and shape[1] and shape[2]:
            return _checked_size(shape[1:3], path)
        if _item(layer, "class_name") == "Resizing":
            return _checked_size([_item(options, "height"), _item(options, "width")], path)
    return None


def _item(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _flag_size(flags: Mapping[str, str], run_dir: Path | None) -> tuple[int, int] | None:
    sides = [flags.get(name, "") for name in ("image_height", "image_width")]
    if run_dir is None or not all(sides):
        return None
    return _checked_size([int(side) if _WHOLE_NUMBER.fullmatch(side) else side for side in sides], run_dir / FLAGS_FILE)


def _labels(run_dir: Path) -> tuple[str, ...] | None:
    path = run_dir / RUN_FILE
    if not path.is_file():
        return None
    try:
        labels = _item(json_text.read(path), "labels")
    except json_text.BadJson as error:
        raise FlairError(f"{path}: {error}; move it away to use the model without what it says") from None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        return None
    return tuple(labels)
