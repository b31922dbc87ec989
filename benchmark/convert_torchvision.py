"""Makes a pretrained resnet18.h5 from torchvision's public ImageNet weights, for --restore_model_path.

The input is a .safetensors file with torchvision's names (conv1.weight, layer1.0.bn1.running_mean, fc.bias, ...), such
as model.safetensors of timm/resnet18.tv_in1k. The output has the layer names of the published benchmark.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmark.model import safetensors
from benchmark.model.weights import check_values, write
from benchmark.run import command
from benchmark.run.flags import Flags, Role, Table, path
from flair.errors import FlairError
from flair.records.hdf5.objects import printable
from flair.terminal.paths import command_line
from flair.terminal.progress import duration

FLAGS: Table = (
    path("weights", None, "The .safetensors file to convert.", Role.RESULT, required=True),
    path("output_file", None, "The .h5 file to write.", Role.PLACE, required=True, was="output"),
)
_BATCH_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
_FILTERS = (64, 128, 256, 512)


def main(flags: Flags) -> None:
    """Reads, converts, writes, and says what to do next."""
    started = time.monotonic()
    layers = convert(safetensors.read(flags.weights), flags.weights)
    named = {
        name: {f"{name}/{weight}:0": array for weight, array in weights.items()} for name, weights in layers.items()
    }
    write(flags.output_file, named, {})
    count = sum(array.size for weights in layers.values() for array in weights.values())
    print(
        f"{flags.output_file}: {len(layers)} layers, {count:,} weights of {flags.weights}, "
        f"in {duration(time.monotonic() - started)}"
    )
    train = command_line("python -m benchmark.central_main", restore_model_path=flags.output_file)
    print(f"next: {train} --tfrecords_dir=DIR")


def convert(tensors: dict[str, np.ndarray], path: str | Path = "weights") -> dict[str, dict[str, np.ndarray]]:
    """Keras layers of the published ResNet-18 from torchvision's tensors: layer name -> weight name -> float32 array.

    Raises:
      FlairError: a tensor is missing or has another shape than ResNet-18's; `path` is named.
    """
    source = _Source(tensors, path)
    layers = {"initial_conv": source.conv("conv1", (64, 3, 7, 7)), "initial_norm": source.norm("bn1", 64)}
    inputs = 64
    for stage, filters in enumerate(_FILTERS, start=1):
        for block in (0, 1):
            name, torch_name = f"layer{stage}_block{block + 1}", f"layer{stage}.{block}"
            for part, channels in ((1, inputs), (2, filters)):
                layers[f"{name}_conv{part}_3x3"] = source.conv(f"{torch_name}.conv{part}", (filters, channels, 3, 3))
                layers[f"{name}_norm{part}"] = source.norm(f"{torch_name}.bn{part}", filters)
            if inputs != filters:
                shape = (filters, inputs, 1, 1)
                layers[f"layer{stage}_downsample_conv_1x1"] = source.conv(f"{torch_name}.downsample.0", shape)
                layers[f"layer{stage}_downsample_norm"] = source.norm(f"{torch_name}.downsample.1", filters)
            inputs = filters
    classes = tensors["fc.bias"].size if "fc.bias" in tensors else 0
    kernel = source.take("fc.weight", (classes, inputs)).T
    layers["classifier"] = {"kernel": kernel, "bias": source.take("fc.bias", (classes,))}
    return layers


class _Source(NamedTuple):
    tensors: dict[str, np.ndarray]
    path: str | Path

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in self.tensors:
            known = ", ".join(printable(known) for known in list(self.tensors)[:3])
            raise FlairError(f"{self.path}: has no {name}, so it is no torchvision ResNet-18; it has {known}, ...")
        if self.tensors[name].shape != shape:
            raise FlairError(f"{self.path}: {name} has the shape {self.tensors[name].shape}; ResNet-18 has {shape}")
        array = safetensors.float_array(self.tensors[name], name, self.path)
        check_values(array, "moving_variance" if name.endswith(".running_var") else name, f"{self.path}: {name}")
        return array

    def conv(self, name: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        # torch: [out, in, height, width]; Keras: [height, width, in, out].
        return {"kernel": self.take(f"{name}.weight", shape).transpose(2, 3, 1, 0)}

    def norm(self, name: str, channels: int) -> dict[str, np.ndarray]:
        return {keras: self.take(f"{name}.{torch}", (channels,)) for keras, torch in _BATCH_NORM.items()}


if __name__ == "__main__":
    command.run(main, FLAGS)
