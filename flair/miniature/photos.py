"""The photos of the miniature: drawn, not taken, but they show their labels and betray who took them."""

from __future__ import annotations

import colorsys
import functools
import io
import math
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from flair.dataset.catalog import IMAGE_SIZE
from flair.dataset.metadata import Record
from flair.miniature.motifs import MOTIF_SIZE, NUM_VARIANTS, motif
from flair.miniature.taxonomy import FineLabel

JPEG_QUALITY: Final = 75
_MAX_MOTIFS = 14  # drawn in a photo, each coarse label at least once
_TEXTURE_SIZE = 512
# (cells per side, standard deviation) of each octave
_TEXTURE_SCALES = ((3, 24.0), (12, 18.0), (48, 13.0), (200, 13.0))
_NUM_TEXTURES = 6
_PHOTO_STREAM, _STYLE_STREAM, _TEXTURE_STREAM = 1, 2, 3
_RANDOM_NUMBERS = 320  # enough for the busiest photo

# Hue (0..1), saturation and brightness of each label's motif. A photo's owner turns all hues a little.
_COLOURS: Final = {
    "animal": (0.08, 0.60, 0.55),
    "art": (0.83, 0.60, 0.75),
    "celebration": (0.92, 0.65, 0.90),
    "equipment": (0.60, 0.15, 0.45),
    "fire": (0.05, 0.95, 0.95),
    "food": (0.11, 0.45, 0.90),
    "games": (0.00, 0.05, 0.85),
    "interior_room": (0.17, 0.22, 0.92),
    "light": (0.15, 0.65, 1.00),
    "liquid": (0.57, 0.65, 0.80),
    "material": (0.07, 0.40, 0.60),
    "music": (0.75, 0.50, 0.35),
    "outdoor": (0.50, 0.30, 0.70),
    "plant": (0.30, 0.65, 0.55),
    "recreation": (0.97, 0.55, 0.85),
    "religion": (0.13, 0.60, 0.70),
    "structure": (0.02, 0.45, 0.60),
}
# Labels of like frequency, which users of another dialect swap.
_SWAPPED: Final = (
    ("equipment", "structure"),
    ("material", "outdoor"),
    ("food", "plant"),
    ("animal", "liquid"),
    ("art", "interior_room"),
)


class Style(NamedTuple):
    """How one user's photos look, whatever is in them."""

    background: tuple[tuple[int, int, int], tuple[int, int, int]]  # the colours at the two ends of the texture
    texture: int  # index of the texture they stand in front of
    hue_turn: float  # added to the hue (0..1) of every motif
    cast: tuple[float, float, float]  # gain of red, green, blue
    contrast: float  # 1 = as drawn
    brightness: float  # added to 0..255
    grain: float  # strength of sensor noise, 0..1
    blur: float  # radius in pixels
    scale: float  # of all motifs
    frame: int  # pixels of the dark border
    shown_as: dict[str, str]  # coarse labels that the user shows by the motif of another one


_PLAIN = Style(((150, 150, 140), (80, 80, 90)), 0, 0.0, (1.0, 1.0, 1.0), 1.0, 0.0, 0.2, 0.0, 1.0, 0, {})


class Painter:
    """Draws any photo of one dataset from its record alone, so that order and number of workers do not matter.

    Every coarse label shows as its own motif at a random place, size and angle; the fine-grained label sets its inner
    drawing and shade. Background, colours, contrast, sharpness, grain, size of things and frame are the user's. At
    `style_strength` 0 all users share one look; far above 1 a user's colours say nothing about another's. With
    probability `dialect`, each user and each of five pairs of labels for itself, a user swaps the motifs of the pair:
    then only who knows the user can tell the two labels apart.
    """

    def __init__(self, taxonomy: list[FineLabel], seed: int, style_strength: float = 1.0, dialect: float = 0.0) -> None:
        self._labels = {label.name: label for label in taxonomy}
        self._seed = seed
        self._strength = style_strength
        self._dialect = dialect
        self._last_style: tuple[str, Style] | None = None

    def style(self, user_id: str) -> Style:
        """The style of a user, a function of the seed and the id."""
        if self._last_style is None or self._last_style[0] != user_id:
            self._last_style = user_id, self._make_style(user_id)
        return self._last_style[1]

    def _make_style(self, user_id: str) -> Style:
        rng = np.random.default_rng([self._seed, _STYLE_STREAM, *user_id.encode()])
        shown_as: dict[str, str] = {}
        for (first, second), chance in zip(_SWAPPED, rng.random(len(_SWAPPED)), strict=True):
            if chance < self._dialect:
                shown_as |= {first: second, second: first}
        strength = self._strength
        if strength == 0:
            return _PLAIN._replace(shown_as=shown_as)
        hue, value = rng.random(), rng.uniform(0.35, 0.95)
        light = colorsys.hsv_to_rgb(hue, rng.uniform(0.1, 0.6), value)
        dark = colorsys.hsv_to_rgb((hue + rng.normal(0, 0.12)) % 1, rng.uniform(0.1, 0.6), value * 0.55)
        return Style(
            background=(_bytes_of(light), _bytes_of(dark)),
            texture=int(rng.integers(_NUM_TEXTURES)),
            hue_turn=strength * rng.normal(0, 0.035),
            cast=tuple(1 + min(strength, 4) * rng.uniform(-0.1, 0.1, size=3)),
            contrast=rng.uniform(0.75, 1.2) ** min(strength, 3),
            brightness=min(strength, 3) * rng.normal(0, 14),
            grain=rng.beta(1.2, 4),
            blur=float(rng.choice([0, 0, 0, 0.8, 1.4])),
            scale=rng.uniform(0.8, 1.25),
            frame=int(rng.choice([0, 0, 0, 0, 6, 12])),
            shown_as=shown_as,
        )

    def paint(self, record: Record) -> Image.Image:
        """The photo of `record`: 256x256, RGB."""
        style = self.style(record.user_id)
        rng = np.random.default_rng([self._seed, _PHOTO_STREAM, int(record.image_id)])
        chance = iter(rng.random(_RANDOM_NUMBERS).tolist())
        photo = _background(style, chance)
        _clutter(photo, chance)
        visible = self._visible(record)
        taken: list[tuple[float, float]] = []
        for label in visible:
            _place(photo, label, style, chance, len(visible), taken)
        return _develop(photo, style, chance)

    def jpeg(self, record: Record) -> bytes:
        """The photo of `record` as the real ones are stored: baseline JPEG, quality 75, 4:2:0, no EXIF."""
        buffer = io.BytesIO()
        self.paint(record).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
        return buffer.getvalue()

    def _visible(self, record: Record) -> list[FineLabel]:
        """What to draw, later ones in front: one fine label for each coarse one is never left out and is drawn last."""
        labels = [self._labels[name] for name in record.fine_grained_labels]
        by_parent = {label.parent: label for label in reversed(labels)}
        others = [label for label in labels if by_parent[label.parent] is not label]
        return others[: _MAX_MOTIFS - len(by_parent)] + list(by_parent.values())


def _background(style: Style, chance: Iterator[float]) -> Image.Image:
    """The user's texture, a random piece of it, between the user's two colours."""
    left, top = (int(next(chance) * (_TEXTURE_SIZE - IMAGE_SIZE)) for _ in range(2))
    texture = _textures()[style.texture].crop((left, top, left + IMAGE_SIZE, top + IMAGE_SIZE))
    shift = 60 * (next(chance) - 0.5)
    ramps = (np.linspace(one + shift, other + shift, 256) for one, other in zip(*style.background, strict=True))
    return Image.merge("RGB", [texture.point(_levels(ramp)) for ramp in ramps])


def _clutter(photo: Image.Image, chance: Iterator[float]) -> None:
    """Up to four plain ellipses, boxes and strokes that stand for no label."""
    pen = ImageDraw.Draw(photo)
    for _ in range(int(next(chance) * 5)):
        x, y, width, height = (next(chance) * size for size in (IMAGE_SIZE, IMAGE_SIZE, 90, 90))
        colour = _bytes_of(colorsys.hsv_to_rgb(next(chance), 0.5 * next(chance), 0.2 + 0.7 * next(chance)))
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        kind = int(next(chance) * 3)
        if kind == 0:
            pen.ellipse(box, fill=colour)
        elif kind == 1:
            pen.rectangle(box, fill=colour)
        else:
            pen.line(box, fill=colour, width=6)


def _place(
    photo: Image.Image,
    label: FineLabel,
    style: Style,
    chance: Iterator[float],
    crowd: int,
    taken: list[tuple[float, float]],
) -> None:
    """Puts the motif of `label` somewhere away from those at `taken`; the more there will be (`crowd`), the smaller."""
    size = IMAGE_SIZE * (0.30 + 0.26 * next(chance)) * style.scale * (1 - 0.025 * crowd)
    angle = math.radians(80 * (next(chance) - 0.5))
    side = int(size * 1.3)
    zoom = MOTIF_SIZE / size
    cos, sin = math.cos(angle) * zoom, math.sin(angle) * zoom
    offset_x = MOTIF_SIZE / 2 - (cos + sin) * side / 2
    offset_y = MOTIF_SIZE / 2 - (cos - sin) * side / 2
    affine = (cos, sin, offset_x, -sin, cos, offset_y)
    centre = _free_spot(taken, chance)
    taken.append(centre)
    left, top = (int(coordinate - side / 2) for coordinate in centre)

    shown = style.shown_as.get(label.parent, label.parent)
    hue, saturation, value = _COLOURS[shown]
    hue += style.hue_turn + 0.08 * (next(chance) - 0.5) + 0.08 * ((label.rank * 0.382) % 1 - 0.5)
    saturation = min(1.0, saturation * (0.6 + 0.7 * next(chance)))
    value = min(1.0, value * (0.75 + 0.45 * next(chance)))
    body = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    detail = colorsys.hsv_to_rgb(label.rank * 0.618 % 1, 0.35, value - 0.5 if value > 0.55 else value + 0.45)
    shape = motif(shown, label.rank % NUM_VARIANTS)
    for mask, colour in ((shape.body, body), (shape.detail, detail)):
        pasted = mask.transform((side, side), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
        photo.paste(_bytes_of(colour), (left, top), pasted)


def _free_spot(taken: list[tuple[float, float]], chance: Iterator[float]) -> tuple[float, float]:
    """Of three random places in pixels the one farthest from what is there."""
    places = [(IMAGE_SIZE * (0.14 + 0.72 * next(chance)), IMAGE_SIZE * (0.14 + 0.72 * next(chance))) for _ in range(3)]
    return max(places, key=lambda place: min((math.dist(place, other) for other in taken), default=0.0))


def _develop(photo: Image.Image, style: Style, chance: Iterator[float]) -> Image.Image:
    """The user's camera and habits: blur, contrast, colour cast, grain, frame."""
    if style.blur:
        photo = photo.filter(ImageFilter.BoxBlur(style.blur))
    exposure = style.brightness + 24 * (next(chance) - 0.5)
    tone = 128 + (np.arange(256) - 128) * style.contrast + exposure
    curves = _levels(np.multiply.outer(style.cast, tone).ravel())
    photo = photo.point(curves)
    left, top = (int(next(chance) * (_TEXTURE_SIZE - IMAGE_SIZE)) for _ in range(2))
    grain = _grain().crop((left, top, left + IMAGE_SIZE, top + IMAGE_SIZE))
    photo = Image.blend(photo, grain, 0.04 + 0.28 * style.grain)
    if style.frame:
        ImageDraw.Draw(photo).rectangle((0, 0, IMAGE_SIZE - 1, IMAGE_SIZE - 1), outline=(24, 22, 20), width=style.frame)
    return photo


@functools.lru_cache(maxsize=1)
def _textures() -> list[Image.Image]:
    """Cloudy grey noise, some of it drawn out sideways or upwards: PIL mode "L", 512x512."""
    rng = np.random.default_rng(_TEXTURE_STREAM)
    textures = []
    for stretch in (1, 1, 4, 0.25, 2, 0.5):
        total = np.full((_TEXTURE_SIZE, _TEXTURE_SIZE), 128.0, dtype=np.float32)
        for cells, deviation in _TEXTURE_SCALES:
            across, down = max(2, int(cells / stretch)), max(2, int(cells * stretch))
            shape = min(down, _TEXTURE_SIZE), min(across, _TEXTURE_SIZE)
            noise = Image.fromarray(rng.standard_normal(shape, dtype=np.float32))
            octave = np.asarray(noise.resize((_TEXTURE_SIZE, _TEXTURE_SIZE), Image.Resampling.BICUBIC))
            total += deviation * rng.uniform(0.5, 1.5) * octave
        textures.append(Image.fromarray(np.clip(total, 0, 255).astype(np.uint8)))
    return textures


@functools.lru_cache(maxsize=1)
def _grain() -> Image.Image:
    noise = np.random.default_rng(_TEXTURE_STREAM + 1).normal(128, 55, size=(_TEXTURE_SIZE, _TEXTURE_SIZE))
    return Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8)).convert("RGB")


def _levels(values: npt.NDArray[np.float64]) -> list[int]:
    levels: list[int] = np.clip(values, 0, 255).astype(np.uint8).tolist()
    return levels


def _bytes_of(rgb: tuple[float, float, float]) -> tuple[int, int, int]:
    red, green, blue = (int(255 * channel) for channel in rgb)
    return red, green, blue
