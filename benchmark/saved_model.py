"""Saved models: finding the .h5 files that a user names, and rebuilding the network of a file from the file itself.

A file of ours says its network, input size and arithmetic in an attribute. For older and for others' files the answer
comes from the run folder beside them, from Keras's own model description, or from the layer names.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flair.errors import FlairError

if TYPE_CHECKING:
    import h5py
    import tensorflow as tf

FACTS_ATTRIBUTE = "flair_model"
FLAGS_FILE, RUN_FILE, BEST_FILE = "flags.txt", "run.json", "best.h5"
PUBLISHED_SIZE = (224, 224)
_LARGEST_SIDE = 1 << 14  # pixels; more is a damaged file, and would exhaust memory
_CLASSIFIER = "classifier"
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


def find_models(names: Sequence[str]) -> list[SavedModel]:
    """The models of `--models`: .h5 files, run folders (their best.h5), folders of .h5 files or else of run folders.

    Each has a short name of its own, made from where the paths differ.

    Raises:
      FlairError: there is no such file or folder, or it holds no model; one line that names it.
    """
    paths = [path for name in _rejoined(names) for path in _files(name)]
    found = distinct(paths)
    if not found:
        raise FlairError("--models: names no model; expected .h5 files, run folders or folders of .h5 files")
    places = [_display_path(path) for path in found]
    return [describe(path, name) for path, name in zip(found, short_names(places), strict=True)]


def describe(path: Path, name: str | None = None) -> SavedModel:
    """Reads everything but the weights.

    Raises:
      FlairError: the file is no Keras .h5 file, or no network of this toolkit.
    """
    import h5py

    run_dir = run_folder_of(path)
    flags, labels = ({}, None) if run_dir is None else (_flags(run_dir), _labels(run_dir))
    try:
        with h5py.File(path, "r") as file:
            facts_size, dtype = _facts(json.loads(file.attrs.get(FACTS_ATTRIBUTE, "{}")))
            keras_size = None if facts_size else _keras_size(file)
            weights = _weight_shapes(file.get("model_weights", file))
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
        raise FlairError(f"{path}: is not a Keras .h5 file ({_first_line(error)})") from None
    network = next((network for layer, network in _FIRST_LAYERS.items() if layer in weights), None)
    if network is None or _CLASSIFIER not in weights:
        raise FlairError(
            f"{path}: is no network of this toolkit; expected a layer {_CLASSIFIER} and one of "
            f"{', '.join(_FIRST_LAYERS)}, found {', '.join(list(weights)[:5]) or 'no layer with weights'}"
        )
    size = facts_size or keras_size or _flag_size(flags)
    return SavedModel(
        path=path,
        name=name or path.stem,
        network=network,
        image_size=size or PUBLISHED_SIZE,
        is_size_known=size is not None,
        num_outputs=int(next(iter(weights[_CLASSIFIER].values()))[-1]),
        has_batch_statistics=any("moving_mean" in weight for layer in weights.values() for weight in layer),
        compute_dtype=dtype or flags.get("compute_dtype", "float32"),
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
    from benchmark import flair_model

    shape = (*(image_size or saved.image_size), 3)
    model = flair_model.build_model(
        saved.network, shape, saved.num_outputs, saved.has_batch_statistics, compute_dtype=saved.compute_dtype
    )
    report = flair_model.load_by_name(model, saved.path)
    if report.skipped:
        layer, reason = next(iter(report.skipped.items()))
        raise FlairError(f"{saved.path}: does not fit the network {saved.network}: its layer {layer} {reason}")
    return model


def run_folder_of(path: Path) -> Path | None:
    """The run folder that a saved model belongs to: the one it lies in, or the one of its name beside it."""
    candidates = (path.parent, path.with_suffix(""))
    return next((folder for folder in candidates if (folder / FLAGS_FILE).is_file()), None)


def distinct(paths: Iterable[Path]) -> list[Path]:
    """The paths without those that name a file or folder again, as `a/../a/b.h5` does after `a/b.h5`."""
    found: dict[str, Path] = {}
    for path in paths:
        found.setdefault(os.path.abspath(path), path)
    return list(found.values())


def short_names(paths: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Names that tell distinct paths apart, without what they share at the front and what is not needed at the end.

    `.h5` is left out where nothing else has the name without it. A name is a relative path: results lie under it.

    >>> short_names(["/demo/central/cnn_17", "/demo/federated/cnn_17", "/demo/private/cnn_17"])
    ['central', 'federated', 'private']
    >>> short_names(["runs/a.h5", "runs/b.h5"]), short_names(["/runs/one/best"])
    (['a', 'b'], ['best'])
    >>> short_names(["runs/a.h5", "runs/a"])
    ['a.h5', 'a']
    """
    parts = [Path(os.path.abspath(path)).parts[1:] for path in paths]
    bare = [(*one[:-1], one[-1].removesuffix(".h5")) for one in parts]
    parts = bare if len(set(bare)) == len(parts) else parts
    columns = zip(*(one[:-1] for one in parts), strict=False)
    shared = len(list(itertools.takewhile(lambda column: len(set(column)) == 1, columns)))
    rests = [one[shared:] for one in parts]
    longest = max(map(len, rests), default=0)
    for length in range(1, longest + 1):
        names = ["/".join(rest[:length]) for rest in rests]
        if len(set(names)) == len(names):
            return names
    return ["/".join(one) for one in parts]


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
        raise FlairError(f"--models={name}: no such file or folder; expected a .h5 file, a run folder or a folder")
    if (path / FLAGS_FILE).is_file():
        if not (path / BEST_FILE).is_file():
            raise FlairError(f"--models={name}: this run has no {BEST_FILE} yet; let it evaluate at least once")
        return [path / BEST_FILE]
    runs = sorted(flags.parent for flags in path.glob(f"*/{FLAGS_FILE}"))
    found = sorted(path.glob("*.h5")) or [run / BEST_FILE for run in runs if (run / BEST_FILE).is_file()]
    if not found:
        raise FlairError(f"--models={name}: holds no .h5 file, is no run folder and holds none with a {BEST_FILE}")
    return found


def _display_path(path: Path) -> Path:
    return path.parent if path.name == BEST_FILE and (path.parent / FLAGS_FILE).is_file() else path


def _weight_shapes(root: h5py.Group) -> dict[str, dict[str, tuple[int, ...]]]:
    import h5py

    shapes: dict[str, dict[str, tuple[int, ...]]] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and len(item.shape) > 0:
            shapes.setdefault(name.partition("/")[0], {})[name] = tuple(item.shape)

    root.visititems(visit)
    return shapes


def _facts(facts: dict[str, Any]) -> tuple[tuple[int, int] | None, str | None]:
    """Input size and arithmetic, as a file of ours says them."""
    shape, dtype = facts.get("input_shape"), facts.get("compute_dtype")
    if shape is not None and not all(isinstance(side, int) and 0 < side <= _LARGEST_SIDE for side in shape[:2]):
        raise ValueError(f"its input_shape is {str(shape)[:60]}")
    if not isinstance(dtype, str | None):
        raise ValueError(f"its compute_dtype is {str(dtype)[:60]}")
    return None if shape is None else (shape[0], shape[1]), dtype


def _keras_size(file: h5py.File) -> tuple[int, int] | None:
    config = json.loads(file.attrs.get("model_config", "{}"))
    for layer in _layers(config):
        shape = layer.get("config", {}).get("batch_input_shape")
        if shape and len(shape) == 4 and shape[1] and shape[2]:
            return shape[1], shape[2]
    return None


def _layers(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from config.get("config", {}).get("layers", []) if isinstance(config.get("config"), dict) else []


def _flags(run_dir: Path) -> dict[str, str]:
    lines = (run_dir / FLAGS_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    return {name: value for name, _, value in (line.strip().removeprefix("--").partition("=") for line in lines)}


def _flag_size(flags: dict[str, str]) -> tuple[int, int] | None:
    with contextlib.suppress(KeyError, ValueError):
        return int(flags["image_height"]), int(flags["image_width"])
    return None


def _labels(run_dir: Path) -> tuple[str, ...] | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return tuple(json.loads((run_dir / RUN_FILE).read_text(encoding="utf-8"))["labels"])
    return None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
