"""JSON files with a checksum, in which any changed byte is noticed.

Each value has one spelling, and the last field is the checksum. Without it, a flipped digit would leave good JSON with
another number: an epsilon, a seed, the size of a photo. Tests damage these files a thousand times at random places.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c

from flair.errors import FlairError
from flair.files import json_text, regular_file
from flair.files.atomic import write_bytes

_CHECKSUM = "crc32c"
_BEGINNING = b'{\n"'


class DamagedIndex(FlairError):
    """An index or parameter file is not what was written."""


def encode(value: Mapping[str, Any]) -> bytes:
    """The bytes of `value`, its field `crc32c` added: CRC-32C, in hexadecimal, of the same spelling without that field.

    >>> encode({"a": [1, 2]})
    b'{\\n"a": [1,2],\\n"crc32c": "c02dff80"\\n}\\n'
    """
    body = _spell(value)
    return _spell({**value, _CHECKSUM: f"{google_crc32c.value(body):08x}"})


def write(path: str | Path, value: Mapping[str, Any]) -> None:
    """Writes `value` to `path`, whole or not at all."""
    write_bytes(path, encode(value))


def parse(data: bytes) -> Any:
    """The value of bytes that `encode` made, without the checksum; or of any other JSON, which has none to check.

    The spelling tells which it is: the JSON of other writers begins in another way than that of `encode`. So no damage
    takes the checksum away, and yet a person may write such a file by hand, or change one with any tool.

    Raises:
      BadJson: the text is not JSON, or is spelled as `encode` does it and was changed since.
    """
    value = json_text.parse(data)
    if isinstance(value, dict):
        value.pop(_CHECKSUM, None)
        if is_checked(data) and encode(value) != data:
            raise json_text.BadJson("its checksum does not fit its content")
    return value


def is_checked(data: bytes) -> bool:
    """Whether the bytes are spelled as `encode` does it, so that `parse` holds them against their checksum."""
    return data.startswith(_BEGINNING)


def read(path: str | Path) -> dict[str, Any]:
    """Reads what `write` wrote, without the checksum.

    Raises:
      DamagedIndex: the file was changed in any byte; one line naming it.
      FileNotFoundError: there is no such file.
    """
    data = regular_file.read_bytes(path)
    try:
        if is_checked(data):
            return dict(parse(data))
    except json_text.BadJson:
        pass
    raise DamagedIndex(f"{path}: damaged: its checksum does not fit its content; prepare it again with --overwrite")


def _spell(value: Mapping[str, Any]) -> bytes:
    lines = (f"{json.dumps(key)}: {json.dumps(item, separators=(',', ':'))}" for key, item in value.items())
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()
