"""Croissant 1.1, the description of a data set that other tools read: its parts as plain JSON.

Specification: https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html. Where it leaves a choice, what is
written is what its reference reader, mlcroissant, can iterate over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flair.dataset import catalog
from flair.dataset.metadata import User, records_of
from flair.files.regular_file import file_sha256
from flair.terminal.counted import counted

FILE = "croissant.json"
JPEG, JSON, PARQUET, TEXT = "image/jpeg", "application/json", "application/x-parquet", "text/plain"
# Neither has a registered type: the specification asks for the page that defines the format.
HDF5 = "https://support.hdfgroup.org/documentation/hdf5/latest/_s_p_e_c.html"
TFRECORD = "https://www.tensorflow.org/tutorials/load_data/tfrecord"

_TERMS = (
    "annotation arrayShape citeAs column containedIn equivalentProperty excludes extract field fileObject fileProperty "
    "fileSet format includes isArray isLiveDataset jsonPath key md5 parentField path readLines recordSet references "
    "regex repeated replace samplingRate sdVersion separator source subField transform unArchive value"
)
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{term: f"cr:{term}" for term in _TERMS.split()},
}
_SPLIT_TYPES = {"train": "cr:TrainingSplit", "val": "cr:ValidationSplit", "test": "cr:TestSplit"}
_LIST = {"isArray": True, "arrayShape": "-1"}
_FIELDS: dict[str, dict[str, Any]] = {
    "image_id": {"data_type": "sc:Text", "description": "number of the photo"},
    "user_id": {"data_type": "sc:Text", "description": "user whose photo it is: the client in federated learning"},
    "labels": {"data_type": "sc:Text", "description": "coarse labels of the photo", **_LIST},
    "fine_grained_labels": {"data_type": "sc:Text", "description": "fine-grained labels of the photo", **_LIST},
    "partition": {"data_type": "sc:Text", "description": "part of the split by user"},
    "image": {"data_type": "sc:ImageObject", "description": "the photo, 256x256 pixels"},
}


class Count(NamedTuple):
    """How many users and photos there are."""

    users: int
    photos: int


class Distributed(NamedTuple):
    """A file that is handed on: its path below the description's folder, its bytes and their SHA-256."""

    name: str
    size: int
    sha256: str


def distributed(folder: Path, name: str) -> Distributed:
    """The file `name` below `folder`, all of which is read."""
    return Distributed(name, (folder / name).stat().st_size, file_sha256(folder / name))


def count(users: Sequence[User]) -> dict[str, Count]:
    """Partition -> its users and photos, in the usual order."""
    num_users = Counter(user.partition for user in users)
    num_photos = Counter(record.partition for record in records_of(users))
    known = (*catalog.PARTITIONS, catalog.HELDOUT)
    return {name: Count(num_users[name], num_photos[name]) for name in known if num_users[name]}


def total(counts: Mapping[str, Count]) -> Count:
    """All photos; users of heldout are users of train."""
    users = sum(number.users for partition, number in counts.items() if partition != catalog.HELDOUT)
    return Count(users, sum(number.photos for number in counts.values()))


def describe(counts: Mapping[str, Count], more: str = "") -> str:
    """What the data set is, in a few sentences; `counts` by partition."""
    both = total(counts)
    whole = {name: part.photos for name, part in counts.items()} == catalog.NUM_IMAGES
    parts = [f"{name} {counted(part.photos, 'photo')} of {part.users:,}" for name, part in counts.items()]
    sentences = [
        f"{counted(both.photos, 'photo')} of {counted(both.users, 'user')}, split by user: {', '.join(parts)}.",
        "This is FLAIR, the Federated Learning Annotated Image Repository, with all of its photos."
        if whole
        else "In the layout of FLAIR, the Federated Learning Annotated Image Repository, and not all of it: a part, or "
        "another data set.",
        more,
        "FLAIR's annotations are Apple's, under CC BY-NC 4.0; every photo belongs to its owner, under the licence that "
        "ATTRIBUTION.txt names.",
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def document(
    name: str, description: str, distribution: Sequence[dict[str, Any]], record_sets: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The whole description."""
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": name,
        "description": description,
        "license": catalog.LICENSE_URL,
        "url": catalog.HOMEPAGE,
        "creator": {"@type": "sc:Organization", "name": "Apple"},
        "datePublished": catalog.DATE_PUBLISHED,
        "version": "1.0.0",
        "citeAs": catalog.CITATION,
        "distribution": list(distribution),
        "recordSet": list(record_sets),
    }


def file_object(file: Distributed, encoding: str) -> dict[str, Any]:
    """One file of the distribution; `encoding` is its type."""
    return {
        "@type": "cr:FileObject",
        "@id": file.name,
        "name": file.name,
        "contentUrl": file.name,
        "contentSize": f"{file.size} B",
        "encodingFormat": encoding,
        "sha256": file.sha256,
    }


def file_set(name: str, includes: str, encoding: str) -> dict[str, Any]:
    """The files below the folder whose paths match the pattern `includes`."""
    return {"@type": "cr:FileSet", "@id": name, "name": name, "encodingFormat": encoding, "includes": includes}


def splits(counts: Mapping[str, Count]) -> dict[str, Any]:
    """The partitions: that they are a split, and how many users and photos each has."""
    types: dict[str, str | list[str]] = {"name": "sc:Text", "url": ["sc:URL", "cr:Split"]}
    types |= dict.fromkeys(("num_users", "num_photos"), "sc:Integer")
    rows = [(name, _SPLIT_TYPES.get(name, "cr:TestSplit"), *part) for name, part in counts.items()]
    return {
        "@type": "cr:RecordSet",
        "@id": "splits",
        "name": "splits",
        "description": "The split by user: no user is in two of train, val and test. Photos in heldout, where there "
        "are some, are of users of train.",
        "dataType": "cr:Split",
        "key": {"@id": "splits/name"},
        "field": [_field("splits", name, data_type) for name, data_type in types.items()],
        "data": [{f"splits/{name}": value for name, value in zip(types, row, strict=True)} for row in rows],
    }


def photos(
    name: str, num_photos: int, fields: Mapping[str, Mapping[str, Any]], description: str = "A record a photo."
) -> dict[str, Any]:
    """A record set of photos; `fields` says of each field where its values are, by `source` or else by `value`."""
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": description,
        "key": {"@id": f"{name}/image_id"},
        "annotation": _field(name, "count", "sc:Integer", value=num_photos, description="number of photos"),
        "field": [_field(name, field, **{**_FIELDS[field], **properties}) for field, properties in fields.items()],
    }


def source(kind: str, name: str, **extract: str) -> dict[str, Any]:
    """Where the values of a field are: in a "fileObject" or "fileSet", by its `@id`, and what to take out of it."""
    return {"source": {kind: {"@id": name}, "extract": extract}}


def reference(field: str) -> dict[str, Any]:
    """What a field of photos refers to: the field that has the same values, by its `@id`."""
    return {"references": {"field": {"@id": field}}}


def _field(record_set: str, name: str, data_type: str | list[str], **more: Any) -> dict[str, Any]:
    return {"@type": "cr:Field", "@id": f"{record_set}/{name}", "name": name, "dataType": data_type, **more}
