"""A tiny dataset and its archives, made with nothing of the toolkit: random bytes stand in for photos."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Iterable
from pathlib import Path

from tests.support.fault_server import FaultServer

PHOTO_BYTES = 3000


def make_photos(count: int, seed: int = 0) -> dict[str, bytes]:
    """Image id -> content; the bytes do not compress, as JPEG does not."""
    generator = random.Random(seed)
    return {str(10_000_000_000 + index): generator.randbytes(PHOTO_BYTES) for index in range(count)}


def make_records(image_ids: Iterable[str]) -> list[dict[str, object]]:
    """Official metadata of the photos: three users, one a partition."""
    users = [("11111111@N01", "train"), ("22222222@N02", "val"), ("33333333@N03", "test")]
    return [
        {
            "user_id": users[index % 3][0],
            "image_id": image_id,
            "labels": ["animal", "plant"] if index % 2 else ["animal"],
            "partition": users[index % 3][1],
            "fine_grained_labels": ["dog", "tree"] if index % 2 else ["dog"],
        }
        for index, image_id in enumerate(image_ids)
    ]


def make_tar_gz(photos: dict[str, bytes]) -> bytes:
    """A tar.gz as Apple packs them: a folder, then its photos."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        folder = tarfile.TarInfo("small_images")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for image_id, content in photos.items():
            member = tarfile.TarInfo(f"small_images/{image_id}.jpg")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def publish(server: FaultServer, photos: dict[str, bytes], num_archives: int, *, manifest: bool = True) -> list[str]:
    """Puts a mirror of the photos on `server`; returns the paths of the archives."""
    server.files["/labels/labels_and_metadata.json"] = json.dumps(make_records(photos), indent=4).encode()
    server.files["/labels/label_relationship.txt"] = b"dog -> animal\ntree -> plant\n"
    ids = list(photos)
    paths = []
    for index in range(num_archives):
        path = f"/images/small/small_images-{index:02d}.tar.gz"
        server.files[path] = make_tar_gz({image_id: photos[image_id] for image_id in ids[index::num_archives]})
        paths.append(path)
    if manifest:
        archives = [{"name": path.rpartition("/")[2]} for path in paths]
        server.files["/images/small/manifest.json"] = json.dumps({"archives": archives}).encode()
    return paths


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` and its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
