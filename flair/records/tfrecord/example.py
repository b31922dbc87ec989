"""One photo as a `tf.train.Example`, encoded and decoded by protobuf without TensorFlow.

TensorFlow takes seconds to import. Our features, in the order written (sorted, so that equal photos give equal bytes):
`fine_grained_labels` int64, `image/encoded_jpeg` bytes, `image_id` bytes, `labels` int64, `user_id` bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from google.protobuf import descriptor_pool, message_factory, text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import DecodeError

from flair.errors import FlairError

IMAGE_KEY = "image/encoded_jpeg"
LABELS_KEY = "labels"
FINE_LABELS_KEY = "fine_grained_labels"
IMAGE_ID_KEY = "image_id"
USER_ID_KEY = "user_id"
# The names of TensorFlow Federated's own loader, tff.simulation.datasets.flair; it writes no ids.
TFF_KEYS = {"image": IMAGE_KEY, "label": LABELS_KEY, "fine_grained_label": FINE_LABELS_KEY}
# Of the image, the coarse and the fine-grained labels.
FEATURE_NAMES = {"flair": (IMAGE_KEY, LABELS_KEY, FINE_LABELS_KEY), "tff": tuple(TFF_KEYS)}
# What Meta-Dataset's decoder reads, and all that it reads (meta_dataset/data/decoder.py, read_single_example).
EPISODE_IMAGE_KEY, CLASS_KEY = "image", "label"
NO_CLASS = -1  # Meta-Dataset's PLACEHOLDER_CLASS_ID


class MalformedExample(FlairError):
    """Bytes that are not an Example with an image and labels."""


class Example(NamedTuple):
    """A photo as JPEG bytes, its labels as columns of `label_index.json`, and its ids (None in others' files)."""

    image: bytes
    labels: tuple[int, ...]
    fine_grained_labels: tuple[int, ...]
    image_id: str | None = None
    user_id: str | None = None


def encode(example: Example, feature_names: str = "flair") -> bytes:
    """Serializes a photo; equal photos give equal bytes.

    `feature_names` is one of FEATURE_NAMES: `tff` names the features as TensorFlow Federated's loader reads them.

    >>> decode(encode(Example(b"jpeg", (3,), (200, 1), "15", "9@N00"), "tff")).fine_grained_labels
    (200, 1)
    """
    return _serialize(_values(example, *FEATURE_NAMES[feature_names]))


def encode_in_episode(example: Example, label: int) -> bytes:
    """Serializes a photo of an episode: Meta-Dataset's `image` and `label`, and beside them our labels and ids.

    `label` is the place of the photo's class in the episode, NO_CLASS where it has none.

    >>> decode_in_episode(encode_in_episode(Example(b"jpeg", (3,), (200, 1), "15", "9@N00"), 4))[1]
    4
    """
    values = _values(example, EPISODE_IMAGE_KEY, LABELS_KEY, FINE_LABELS_KEY)
    return _serialize({**values, CLASS_KEY: {"int64_list": {"value": [label]}}})


def decode(payload: bytes) -> Example:
    """Reads an Example that we, ml-flair or TensorFlow Federated wrote, without features that it does not know.

    Raises MalformedExample.
    """
    with _naming_what_is_wrong():
        return _photo({TFF_KEYS.get(key, key): value for key, value in _features(payload).items()})


def decode_in_episode(payload: bytes) -> tuple[Example, int]:
    """Reads what `encode_in_episode` wrote: a photo and its class. Raises MalformedExample."""
    with _naming_what_is_wrong():
        features = _features(payload)
        (label,) = _int64s(features[CLASS_KEY], CLASS_KEY)
        return _photo({**features, IMAGE_KEY: features[EPISODE_IMAGE_KEY]}), label


def _values(example: Example, image_key: str, labels_key: str, fine_labels_key: str) -> dict[str, Any]:
    ids = ((IMAGE_ID_KEY, example.image_id), (USER_ID_KEY, example.user_id))
    return {
        image_key: {"bytes_list": {"value": [example.image]}},
        **{key: {"bytes_list": {"value": [value.encode()]}} for key, value in ids if value is not None},
        labels_key: {"int64_list": {"value": example.labels}},
        fine_labels_key: {"int64_list": {"value": example.fine_grained_labels}},
    }


def _serialize(values: dict[str, Any]) -> bytes:
    entries = [{"key": key, "value": values[key]} for key in sorted(values)]
    return bytes(_EXAMPLE(features={"feature": entries}).SerializeToString())


def _features(payload: bytes) -> dict[str, Any]:
    return {entry.key: entry.value for entry in _EXAMPLE.FromString(payload).features.feature}


def _photo(features: dict[str, Any]) -> Example:
    image = _one(features[IMAGE_KEY], IMAGE_KEY)
    labels, fine_labels = (_int64s(features[key], key) for key in (LABELS_KEY, FINE_LABELS_KEY))
    ids = [_one(features[key], key) if key in features else b"" for key in (IMAGE_ID_KEY, USER_ID_KEY)]
    image_id, user_id = (value.decode() or None for value in ids)
    return Example(image, labels, fine_labels, image_id, user_id)


@contextlib.contextmanager
def _naming_what_is_wrong() -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise MalformedExample(f"the record is no FLAIR photo: feature {error} is missing") from None
    except (ValueError, DecodeError) as error:
        raise MalformedExample(f"the record is no FLAIR photo: {error}") from None


def _one(feature: Any, key: str) -> bytes:
    values = feature.bytes_list.value
    if len(values) != 1:
        raise ValueError(f"feature {key!r} has {len(values):,} values of bytes, not one")
    return bytes(values[0])


def _int64s(feature: Any, key: str) -> tuple[int, ...]:
    if feature.WhichOneof("kind") != "int64_list":
        raise ValueError(f"feature {key!r} has no whole numbers")
    return tuple(feature.int64_list.value)


# https://github.com/tensorflow/tensorflow/blob/v2.14.1/tensorflow/core/example, but for its map of features, which is a
# list of entries here: the same bytes, in an order that is ours. Protobuf sorts the entries of maps in an order that
# depends on its release.
_PROTO = """
name: "flair_example.proto" package: "flair" syntax: "proto3"
message_type { name: "BytesList" field { name: "value" number: 1 type: TYPE_BYTES label: LABEL_REPEATED } }
message_type { name: "FloatList" field { name: "value" number: 1 type: TYPE_FLOAT label: LABEL_REPEATED } }
message_type { name: "Int64List" field { name: "value" number: 1 type: TYPE_INT64 label: LABEL_REPEATED } }
message_type {
  name: "Feature"
  field { name: "bytes_list" number: 1 type: TYPE_MESSAGE type_name: ".flair.BytesList" oneof_index: 0 }
  field { name: "float_list" number: 2 type: TYPE_MESSAGE type_name: ".flair.FloatList" oneof_index: 0 }
  field { name: "int64_list" number: 3 type: TYPE_MESSAGE type_name: ".flair.Int64List" oneof_index: 0 }
  oneof_decl { name: "kind" }
}
message_type {
  name: "Entry"
  field { name: "key" number: 1 type: TYPE_STRING }
  field { name: "value" number: 2 type: TYPE_MESSAGE type_name: ".flair.Feature" }
}
message_type {
  name: "Features"
  field { name: "feature" number: 1 type: TYPE_MESSAGE type_name: ".flair.Entry" label: LABEL_REPEATED }
}
message_type {
  name: "Example"
  field { name: "features" number: 1 type: TYPE_MESSAGE type_name: ".flair.Features" }
}
"""
_POOL = descriptor_pool.DescriptorPool()
_POOL.Add(text_format.Parse(_PROTO, FileDescriptorProto()))
_EXAMPLE: Any = message_factory.GetMessageClass(_POOL.FindMessageTypeByName("flair.Example"))
