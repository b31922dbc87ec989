"""The 17 shapes that stand for the coarse labels in the photos of the miniature."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Final, NamedTuple

from PIL import Image, ImageDraw

MOTIF_SIZE: Final = 96  # pixels, both sides, of a motif before it is scaled
NUM_VARIANTS: Final = 4  # of the inner drawing; fine-grained labels take turns
_CANVAS = 192  # drawn at twice the size, for smooth edges
_INK = 255


class Motif(NamedTuple):
    """A shape as two masks, PIL mode "L", 96x96: the body, and the lighter or darker drawing on it."""

    body: Image.Image
    detail: Image.Image


class _Pens(NamedTuple):
    body: ImageDraw.ImageDraw
    detail: ImageDraw.ImageDraw


@functools.cache
def motif(coarse_label: str, variant: int) -> Motif:
    """The shape of one of the 17 coarse labels, `variant` below `NUM_VARIANTS`; raises KeyError for other labels."""
    canvases = [Image.new("L", (_CANVAS, _CANVAS)) for _ in range(2)]
    _DRAWINGS[coarse_label](_Pens(*map(ImageDraw.Draw, canvases)), variant)
    return Motif(*(canvas.resize((MOTIF_SIZE, MOTIF_SIZE), Image.Resampling.BOX) for canvas in canvases))


def _disc(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, ink: int = _INK) -> None:
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)


def _around(count: int, radius: float, turn: float = 0.0, x: float = 96, y: float = 96) -> list[tuple[float, float]]:
    """`count` points evenly spaced on a circle, the first one on top."""
    angles = [2 * math.pi * (i / count) + turn - math.pi / 2 for i in range(count)]
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


def _star(points: int, outer: float, inner: float) -> list[tuple[float, float]]:
    tips, dents = _around(points, outer), _around(points, inner, math.pi / points)
    return [corner for pair in zip(tips, dents, strict=True) for corner in pair]


def _animal(pens: _Pens, variant: int) -> None:
    pens.body.polygon([(30, 10), (90, 60), (36, 100)], fill=_INK)
    pens.body.polygon([(162, 10), (102, 60), (156, 100)], fill=_INK)
    _disc(pens.body, 96, 112, 68)
    for x in (70, 122):
        _disc(pens.detail, x, 98, 11)
    pens.detail.polygon([(82, 128), (110, 128), (96, 146)], fill=_INK)
    for i in range(variant):
        pens.detail.line([(20, 124 + 14 * i), (62, 132 + 10 * i)], fill=_INK, width=5)
        pens.detail.line([(172, 124 + 14 * i), (130, 132 + 10 * i)], fill=_INK, width=5)


def _art(pens: _Pens, variant: int) -> None:
    pens.body.rectangle((12, 24, 180, 168), fill=_INK)
    pens.body.rectangle((36, 48, 156, 144), fill=0)
    pens.detail.polygon([(44, 138), (84, 66 + 8 * variant), (116, 138)], fill=_INK)
    _disc(pens.detail, 128, 78, 10 + 4 * variant)
    pens.detail.rectangle((112, 112, 150, 138), fill=_INK)


def _celebration(pens: _Pens, variant: int) -> None:
    for x, y, radius in ((56, 60, 40), (136, 56, 40), (96, 96, 42)):
        pens.body.ellipse((x - radius * 0.85, y - radius, x + radius * 0.85, y + radius), fill=_INK)
        pens.body.line([(x, y + radius), (96, 186)], fill=_INK, width=5)
        _disc(pens.detail, x - 12, y - 14, 7 + 3 * variant)


def _equipment(pens: _Pens, variant: int) -> None:
    for x, y in _around(8, 74):
        _disc(pens.body, x, y, 18)
    _disc(pens.body, 96, 96, 70)
    _disc(pens.detail, 96, 96, 46)
    _disc(pens.detail, 96, 96, 30, ink=0)
    for x, y in _around(3 + variant, 50):
        pens.detail.line([(96, 96), (x, y)], fill=_INK, width=11)


def _fire(pens: _Pens, variant: int) -> None:
    pens.body.polygon([(96, 4), (132, 62), (144, 36), (170, 120), (140, 184), (52, 184), (22, 120), (50, 50), (72, 78)],
                      fill=_INK)  # fmt: skip
    for i in range(1 + variant % 2):
        pens.detail.polygon([(96 + 28 * i, 84 + 20 * variant), (124, 144), (104, 176), (76, 176), (62, 140)], fill=_INK)


def _food(pens: _Pens, variant: int) -> None:
    _disc(pens.body, 96, 96, 88)
    pens.detail.ellipse((22, 22, 170, 170), outline=_INK, width=7)
    for x, y in _around(3 + variant, 36):
        _disc(pens.detail, x, y, 22 - 2 * variant)


def _games(pens: _Pens, variant: int) -> None:
    pens.body.rectangle((14, 14, 178, 178), fill=_INK)
    cells = 3 + variant
    step = 164 / cells
    for row in range(cells):
        for column in range(row % 2, cells, 2):
            x, y = 14 + column * step, 14 + row * step
            pens.detail.rectangle((x, y, x + step, y + step), fill=_INK)


def _interior_room(pens: _Pens, variant: int) -> None:
    corners = _around(6, 92)
    pens.body.polygon(corners, fill=_INK)
    for x, y in corners[1::2]:
        pens.detail.line([(96, 96), (x, y)], fill=_INK, width=8)
    pens.detail.polygon([(120, 108), (146, 94), (146, 140 - 8 * variant), (120, 154 - 8 * variant)], fill=_INK)


def _light(pens: _Pens, variant: int) -> None:
    pens.body.polygon(_star(12, 95, 48), fill=_INK)
    _disc(pens.detail, 96, 96, 18 + 5 * variant)


def _liquid(pens: _Pens, variant: int) -> None:
    for row in range(3):
        top = 30 + 52 * row
        wave = [(x, top + 14 * math.sin(x / 192 * 4 * math.pi)) for x in range(0, 193, 8)]
        pens.body.polygon([*wave, *((x, y + 32) for x, y in reversed(wave))], fill=_INK)
        for x, y in wave[2 + row :: 4 + variant]:
            _disc(pens.detail, x, y + 16, 8)


def _material(pens: _Pens, variant: int) -> None:
    pens.body.rounded_rectangle((10, 10, 182, 182), radius=36, fill=_INK)
    spacing = 44 - 7 * variant
    for offset in range(-192, 192, spacing):
        pens.detail.line([(offset, 200), (offset + 200, 0)], fill=_INK, width=spacing // 3)
    corners = Image.new("L", (_CANVAS, _CANVAS))
    ImageDraw.Draw(corners).rounded_rectangle((10, 10, 182, 182), radius=36, fill=_INK)
    pens.detail.bitmap((0, 0), corners.point(lambda value: 255 - value), fill=0)


def _music(pens: _Pens, variant: int) -> None:
    for x, y in ((44, 154), (136, 138)):
        pens.body.ellipse((x - 32, y - 22, x + 32, y + 22), fill=_INK)
    pens.body.line([(72, 152), (72, 30)], fill=_INK, width=13)
    pens.body.line([(164, 136), (164, 14)], fill=_INK, width=13)
    for i in range(2):
        pens.body.line([(72, 36 + 30 * i), (164, 20 + 30 * i)], fill=_INK, width=20)
    for x, y in ((44, 154), (136, 138)):
        _disc(pens.detail, x, y, 6 + 4 * variant)


def _outdoor(pens: _Pens, variant: int) -> None:
    pens.body.polygon([(0, 172), (68, 44), (136, 172)], fill=_INK)
    pens.body.polygon([(72, 172), (134, 20), (192, 172)], fill=_INK)
    snow = 18 + 12 * variant
    pens.detail.polygon([(68, 44), (68 - 0.53 * snow, 44 + snow), (68 + 0.53 * snow, 44 + snow)], fill=_INK)
    pens.detail.polygon([(134, 20), (134 - 0.41 * snow, 20 + snow), (134 + 0.38 * snow, 20 + snow)], fill=_INK)


def _plant(pens: _Pens, variant: int) -> None:
    petals = 5 + variant
    for x, y in _around(petals, 54):
        _disc(pens.body, x, y, 36 - 2 * variant)
    for x, y in _around(petals, 76):
        pens.detail.line([(96, 96), (x, y)], fill=_INK, width=6)
    _disc(pens.detail, 96, 96, 20)


def _recreation(pens: _Pens, variant: int) -> None:
    _disc(pens.body, 96, 96, 82)
    pens.detail.polygon(_around(5, 28 + 3 * variant), fill=_INK)
    for (x0, y0), (x1, y1) in zip(_around(5, 28), _around(5, 82), strict=True):
        pens.detail.line([(x0, y0), (x1, y1)], fill=_INK, width=8)


def _religion(pens: _Pens, variant: int) -> None:
    pens.body.rectangle((76, 4, 116, 188), fill=_INK)
    pens.body.rectangle((26, 46, 166, 86), fill=_INK)
    pens.detail.ellipse(
        (58 - 4 * variant, 28 - 4 * variant, 134 + 4 * variant, 104 + 4 * variant), outline=_INK, width=9
    )


def _structure(pens: _Pens, variant: int) -> None:
    pens.body.polygon([(16, 76), (96, 8), (176, 76)], fill=_INK)
    pens.body.rectangle((34, 76, 158, 186), fill=_INK)
    columns = 2 + variant
    step = 124 / columns
    for row in range(3):
        for column in range(columns):
            x, y = 34 + (column + 0.5) * step, 96 + 32 * row
            pens.detail.rectangle((x - step / 4, y - 9, x + step / 4, y + 9), fill=_INK)


_DRAWINGS: Final[dict[str, Callable[[_Pens, int], None]]] = {
    "animal": _animal,
    "art": _art,
    "celebration": _celebration,
    "equipment": _equipment,
    "fire": _fire,
    "food": _food,
    "games": _games,
    "interior_room": _interior_room,
    "light": _light,
    "liquid": _liquid,
    "material": _material,
    "music": _music,
    "outdoor": _outdoor,
    "plant": _plant,
    "recreation": _recreation,
    "religion": _religion,
    "structure": _structure,
}
