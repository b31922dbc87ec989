"""Copies of photos as people make them, to measure which of them an audit finds; skies and nights for strangers."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flair.dataset.catalog import IMAGE_SIZE, METADATA_FILE
from flair.dataset.images import decode
from flair.dataset.metadata import Record, photo_path, record_to_json
from flair.duplicates.distance import mirror
from flair.files import atomic

Pixels = NDArray[np.uint8]
_QUALITY = 85  # of the JPEG that every altered copy ends in


def jpeg(pixels: Pixels, quality: int = _QUALITY) -> bytes:
    """A photo uint8 [256, 256, 3] as JPEG bytes."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def resized(pixels: Pixels, side: int) -> Pixels:
    """Scaled to `side` pixels and back."""
    return _to_size(np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR)))


def noised(pixels: Pixels, deviation: float, rng: np.random.Generator) -> Pixels:
    """With Gaussian noise of this standard deviation, in grey levels."""
    noise = rng.normal(0, deviation, pixels.shape)
    return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)


def recoloured(pixels: Pixels, gains: tuple[float, float, float], gamma: float = 1.0) -> Pixels:
    """With every channel multiplied by its gain, then made darker (gamma above 1) or brighter."""
    scaled = np.clip(pixels / 255 * np.array(gains), 0, 1) ** gamma
    return np.rint(255 * scaled).astype(np.uint8)


def grey(pixels: Pixels) -> Pixels:
    """In black and white."""
    return np.asarray(Image.fromarray(pixels).convert("L").convert("RGB"))


def corner(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """A square of 128 to 252 pixels a side from anywhere in the photo, scaled back to its size."""
    side = int(rng.integers(IMAGE_SIZE // 2, IMAGE_SIZE - 3))
    row, column = rng.integers(0, IMAGE_SIZE - side + 1, 2)
    return _to_size(pixels[row : row + side, column : column + side])


def cropped(pixels: Pixels, border: int) -> Pixels:
    """Without `border` pixels on each side, scaled back to its size."""
    inner = pixels[border : IMAGE_SIZE - border, border : IMAGE_SIZE - border]
    return _to_size(inner)


def _to_size(pixels: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))


KINDS: dict[str, Callable[[Pixels, np.random.Generator], bytes]] = {
    "re-encoded, quality 75": lambda pixels, _rng: jpeg(pixels, 75),
    "re-encoded, quality 30": lambda pixels, _rng: jpeg(pixels, 30),
    "resized to 192 and back": lambda pixels, _rng: jpeg(resized(pixels, 192)),
    "resized to 128 and back": lambda pixels, _rng: jpeg(resized(pixels, 128)),
    "noise of 1 grey level": lambda pixels, rng: jpeg(noised(pixels, 1, rng), 95),
    "noise of 5 grey levels": lambda pixels, rng: jpeg(noised(pixels, 5, rng)),
    "noise of 10 grey levels": lambda pixels, rng: jpeg(noised(pixels, 10, rng)),
    "cropped by 1 pixel a side": lambda pixels, _rng: jpeg(cropped(pixels, 1)),
    "cropped by 2 pixels a side": lambda pixels, _rng: jpeg(cropped(pixels, 2)),
    "cropped by 4 pixels a side": lambda pixels, _rng: jpeg(cropped(pixels, 4)),
    "cropped by 8 pixels a side": lambda pixels, _rng: jpeg(cropped(pixels, 8)),
    "cropped by 16 pixels a side": lambda pixels, _rng: jpeg(cropped(pixels, 16)),
    "cropped by 32 pixels a side": lambda pixels, _rng: jpeg(cropped(pixels, 32)),
    "cropped by 64 pixels a side": lambda pixels, _rng: jpeg(cropped(pixels, 64)),
    "cropped anywhere, to half or more": lambda pixels, rng: jpeg(corner(pixels, rng)),
    "mirrored, cropped by 16": lambda pixels, _rng: jpeg(cropped(mirror(pixels), 16)),
    "warmer": lambda pixels, _rng: jpeg(recoloured(pixels, (1.2, 1.0, 0.7))),
    "darker": lambda pixels, _rng: jpeg(recoloured(pixels, (1.0, 1.0, 1.0), 2.0)),
    "black and white": lambda pixels, _rng: jpeg(grey(pixels)),
    "mirrored": lambda pixels, _rng: jpeg(mirror(pixels)),
    "mirrored, resized, noise of 3": lambda pixels, rng: jpeg(noised(resized(mirror(pixels), 192), 3, rng)),
}


class Planted:
    """Photos of a dataset as JPEG, and copies of each by kind."""

    def __init__(self, files: dict[Record, bytes]) -> None:
        self.files = files
        self.copies: dict[str, list[bytes]] = {}

    def pixels(self) -> list[Pixels]:
        """The photos, decoded."""
        return [decode(data, record.image_id).data for record, data in self.files.items()]

    def image_ids(self) -> list[str]:
        """Of the photos, then of their copies, kind after kind."""
        photos = [record.image_id for record in self.files]
        return [*photos, *(f"{name}-{number}" for number in range(1, len(KINDS) + 1) for name in photos)]

    def write(self, folder: Path) -> None:
        """Writes all as a dataset directory, copies under the user and with the labels of their photo."""
        names = iter(self.image_ids())
        written = []
        for group in (self.files.values(), *self.copies.values()):
            for record, data in zip(self.files, group, strict=True):
                own = record._replace(image_id=next(names))
                path = photo_path(folder, own.image_id)
                path.parent.mkdir(parents=True, exist_ok=True)
                atomic.write_bytes(path, data)
                written.append(record_to_json(own))
        atomic.write_json(folder / METADATA_FILE, written)


def even_sky(rng: np.random.Generator) -> Pixels:
    """An even sky: two near colours from top to bottom, a little sensor noise; no two show the same."""
    top = np.array([90, 140, 205]) + rng.normal(0, 12, 3)
    bottom = top + rng.uniform(5, 45) * np.array([1.0, 0.8, 0.4])
    weight = np.linspace(0, 1, IMAGE_SIZE)[:, None, None] ** rng.uniform(0.6, 1.6)
    return _with_grain(np.broadcast_to(top + (bottom - top) * weight, (IMAGE_SIZE, IMAGE_SIZE, 3)), rng)


def night(rng: np.random.Generator) -> Pixels:
    """A photo of the night: almost black, a few lights where no other has them."""
    level = rng.uniform(2, 18) * np.array([0.9, 0.9, 1.1])
    rows, columns = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE]
    picture = np.broadcast_to(level, (IMAGE_SIZE, IMAGE_SIZE, 3)).copy()
    for _ in range(rng.integers(0, 5)):
        row, column = rng.uniform(0, IMAGE_SIZE, 2)
        spot = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * rng.uniform(1, 6) ** 2))
        picture += spot[..., None] * rng.uniform(60, 220) * np.array([1.0, 0.9, 0.7])
    return _with_grain(picture, rng)


def _with_grain(picture: NDArray[np.float64], rng: np.random.Generator) -> Pixels:
    # Grain of two pixels' width, as demosaicing and compression leave it.
    coarse = rng.normal(0, rng.uniform(0.5, 3), (IMAGE_SIZE // 2, IMAGE_SIZE // 2, 3))
    grain = np.repeat(np.repeat(coarse, 2, axis=0), 2, axis=1)
    return np.clip(np.rint(picture + grain), 0, 255).astype(np.uint8)
