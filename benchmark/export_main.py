"""Writes a saved model in a format of other tools, and checks that it gives the same logits.

--format=keras is Keras's own .keras file; savedmodel a TensorFlow SavedModel, whose `serve` takes pixels float32
[b, height, width, 3] from 0 to 255 and gives logits; safetensors the weights under Keras's names and in Keras's shapes;
and onnx an ONNX file, for which `make environment EXTRAS=onnx` brings what is needed. What was written is loaded again
and run on random photos; where its logits differ, nothing is left.
"""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

from benchmark.model.saved import NETWORK_HELP
from benchmark.run import command
from benchmark.run.flags import Flags, Role, Table, choice, integer, path, text
from flair.errors import FlairError
from flair.terminal.progress import duration

# Format -> how to load what was written.
_NEXT = {
    "keras": 'tf.keras.models.load_model("{path}")',
    "savedmodel": 'model = tf.saved_model.load("{path}"); model.serve(pixels)',
    "safetensors": 'safetensors.numpy.load_file("{path}"), or --backbone_weights={path}',
    "onnx": 'onnxruntime.InferenceSession("{path}").run(None, {{"pixels": pixels}})',
}
FLAGS: Table = (
    path("model", None, "Saved model: a .h5 or .keras file that training left.", Role.RESULT, required=True),
    text("network", None, NETWORK_HELP, Role.RESULT),
    choice("format", "keras", _NEXT, "What to write.", Role.RESULT),
    path("output_file", None, "File to write, for all formats but savedmodel.", Role.PLACE),
    path("output_dir", None, "Folder to write, for savedmodel; must not exist yet.", Role.PLACE),
    integer("seed", 0, "Seed of the photos that the check runs on.", Role.RESULT, least=0, most=2**48),
)


def main(flags: Flags) -> None:
    """Loads, writes, checks, and says what was made."""
    started = time.monotonic()
    output = _output(flags)
    from benchmark.model import exporting, saved

    found = saved.describe(Path(flags.model), flags.network)
    model = saved.load(found)
    difference, largest = exporting.export(model, found, flags.format, output, flags.seed)
    files = [output] if output.is_file() else [one for one in output.rglob("*") if one.is_file()]
    size = sum(one.stat().st_size for one in files)
    print(
        f"{output}: {found.network} with {found.num_outputs} outputs as {flags.format}, {size:,} bytes, in "
        f"{duration(time.monotonic() - started)}"
    )
    print(f"largest difference of a logit on random photos: {difference:.2g} (the largest logit is {largest:.2g})")
    print(f"next: {_NEXT[flags.format].format(path=str(output))}")


def _output(flags: Flags) -> Path:
    """Where to write, checked before anything heavy is imported."""
    is_folder = flags.format == "savedmodel"
    name, other = ("output_dir", "output_file") if is_folder else ("output_file", "output_dir")
    if flags[other] is not None:
        raise FlairError(f"--{other}={flags[other]}: --format={flags.format} writes to --{name}; give that")
    if flags[name] is None:
        raise FlairError(f"--format={flags.format}: give --{name}, where to write")
    output = Path(flags[name])
    suffix = "" if is_folder else f".{flags.format}"
    if not output.name.endswith(suffix):
        raise FlairError(f"--{name}={output}: expected a name that ends in {suffix}")
    if is_folder and output.exists():
        raise FlairError(f"--{name}={output}: is there already; give another folder or remove it")
    if not is_folder and output.is_dir():
        raise FlairError(f"--{name}={output}: is a folder; give the name of a file")
    if not Path(flags.model).is_file():
        raise FlairError(f"--model={flags.model}: no such file; expected a .h5 or .keras file that training saved")
    if output.exists() and output.samefile(flags.model):
        raise FlairError(f"--{name}={output}: is the --model itself; give another name")
    if flags.format == "onnx" and importlib.util.find_spec("tf2onnx") is None:
        raise FlairError("--format=onnx: the package tf2onnx is not there; type make environment EXTRAS=onnx")
    return output


if __name__ == "__main__":
    command.run(main, FLAGS)
