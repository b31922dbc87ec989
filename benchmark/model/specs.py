"""What --model may say: our networks, keras:NAME, MODULE:FUNCTION; imports no TensorFlow."""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import sys
from typing import NamedTuple

from flair.errors import FlairError

OURS = ("resnet18", "cnn")
IMAGENET = "imagenet"  # among what --backbone_weights may say
NETWORK_FORMS = "resnet18, cnn, keras:NAME or MODULE:FUNCTION"
_KERAS = "keras:"
_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_NOT_IN_A_FILE_NAME = re.compile(r"[^A-Za-z0-9_.-]")


class Pixels(NamedTuple):
    """What a network of tf.keras.applications does with pixels first: (pixel / 255 - mean) / std, of a channel.

    `is_inside` says that Keras has it as layers of the network, which `include_preprocessing=False` leaves out.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    is_bgr: bool = False
    is_inside: bool = False


_IMAGENET = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_SIGNED = Pixels((0.5,) * 3, (0.5,) * 3)  # -1 to 1
_SIGNED_BY_128 = Pixels((128 / 255,) * 3, (128 / 255,) * 3, is_inside=True)
_UNIT = Pixels((0.0,) * 3, (1.0,) * 3, is_inside=True)  # 0 to 1
# The mean of ImageNet in 0 to 255, blue first, as Caffe's networks had it.
_CAFFE = Pixels((103.939 / 255, 116.779 / 255, 123.68 / 255), (1 / 255,) * 3, is_bgr=True)


def _networks(pixels: Pixels, prefix: str, sizes: str, suffix: str = "") -> dict[str, Pixels]:
    return {f"{prefix}{size}{suffix}": pixels for size in sizes.split()}


# As Keras 2.14 has them: the function preprocess_input of each module, or the first layers of the network.
KERAS_NETWORKS = {
    **_networks(_IMAGENET._replace(is_inside=True), "ConvNeXt", "Tiny Small Base Large XLarge"),
    **_networks(_IMAGENET, "DenseNet", "121 169 201"),
    **_networks(_IMAGENET, "EfficientNet", "B0 B1 B2 B3 B4 B5 B6 B7"),
    **_networks(_IMAGENET._replace(is_inside=True), "EfficientNetV2", "B0 B1 B2 B3"),
    **_networks(_SIGNED_BY_128, "EfficientNetV2", "S M L"),
    **_networks(_SIGNED, "Inception", "V3 ResNetV2"),
    **_networks(_SIGNED, "MobileNet", "V2"),
    "MobileNet": _SIGNED,
    **_networks(_SIGNED._replace(is_inside=True), "MobileNetV3", "Small Large"),
    **_networks(_SIGNED, "NASNet", "Mobile Large"),
    **_networks(_UNIT, "RegNetX", "002 004 006 008 016 032 040 064 080 120 160 320"),
    **_networks(_UNIT, "RegNetY", "002 004 006 008 016 032 040 064 080 120 160 320"),
    **_networks(_CAFFE, "ResNet", "50 101 152"),
    **_networks(_SIGNED, "ResNet", "50 101 152", "V2"),
    **_networks(_IMAGENET._replace(is_inside=True), "ResNetRS", "50 101 152 200 270 350 420"),
    **_networks(_CAFFE, "VGG", "16 19"),
    "Xception": _SIGNED,
}
_LEAST_SIZES = {"InceptionV3": 75, "InceptionResNetV2": 75, "Xception": 71}
_LEAST_SIZE = 32


def is_keras(spec: str) -> bool:
    """Whether a network is one of tf.keras.applications."""
    return spec.startswith(_KERAS)


def is_function(spec: str) -> bool:
    """Whether a network is somebody's function."""
    return not is_keras(spec) and ":" in spec


def keras_name(spec: str) -> str:
    """The name in tf.keras.applications.

    >>> keras_name("keras:ConvNeXtTiny")
    'ConvNeXtTiny'
    """
    return spec.removeprefix(_KERAS)


def file_name(spec: str) -> str:
    """A network as part of a file's name, and as the name of the Keras model.

    >>> file_name("keras:ConvNeXtTiny"), file_name("my.networks:tiny")
    ('keras_ConvNeXtTiny', 'my.networks_tiny')
    """
    return _NOT_IN_A_FILE_NAME.sub("_", spec)


def automatic_name(class_name: str) -> str:
    """What Keras calls a layer without a name, before a number.

    >>> automatic_name("SeparableConv2D")
    'separable_conv2d'
    """
    return re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z0-9]+)", r"\1_\2", class_name)).lower()


def check(spec: str, flag: str = "--model") -> None:
    """Refuses what is no network, by a FlairError that names close ones; does not look for a function."""
    if is_keras(spec):
        if keras_name(spec) not in KERAS_NETWORKS:
            close = ", ".join(f"{_KERAS}{name}" for name in _closest(keras_name(spec)))
            raise FlairError(f"{flag}={spec}: tf.keras.applications has no such network; close ones are {close}")
    elif ":" in spec:
        if not _FUNCTION.fullmatch(spec):
            raise FlairError(f"{flag}={spec}: expected MODULE:FUNCTION, such as my.networks:tiny")
    elif spec not in OURS:
        known = next((name for name in KERAS_NETWORKS if name.lower() == spec.lower()), None)
        hint = f"; for that of Keras give {_KERAS}{known}" if known else ""
        raise FlairError(
            f"{flag}={spec}: no such model; the models are {', '.join(OURS)}, {_KERAS}NAME for a network of "
            f"tf.keras.applications and MODULE:FUNCTION for one of your own{hint}"
        )


def check_size(spec: str, height: int, width: int) -> None:
    """Refuses an input that is too small for a network of tf.keras.applications."""
    least = _LEAST_SIZES.get(keras_name(spec), _LEAST_SIZE)
    if is_keras(spec) and min(height, width) < least:
        raise FlairError(
            f"--model={spec}: takes no input of {height} x {width} pixels; give --image_height and --image_width of "
            f"at least {least}"
        )


def check_module(spec: str, flag: str = "--model") -> None:
    """Refuses a MODULE:FUNCTION whose module is not there; imports only the packages around it."""
    module = spec.partition(":")[0]
    # Modules of the current folder can be imported also where the command was started by its path.
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    try:
        found = importlib.util.find_spec(module) is not None
    except Exception as error:  # noqa: BLE001 whatever the packages around it do
        raise FlairError(f"{flag}={spec}: cannot import {module}: {one_line(error)}") from None
    if not found:
        raise FlairError(
            f"{flag}={spec}: there is no module {module}; expected a file {module.replace('.', '/')}.py in the current "
            "folder or an installed module"
        )


def one_line(error: BaseException) -> str:
    """What somebody else's code raised, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".rstrip(": ")


def _closest(name: str) -> list[str]:
    by_lower = {other.lower(): other for other in KERAS_NETWORKS}
    close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.3) or ["convnexttiny", "resnet50v2"]
    return [by_lower[other] for other in close]
