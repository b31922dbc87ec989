"""Refuses what a model file says of its layers where that could make a reader run code, before anybody builds anything.

A Keras configuration names classes. Keras 2.14 imports the module of a model that it does not know (`"module": "os"`),
also in its `safe_mode`; a Lambda layer has Python bytecode, an operation layer the name of any function of TensorFlow,
such as one that writes files, and a lookup layer the path of a file to read. So there is a list of what may be named.
Our readers hold every configuration against it, though they build no layer from one and take weights alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from flair.records.hdf5.objects import BadObject, printable

_OURS = (
    *("GroupNormalization", "FrozenBatchNormalization", "PixelStandardization"),
    *("ClassToken", "PositionEmbedding", "SelfAttention", "FirstToken"),
)
_OPERATIONS = ("TFOpLambda", "SlicingOpLambda")
# Of Keras, save for Lambda, wrappers of somebody's layers, and layers that read vocabularies or models from files.
_KERAS = """
    Activation ActivityRegularization Add AdditiveAttention AlphaDropout Attention Average AveragePooling1D
    AveragePooling2D AveragePooling3D BatchNormalization Bidirectional CategoryEncoding CenterCrop Concatenate Conv1D
    Conv1DTranspose Conv2D Conv2DTranspose Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D Cropping1D Cropping2D
    Cropping3D CustomScaleLayer Dense DepthwiseConv1D DepthwiseConv2D Discretization Dot Dropout ELU EinsumDense
    Embedding Flatten Functional GRU GRUCell GaussianDropout GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D
    GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D GroupNormalization Identity
    InputLayer LSTM LSTMCell LayerNormalization LayerScale LeakyReLU LocallyConnected1D LocallyConnected2D Masking
    MaxPooling1D MaxPooling2D MaxPooling3D Maximum Minimum Model MultiHeadAttention Multiply Normalization PReLU Permute
    RandomBrightness RandomContrast RandomCrop RandomFlip RandomHeight RandomRotation RandomTranslation RandomWidth
    RandomZoom ReLU RepeatVector Rescaling Reshape Resizing SeparableConv1D SeparableConv2D Sequential SimpleRNN
    SimpleRNNCell Softmax SpatialDropout1D SpatialDropout2D SpatialDropout3D StackedRNNCells StochasticDepth Subtract
    SyncBatchNormalization ThresholdedReLU TimeDistributed UnitNormalization UpSampling1D UpSampling2D UpSampling3D
    ZeroPadding1D ZeroPadding2D ZeroPadding3D
    Constant GlorotNormal GlorotUniform HeNormal HeUniform LecunNormal LecunUniform Ones Orthogonal RandomNormal
    RandomUniform TruncatedNormal VarianceScaling Zeros
    L1 L1L2 L2 OrthogonalRegularizer MaxNorm MinMaxNorm NonNeg RadialConstraint UnitNorm
    Custom>CustomScaleLayer Policy TensorShape __tuple__ __numpy__ __tensor__
"""
_OF_ML_FLAIR = "Addons>GroupNormalization"  # of TensorFlow Addons, in the models that ml-flair saves
_CLASSES = {*_KERAS.split(), *_OPERATIONS, *_OURS, *(f"flair>{name}" for name in _OURS), _OF_ML_FLAIR}
_FUNCTIONS = """
    math.add math.subtract math.multiply math.divide math.truediv math.maximum math.minimum math.square math.sqrt
    math.rsqrt math.exp math.log math.abs math.pow math.sigmoid math.tanh math.reduce_mean math.reduce_sum
    math.reduce_max math.reduce_min nn.relu nn.relu6 nn.gelu nn.silu nn.swish nn.sigmoid nn.softmax nn.softplus nn.tanh
    __operators__.add __operators__.getitem cast concat expand_dims reshape split squeeze stack transpose unstack
    clip_by_value linalg.matmul
"""
_OF_OPERATIONS = set(_FUNCTIONS.split())
_WITH_FUNCTION = {*_OPERATIONS, "function"}  # objects that are what the function of that name is
# What Keras names of the training of a whole model; ml-flair's metrics are in its models.
_OF_TRAINING = (
    *("keras.optimizers", "keras.losses", "keras.metrics", "builtins"),
    *("keras.src.mixed_precision.loss_scale_optimizer", "benchmark.flair_metrics"),
)
_TRAINING = "compile_config"


def check(config: Any, own: Collection[str] = (), modules: Collection[str] = ()) -> None:
    """Raises BadObject at the first object of a Keras configuration that is not on the list.

    Args:
      own, modules: what may be named, too: see `named`, of a network that the user has imported.

    >>> check({"class_name": "Lambda", "config": {}})
    Traceback (most recent call last):
    flair.records.hdf5.objects.BadObject: it has an object of the class Lambda, which is refused: ...
    """
    if isinstance(config, dict):
        check_training(config.get(_TRAINING))
        config = {key: item for key, item in config.items() if key != _TRAINING}
    for value in _objects(config):
        _check_object(value, own, modules)


def check_training(config: Any) -> None:
    """The same of the optimizer, loss and metrics of a whole model, which Keras builds, too, unless `compile=False`."""
    for value in _objects(config):
        module = value.get("module")
        if not (module is None or any(_is_of(module, package) for package in _OF_TRAINING)):
            _refuse(f"an object of the module {module}")


def named(config: Any) -> tuple[set[str], set[str]]:
    """The classes and functions that the description of a network names, and their modules."""
    names, modules = set(), set()
    for value in _objects(config):
        names |= {one for one in (*_names(value), _function(value)) if isinstance(one, str)}
        modules |= {one for one in (value.get("module"),) if isinstance(one, str)}
    return names, modules


def _objects(config: Any) -> Iterator[Mapping[str, Any]]:
    left = [config]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if "class_name" in value:
                yield value
            left += value.values()
        elif isinstance(value, list):
            left += value


def _check_object(value: Mapping[str, Any], own: Collection[str], modules: Collection[str]) -> None:
    names, module, function = _names(value), value.get("module"), _function(value)
    for name in names:
        if not isinstance(name, str) or (name not in _CLASSES and name not in own):
            _refuse(f"an object of the class {name}")
    if not (module is None or any(_is_of(module, package) for package in ("keras", "benchmark.model", *modules))):
        _refuse(f"an object of the module {module}")
    if {*names} & _WITH_FUNCTION and not (isinstance(function, str) and function in {*_OF_OPERATIONS, *own}):
        _refuse(f"an operation {function}")


def _names(value: Mapping[str, Any]) -> tuple[Any, ...]:
    # Keras looks an object up by either, so that one may hide behind the other.
    registered = value.get("registered_name")
    return (value["class_name"],) if registered is None else (value["class_name"], registered)


def _function(value: Mapping[str, Any]) -> Any:
    config = value.get("config")
    return config.get("function") if isinstance(config, dict) else config


def _is_of(module: Any, package: str) -> bool:
    return isinstance(module, str) and (module == package or module.startswith(f"{package}."))


def _refuse(what: str) -> None:
    raise BadObject(
        f"it has {printable(what)}, which is refused: whoever loads it as a model could run somebody's code; if you "
        "trust it, save its weights alone"
    )
