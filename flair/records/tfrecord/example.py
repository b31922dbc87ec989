"""One photo as a `tf.train.Example`, encoded and decoded without TensorFlow or protobuf.

The schema is three nested messages (https://github.com/tensorflow/tensorflow/blob/v2.14.1/tensorflow/core/example):
Example {Features features = 1}, Features {map<string, Feature> feature = 1}, Feature {oneof: BytesList = 1,
FloatList = 2, Int64List = 3}. Our features, in the order written (sorted, so that equal photos give equal bytes):
`fine_grained_labels` int64, `image/encoded_jpeg` bytes, `image_id` bytes, `labels` int64, `user_id` bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

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

_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5


class MalformedExample(FlairError):
    """Bytes that are no Example of a FLAIR photo."""


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
    image_key, labels_key, fine_labels_key = FEATURE_NAMES[feature_names]
    features = [
        _feature(fine_labels_key, _int64_list(example.fine_grained_labels)),
        _feature(image_key, _bytes_list(example.image)),
    ]
    if example.image_id is not None:
        features.append(_feature(IMAGE_ID_KEY, _bytes_list(example.image_id.encode())))
    features.append(_feature(labels_key, _int64_list(example.labels)))
    if example.user_id is not None:
        features.append(_feature(USER_ID_KEY, _bytes_list(example.user_id.encode())))
    return _field(1, b"".join(features))


def decode(payload: bytes) -> Example:
    """Reads an Example that we, ml-flair or TensorFlow Federated wrote; features it does not know are skipped.

    Raises:
      MalformedExample: the bytes are no Example, or one without an image or labels.
    """
    try:
        features = dict(_features(payload))
        ids = [features.get(key, [b""])[0] for key in (IMAGE_ID_KEY, USER_ID_KEY)]
        (image,) = features[IMAGE_KEY]
        labels, fine_labels = (_int64s(features[key]) for key in (LABELS_KEY, FINE_LABELS_KEY))
        image_id, user_id = (_bytes(value).decode() or None for value in ids)
        return Example(_bytes(image), labels, fine_labels, image_id, user_id)
    except KeyError as error:
        raise MalformedExample(f"the record is no FLAIR photo: feature {error} is missing") from None
    except (ValueError, IndexError, TypeError) as error:
        raise MalformedExample(f"the record is no FLAIR photo: {error}") from None


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _field(number: int, content: bytes) -> bytes:
    return b"".join((_varint(number << 3 | _LENGTH_DELIMITED), _varint(len(content)), content))


def _feature(key: str, feature: bytes) -> bytes:
    return _field(1, _field(1, key.encode()) + _field(2, feature))


def _bytes_list(value: bytes) -> bytes:
    return _field(1, _field(1, value))


def _int64_list(values: Sequence[int]) -> bytes:
    return _field(3, _field(1, b"".join(map(_varint, values))))


def _features(payload: bytes) -> Iterator[tuple[str, list[int | bytes]]]:
    for number, features in _fields(payload):
        if number != 1:
            continue
        for entry_number, entry in _fields(_bytes(features)):
            if entry_number == 1:
                fields = dict(_fields(_bytes(entry)))
                key = _bytes(fields[1]).decode()
                yield TFF_KEYS.get(key, key), _feature_values(_bytes(fields[2]))


def _feature_values(feature: bytes) -> list[int | bytes]:
    values: list[int | bytes] = []
    for _kind, content in _fields(feature):
        values.extend(value for number, value in _fields(_bytes(content)) if number == 1)
    return values


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    position = 0
    while position < len(message):
        tag, position = _read_varint(message, position)
        wire_type = tag & 7
        if wire_type == _VARINT:
            value, position = _read_varint(message, position)
            yield tag >> 3, value
            continue
        if wire_type == _LENGTH_DELIMITED:
            length, position = _read_varint(message, position)
        elif wire_type in (_FIXED64, _FIXED32):
            length = 8 if wire_type == _FIXED64 else 4
        else:
            raise ValueError(f"unknown wire type {wire_type}")
        if position + length > len(message):
            raise ValueError("a field is longer than its message")
        yield tag >> 3, message[position : position + length]
        position += length


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")


def _int64s(values: list[int | bytes]) -> tuple[int, ...]:
    numbers: list[int] = []
    for value in values:
        if isinstance(value, int):
            numbers.append(value)
            continue
        position = 0
        while position < len(value):
            number, position = _read_varint(value, position)
            numbers.append(number)
    return tuple(number - (1 << 64) if number >= 1 << 63 else number for number in numbers)


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number was found where bytes were expected")
    return value
