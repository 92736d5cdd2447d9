"""Tigger, Misty and Neither: a small picture data set that is drawn instead of downloaded.

Tigger is an orange tabby, Misty a grey cat with a white bib and a white paw. Everything else is *Neither*: plain
ginger and grey tabby cats, dogs, foxes, rabbits, and rooms with nobody in them. Rooms, cushions and pumpkins are
orange or grey as often behind one class as behind another, so the colours of a picture do not tell who is in it.

A picture is built as a painter would: backdrop, things on the floor, shadow, animal, something in front, light.
Each animal is a few ellipses and ribbons on a :class:`Layer`, placed by a pose function. One seed feeds separate
random streams (scene, pose, animal, light), so another label with the same seed stands in the *same* room, and night
or sketch is the same picture in other light.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from PIL import Image, ImageDraw, ImageFilter

from course_utils.common.errors import CourseError

CLASSES = ("Tigger", "Misty", "Neither")
LIGHTS = ("day", "night")
STYLES = ("photo", "sketch")
DEFAULT_COUNTS = {"train": 40, "val": 20, "test": 60}
NOBODY_SHARE = 0.17
OVERSAMPLING = 2

Colour = tuple[int, int, int]
Random = np.random.Generator


class Drawing(NamedTuple):
    """One picture: ``image`` (RGB), ``mask`` (L, 255 where the animal is visible, else 0) and a ``caption``."""

    image: Image.Image
    mask: Image.Image
    caption: str


# --- colours ---------------------------------------------------------------------------------------------------------
ORANGE = [(222, 138, 62), (205, 118, 48), (232, 160, 92), (190, 104, 44)]
GREY = [(138, 143, 152), (118, 122, 130), (160, 163, 168), (96, 101, 110)]
OTHER = [(86, 132, 130), (120, 148, 92), (176, 72, 62), (74, 98, 150), (236, 222, 196), (150, 110, 150)]
WALL = [(226, 214, 196), (198, 204, 208), (210, 180, 144), (168, 184, 178), (218, 194, 170), (180, 184, 192)]
WOOD = [(164, 116, 74), (128, 88, 58), (190, 150, 106), (122, 116, 112), (150, 142, 136), (178, 122, 66)]
LEAF = [(84, 122, 62), (108, 146, 74), (66, 104, 70), (136, 158, 82)]
SKY = [(180, 208, 232), (210, 216, 222), (246, 210, 164), (160, 172, 188)]
GINGER, CREAM, RUST = (218, 136, 64), (248, 226, 190), (156, 76, 28)
SLATE, PALE, WHITE, BLACK = (136, 142, 152), (182, 187, 194), (244, 242, 236), (46, 42, 44)
PINK, EAR = (214, 108, 112), (210, 156, 144)


def tone(colour: Colour, factor: float) -> Colour:
    """Make a colour darker (``factor`` < 1) or lighter (> 1)."""
    return tuple(int(min(255, c * factor)) for c in colour)


def pick(rng: Random, colours: Sequence[Colour]) -> Colour:
    """Choose one colour and shift it a little, as no two cushions are dyed the same."""
    return tone(colours[rng.integers(len(colours))], rng.uniform(0.88, 1.12))


def any_colour(rng: Random) -> Colour:
    """Choose the colour of a thing: orange and grey equally often, something else now and then."""
    return pick(rng, (ORANGE, GREY, OTHER)[rng.choice(3, p=(0.36, 0.36, 0.28))])


# --- shapes ----------------------------------------------------------------------------------------------------------
class Shape(NamedTuple):
    """A closed outline and its lit core, both ``(N, 2)``; the light of a part grows from outline to core."""

    outline: np.ndarray
    core: np.ndarray

    def moved(self, change: Callable[[np.ndarray], np.ndarray]) -> Shape:
        """The shape with ``change`` applied to its points."""
        return Shape(change(self.outline), change(self.core))


def spin(points: np.ndarray, angle: float) -> np.ndarray:
    """Rotate points about the origin by ``angle`` radians."""
    c, s = np.cos(angle), np.sin(angle)
    return points @ np.array([[c, s], [-s, c]]) if angle else points


def smooth(points: Any, closed: bool = False, steps: int = 6) -> np.ndarray:
    """Catmull-Rom curve through ``points`` (Catmull & Rom, 1974)."""
    p = np.asarray(points, float)
    p = np.concatenate([p[-1:], p, p[:2]] if closed else [2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    a, b, c, d = (p[i : len(p) - 3 + i, None] for i in range(4))
    q = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return q.reshape(-1, 2) if closed else np.concatenate([q.reshape(-1, 2), p[-2:-1]])


def polygon(*points: Sequence[float]) -> Shape:
    """Shape with straight edges through ``points``."""
    outline = np.array(points, float)
    return Shape(outline, outline * 0.5 + outline.sum(0) * (0.5 / len(outline)))


def blob(*points: Sequence[float]) -> Shape:
    """Closed smooth shape through ``points``."""
    return polygon(*smooth(points, closed=True))


def even(*points: Sequence[float]) -> Shape:
    """Smooth shape that is the same left and right: ``points`` are its right half, from top to bottom."""
    left = [(-x, y) for x, y in reversed(points) if x]
    return blob(*points, *left)


def box(left: float, top: float, right: float, bottom: float) -> Shape:
    """Upright rectangle."""
    return polygon((left, top), (right, top), (right, bottom), (left, bottom))


CIRCLE = np.array([(np.cos(t), np.sin(t)) for t in np.linspace(0, 2 * np.pi, 32, endpoint=False)])


def ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> Shape:
    """Ellipse about ``(x, y)``, turned by ``angle`` radians."""
    ring, centre = spin(CIRCLE * (rx, ry), angle), np.array((x, y))
    return Shape(ring + centre, ring * 0.45 + centre)


def ribbon(points: Any, *widths: float) -> Shape:
    """Tapered stroke along a smooth path with a round end: tails, legs, stripes, leaves."""
    path = smooth(points)
    t = np.linspace(0, 1, len(path))
    half = np.interp(t, np.linspace(0, 1, len(widths)), widths) * np.sqrt(1 - np.clip((t - 0.86) / 0.142, 0, 1) ** 2)
    along = np.gradient(path, axis=0)
    side = np.c_[-along[:, 1], along[:, 0]] * (half / (np.hypot(*along.T) + 1e-9))[:, None]
    return Shape(*(np.concatenate([path + side * k, (path - side * k)[::-1]]) for k in (1.0, 0.4)))


class Frame(NamedTuple):
    """An ellipse that carries markings: maps the unit circle onto a body part."""

    x: float
    y: float
    rx: float
    ry: float
    angle: float = 0.0

    def onto(self, points: Any) -> np.ndarray:
        """Points of the unit circle, on the body part."""
        return spin(np.asarray(points) * (self.rx, self.ry), self.angle) + np.array((self.x, self.y))


# --- layers ----------------------------------------------------------------------------------------------------------
class Place(NamedTuple):
    """Where a drawing in its own coordinates (ground at y=0, up is negative) stands in the picture (0 to 1)."""

    x: float = 0.0
    y: float = 0.0
    scale: float = 1.0
    angle: float = 0.0
    mirror: bool = False

    def put(self, points: np.ndarray) -> np.ndarray:
        """Own coordinates to picture coordinates."""
        stretch = np.array((-self.scale if self.mirror else self.scale, self.scale))
        return spin(points, self.angle) * stretch + np.array((self.x, self.y))


def _pairs(points: np.ndarray) -> list[tuple[float, float]]:
    return list(map(tuple, points.tolist()))


class Layer:
    """Transparent sheet on which parts are painted; colour, relief and cover stay apart until :meth:`paste_on`.

    Parameters
    ----------
    size
        Width and height in (oversampled) pixels.
    sun
        Where the light comes from, -1 left to 1 right; it shifts the lit core of each part.
    place
        Where the coordinates of the parts lie in the picture.
    """

    def __init__(self, size: int, sun: float, place: Place | None = None) -> None:
        self.size, self.sun, self.place = size, sun, place or Place()
        self.colour, self.relief = Image.new("RGB", (size, size)), Image.new("L", (size, size), 150)
        self.cover, self.eyes = Image.new("L", (size, size)), Image.new("L", (size, size))
        self._colour, self._relief, self._cover = map(ImageDraw.Draw, (self.colour, self.relief, self.cover))
        self._inks: list[tuple[list, Colour, float]] = []

    def _pixels(self, points: Any) -> np.ndarray:
        return self.place.put(np.asarray(points, float)) * self.size

    def flat(self, shape: Shape, colour: Colour) -> None:
        """Paint a part without relief: walls, floors, tiles."""
        outline = _pairs(self._pixels(shape.outline))
        self._colour.polygon(outline, colour)
        self._cover.polygon(outline, 255)
        self._relief.polygon(outline, 150)

    def part(self, shape: Shape, colour: Colour, marks: Sequence[tuple[Shape, Colour]] = (), rim: float = 0.78) -> None:
        """Paint a rounded part with ``marks`` (stripes, spots, …) that end at its outline, and a darker rim."""
        edge, core = self._pixels(shape.outline), self._pixels(shape.core)
        outline = _pairs(edge)
        self._colour.polygon(outline, colour)
        self._cover.polygon(outline, 255)
        if marks:
            self._mark(edge, marks)
        self._colour.line([*outline, outline[0]], tone(colour, rim), max(1, self.size // 200))
        core = core + np.abs(edge - core).mean() * 0.35 * np.array((self.sun, -0.7))
        for points, light in ((edge, 75), ((edge + core) / 2, 140), (core, 215)):
            self._relief.polygon(_pairs(points), light)

    def _mark(self, edge: np.ndarray, marks: Sequence[tuple[Shape, Colour]]) -> None:
        """Paint ``marks`` on a cut-out of the part and put back what lies within its ``edge``."""
        corner = np.floor(edge.min(0)).astype(int)
        piece = self.colour.crop((*corner.tolist(), *(np.ceil(edge.max(0)).astype(int) + 1).tolist()))
        inside, brush = Image.new("L", piece.size), ImageDraw.Draw(piece)
        ImageDraw.Draw(inside).polygon(_pairs(edge - corner), 255)
        for mark, paint in marks:
            brush.polygon(_pairs(self._pixels(mark.outline) - corner), paint)
        self.colour.paste(piece, tuple(corner.tolist()), inside)

    def line(self, colour: Colour, width: float, *points: tuple[float, float]) -> None:
        """Draw a line of ``width`` (share of the picture) into the colour only: joints, planks, grass."""
        self._colour.line(_pairs(self._pixels(points)), colour, max(1, round(width * self.size)))

    def ink(self, points: np.ndarray, colour: Colour, width: float = 0.0) -> None:
        """Remember a fine detail (eye, whisker) that is drawn sharply on top; width 0 fills the outline."""
        self._inks.append((_pairs(self._pixels(points)), colour, width * self.place.scale * self.size))

    def shine(self, shape: Shape) -> None:
        """Remember an eye, for the night."""
        ImageDraw.Draw(self.eyes).polygon(_pairs(self._pixels(shape.outline)), 255)

    def paste_on(self, picture: Image.Image, ground: float | None = None, fur: Random | None = None) -> Image.Image:
        """Put the layer on ``picture`` with its shadow on the ``ground``; gives its cover. ``fur`` frays the edges."""
        cover = fray(self.cover, self.size * 0.005) if fur else self.cover
        if ground is not None:
            shadow = shadow_of(cover, ground * self.size, self.sun)
            area = shadow.getbbox() or (0, 0, 0, 0)
            picture.paste((28, 24, 36), area, shadow.crop(area))
        area = cover.getbbox()
        if area:
            colour = fray(self.colour, self.size * 0.005) if fur else self.colour
            soft = self.relief.crop(area).filter(ImageFilter.GaussianBlur(self.size * 0.012))
            light = np.asarray(soft, np.float32)[..., None] * np.array((0.62, 0.61, 0.52), np.float32) / 255
            light += np.array((0.57, 0.55, 0.63), np.float32)  # cool in the shade, warm in the sun
            if fur:
                light *= hair(fur, light.shape[:2])
            picture.paste(to_image(np.asarray(colour.crop(area)) * light), area[:2], cover.crop(area))
        brush = ImageDraw.Draw(picture)
        for points, colour, width in self._inks:
            if width:
                brush.line(points, colour, max(1, round(width)))
            else:
                brush.polygon(points, colour)
        return cover


def to_image(picture: np.ndarray) -> Image.Image:
    """Float picture in 0..255 to Pillow."""
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


@cache
def noise(grain: int, streak: int = 1) -> np.ndarray:
    """Smooth random texture in [-1, 1], ``(1024, 1024)`` float32; ``streak`` > 1 stretches it downwards like fur."""
    rough = np.random.default_rng(grain * 31 + streak).uniform(0, 255, (1024 // grain // streak, 1024 // grain))
    picture = Image.fromarray(rough.astype(np.uint8)).resize((1024, 1024), Image.Resampling.BICUBIC)
    return (np.asarray(picture, np.float32) - 127.5) / 127.5


def grains(rng: Random, shape: tuple[int, ...], grain: int, streak: int = 1) -> np.ndarray:
    """A random window of a noise texture; ``shape`` is ``(height, width)``."""
    y, x = rng.integers(0, 1024, 2)
    rows, columns = (np.arange(y, y + shape[0]) % 1024, np.arange(x, x + shape[1]) % 1024)
    return noise(grain, streak)[np.ix_(rows, columns)]


def hair(rng: Random, shape: tuple[int, ...]) -> np.ndarray:
    """Brightness of fur, ``(height, width, 1)`` around 1: fine hairs and soft tufts."""
    return (1 + 0.12 * grains(rng, shape, 2, 3) + 0.06 * grains(rng, shape, 16))[..., None]


@cache
def fray_map(n: int, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel, row and column of a neighbour up to ``reach`` pixels away."""
    rows, columns = np.mgrid[:n, :n]
    shifts = (noise(3)[:n, :n] + noise(5, 2)[:n, :n], noise(3, 2)[:n, :n] + noise(5)[:n, :n])
    rows, columns = (
        np.clip(at + s * reach, 0, n - 1).astype(np.intp) for at, s in zip((rows, columns), shifts, strict=True)
    )
    return rows, columns


def fray(sheet: Image.Image, reach: float) -> Image.Image:
    """Take every pixel from a neighbour: smooth outlines become furry ones."""
    return Image.fromarray(np.asarray(sheet)[fray_map(min(sheet.size), reach)])


def shadow_of(cover: Image.Image, ground: float, sun: float) -> Image.Image:
    """Soft shadow, half dark: the cover laid flat on the floor away from the light. A quarter of the size will do."""
    small = cover.reduce(4)
    y, flat, lean = ground / 4, 0.32, sun * 0.5
    laid = small.transform(
        small.size, Image.Transform.AFFINE, (1, -lean / flat, lean / flat * y, 0, 1 / flat, y - y / flat)
    )
    soft = laid.filter(ImageFilter.GaussianBlur(small.size[0] * 0.018)).point(lambda v: v // 2)
    return soft.resize(cover.size, Image.Resampling.BILINEAR)


# --- coats -----------------------------------------------------------------------------------------------------------
class Coat(NamedTuple):
    """What an animal wears. ``white`` is the number of white paws, ``bib`` the size of the white breast (0 none)."""

    name: str
    species: str
    base: Colour
    light: Colour
    dark: Colour
    pattern: str = "plain"
    eye: Colour = (120, 170, 90)
    nose: Colour = (196, 120, 112)
    bib: float = 0.0
    white: int = 0


TIGGER = Coat("orange tabby", "cat", GINGER, CREAM, RUST, "tabby", (176, 178, 62), bib=0.5)
MISTY = Coat("grey cat", "cat", SLATE, WHITE, tone(SLATE, 0.8), "plain", (226, 196, 60), (120, 96, 104), 0.32, 1)
OTHERS = (
    Coat("plain ginger cat", "cat", GINGER, (230, 158, 92), RUST),
    Coat("cream cat", "cat", (232, 196, 148), CREAM, (200, 160, 110), eye=(110, 150, 180)),
    Coat("spotted orange cat", "cat", GINGER, CREAM, (120, 60, 28), "spots"),
    Coat("calico cat", "cat", WHITE, WHITE, (70, 62, 60), "calico", (190, 160, 60)),
    Coat("ginger and white cat", "cat", GINGER, WHITE, WHITE, "patches", (190, 150, 60), bib=0.6, white=4),
    Coat("grey tabby", "cat", SLATE, PALE, (74, 78, 88), "tabby"),
    Coat("grey and white cat", "cat", SLATE, WHITE, WHITE, "patches", bib=0.6, white=4),
    Coat("spotted grey cat", "cat", SLATE, PALE, (70, 74, 84), "spots"),
    Coat("black cat", "cat", (64, 61, 66), (74, 71, 76), BLACK, eye=(200, 190, 60)),
    Coat("white cat", "cat", (238, 234, 226), WHITE, (210, 205, 198), eye=(100, 150, 200)),
    Coat("orange dog", "dog", (208, 128, 60), (240, 208, 160), (150, 82, 36), eye=(70, 44, 26)),
    Coat("orange and white dog", "dog", GINGER, WHITE, (160, 86, 36), eye=(70, 44, 26), bib=0.6, white=4),
    Coat("grey dog", "dog", (132, 136, 144), PALE, (92, 96, 104), eye=(70, 52, 36)),
    Coat("grey and white dog", "dog", SLATE, WHITE, (100, 104, 112), eye=(60, 44, 30), bib=0.5, white=2),
    Coat("fox", "fox", (214, 112, 46), WHITE, (66, 42, 34), eye=(190, 130, 40), bib=0.6),
    Coat("pale fox", "fox", (204, 124, 70), WHITE, (76, 52, 44), eye=(190, 130, 40), bib=0.6),
    Coat("grey rabbit", "rabbit", (142, 142, 146), PALE, (104, 104, 110), eye=(52, 40, 34)),
    Coat("orange rabbit", "rabbit", (212, 146, 84), CREAM, (160, 96, 50), eye=(52, 40, 34)),
)


def markings(coat: Coat, frame: Frame, rng: Random) -> list[tuple[Shape, Colour]]:
    """Stripes, spots or patches for one body part."""
    if coat.pattern == "tabby":
        return [(rib, coat.dark) for rib in tabby_ribs(frame)]
    if coat.pattern == "spots":
        return [(ellipse(*frame.onto(p), 0.032, 0.026), coat.dark) for p in rng.uniform(-0.85, 0.75, (26, 2))]
    colours = {"patches": (coat.dark, coat.dark, coat.dark), "calico": (GINGER, coat.dark, GINGER)}.get(
        coat.pattern, ()
    )
    return [
        (ellipse(*frame.onto(rng.uniform(-0.8, 0.8, 2)), *(frame.rx * rng.uniform(0.25, 0.5, 2))), c) for c in colours
    ]


def tabby_ribs(frame: Frame) -> list[Shape]:
    """Stripes that run down from the back and follow the roundness of the body."""
    ribs, drop, width = [], np.linspace(0, 1, 4), 0.085 if frame.rx > frame.ry else 0.11
    for s in np.linspace(-0.78, 0.78, 7):
        top = -np.sqrt(1 - s * s)
        path = np.c_[s + 0.22 * s * np.sin(drop * 2.2), top + (0.42 + 0.12 * np.cos(9 * s) - top) * drop]
        ribs.append(ribbon(path, width, width * 0.8, width * 0.3).moved(frame.onto))
    return ribs


def rings(coat: Coat, path: Any, width: float, count: int) -> list[tuple[Shape, Colour]]:
    """Rings of a tabby around a tail or a leg; none on other coats."""
    path = smooth(path)
    at = np.linspace(0.12, 0.9, count) * (len(path) - 1) if coat.pattern == "tabby" else []
    way = np.arctan2(*np.gradient(path, axis=0).T[::-1])
    return [(ellipse(*path[int(i)], width * 0.32, width * 1.5, way[int(i)]), coat.dark) for i in at]


# --- heads: one row per part, in units of the head's radius, looking at us -------------------------------------------
class Piece(NamedTuple):
    """Part of a head. ``depth`` is how near it is to us: it slides when the head turns. ``twice``: left and right."""

    shape: Shape
    paint: str | Colour
    depth: float = 0.0
    twice: bool = False
    ink: bool = False


def bean(x: float, y: float, rx: float, ry: float, paint: str | Colour, depth: float, twice: bool = False) -> Piece:
    """Small sharp oval: nose, tongue, glint."""
    return Piece(ellipse(x, y, rx, ry), paint, depth, twice, ink=True)


CAT_EAR = polygon((0.92, -0.3), (0.96, -0.85), (0.88, -1.22), (0.5, -1.0), (0.2, -0.7))
CAT_FACE = (
    Piece(ellipse(0, 0.6, 0.2, 0.16), "chin", 0.4),
    Piece(ellipse(0.19, 0.36, 0.25, 0.24), "muzzle", 0.4, twice=True),
    Piece(polygon((-0.13, 0.1), (0.13, 0.1), (0.05, 0.24), (-0.05, 0.24)), "nose", 0.5, ink=True),
)
HEADS = {
    "cat": (
        Piece(CAT_EAR, "base", twice=True),
        Piece(polygon((0.8, -0.5), (0.84, -1.02), (0.42, -0.75)), EAR, twice=True),
        Piece(even((0, -0.86), (0.62, -0.7), (0.98, -0.1), (0.92, 0.38), (0.5, 0.72), (0, 0.82)), "skull"),
        *CAT_FACE,
    ),
    "rabbit": (
        Piece(ellipse(0.42, -1.35, 0.24, 0.85, 0.25), "base", twice=True),
        Piece(ellipse(0.42, -1.35, 0.11, 0.62, 0.25), EAR, twice=True),
        Piece(ellipse(0, 0, 0.82, 0.86), "skull"),
        *CAT_FACE,
    ),
    "dog": (
        Piece(even((0, -0.85), (0.55, -0.72), (0.8, -0.2), (0.66, 0.3), (0.4, 0.6)), "skull"),
        Piece(
            ribbon([(0.5, -0.78), (0.98, -0.45), (1.02, 0.2), (0.9, 0.55)], 0.12, 0.26, 0.27, 0.2), "dark", twice=True
        ),
        bean(0, 0.98, 0.13, 0.22, PINK, 0.5),
        Piece(even((0, -0.15), (0.28, 0.1), (0.42, 0.62), (0.26, 0.96)), "light", 0.45),
        bean(0, 0.4, 0.22, 0.15, BLACK, 0.6),
        bean(-0.06, 0.35, 0.07, 0.03, PALE, 0.6),
    ),
    "fox": (
        Piece(polygon((0.88, -0.25), (1.0, -1.4), (0.2, -0.7)), "dark", twice=True),
        Piece(polygon((0.9, -0.2), (0.95, -0.95), (0.45, -0.85), (0.2, -0.7)), "base", twice=True),
        Piece(polygon((0.78, -0.5), (0.88, -1.05), (0.44, -0.7)), CREAM, twice=True),
        Piece(even((0, -0.78), (0.6, -0.6), (1.14, 0.22), (0.5, 0.55), (0.14, 1.0)), "skull"),
        Piece(ellipse(0, 0.62, 0.2, 0.36), "base", 0.45),
        bean(0, 0.92, 0.15, 0.11, BLACK, 0.6),
    ),
}
EYES_AT = {"cat": 0.43, "dog": 0.36, "fox": 0.4, "rabbit": 0.52}
MOUTH = smooth([(-0.22, 0.42), (-0.1, 0.49), (0, 0.38), (0.1, 0.49), (0.22, 0.42)])
LID = smooth([(-0.17, -0.02), (0, 0.07), (0.17, -0.02)])
FLIP = np.array((-1.0, 1.0))


def face_marks(coat: Coat) -> list[tuple[Shape, Colour]]:
    """Markings of a face: the M and cheek lines of a tabby, a white blaze, white fox cheeks."""
    right: list[Shape] = []
    if coat.species == "fox":
        right = [blob((1.25, 0.05), (0.5, 0.16), (0.16, 0.55), (0.05, 1.1), (0.7, 0.9))]
    elif coat.pattern == "tabby":
        right = [ribbon([(x * 0.8, -0.95), (x, -0.6), (x * 1.1, -0.32)], 0.07, 0.08, 0.03) for x in (0.0, 0.32)]
        right += [ribbon([(1.05, y - 0.08), (0.8, y), (0.58, y + 0.03)], 0.08, 0.06, 0.03) for y in (0.02, 0.26, 0.48)]
        right += [ribbon([(0.9, -0.75), (0.66, -0.62), (0.54, -0.4)], 0.09, 0.07, 0.03)]
    elif coat.pattern == "spots":
        right = [
            ellipse(x, y, 0.09, 0.07) for x, y in ((0.12, -0.6), (0.4, -0.5), (0.7, -0.4), (0.75, 0.2), (0.6, 0.4))
        ]
    elif coat.pattern == "patches":
        right = [blob((-0.1, -0.75), (0.1, -0.7), (0.2, -0.2), (0.65, 0.5), (0.3, 0.95), (-0.1, 0.9))]
    elif coat.pattern == "calico":
        return [(ellipse(-0.6, -0.5, 0.62, 0.6), GINGER), (ellipse(0.66, -0.5, 0.55, 0.55), coat.dark)]
    paint = coat.light if coat.species == "fox" else coat.dark
    return [(m, paint) for shape in right for m in (shape, shape.moved(lambda p: p * FLIP))]


def head(
    layer: Layer, coat: Coat, x: float, y: float, r: float, tilt: float, turn: float, asleep: bool = False
) -> None:
    """Head of radius ``r`` at ``(x, y)``; ``tilt`` leans it, ``turn`` (-1 to 1) makes it look sideways."""

    def at(shape: Shape, depth: float = 0.0) -> Shape:
        slide = np.array((turn * depth, 0))
        return shape.moved(lambda p: spin((p + slide) * r, tilt) + np.array((x, y)))

    muzzle = tone(coat.base, 1.12) if coat is MISTY else coat.light
    paints = {**coat._asdict(), "skull": coat.base, "muzzle": muzzle, "chin": coat.light}
    for piece in HEADS[coat.species]:
        for flip in (-1, 1) if piece.twice else (1,):
            shape = at(piece.shape.moved(lambda p, f=flip: p * (f, 1)), piece.depth)
            paint = paints.get(piece.paint, piece.paint)
            if piece.ink:
                layer.ink(shape.outline, paint)
            else:
                marks = [(at(m, 0.2), c) for m, c in face_marks(coat)] if piece.paint == "skull" else ()
                layer.part(shape, paint, marks, rim=0.92 if piece.depth else 0.78)
    for side in (-1, 1):
        eye(layer, coat, at, side * EYES_AT[coat.species], asleep)
    if coat.species in ("cat", "rabbit"):
        layer.ink(at(Shape(MOUTH, MOUTH), 0.5).outline, (84, 54, 50), 0.011)
        for side in (-1, 1):
            for dy in (-0.1, 0.02, 0.16):
                hair_path = np.array(
                    [(side * 0.35, 0.34 + dy * 0.4), (side * 0.85, 0.3 + dy), (side * 1.35, 0.34 + dy * 1.9)]
                )
                layer.ink(at(Shape(hair_path, hair_path), 0.3).outline, WHITE, 0.006)


def eye(layer: Layer, coat: Coat, at: Callable[..., Shape], x: float, asleep: bool) -> None:
    """Eye with iris, pupil and a glint, or the curved line of a closed one."""
    if asleep:
        lid = LID + np.array((x, 0))
        layer.ink(at(Shape(lid, lid), 0.25).outline, BLACK, 0.014)
        return
    narrow = coat.species in ("cat", "fox")
    rx, ry, lean = (0.2, 0.165, -0.22 * np.sign(x)) if narrow else (0.15, 0.16, 0.0)
    for dx, dy, wide, high, paint in (
        (0, 0, rx * 1.2, ry * 1.22, BLACK),
        (0, 0, rx, ry, coat.eye),
        (0, 0, 0.07 if narrow else 0.1, ry * 0.88, (20, 16, 18)),
        (-0.06, -0.06, 0.05, 0.05, (252, 252, 252)),
    ):
        layer.ink(at(ellipse(x + dx, dy - 0.12, wide, high, lean), 0.25).outline, paint)
    layer.shine(at(ellipse(x, -0.12, rx, ry, lean), 0.25))


# --- bodies ----------------------------------------------------------------------------------------------------------
def trunk(layer: Layer, coat: Coat, rng: Random, frame: Frame, shape: Shape | None = None, bib: bool = False) -> None:
    """Body or haunch: a coat-coloured part with its markings and perhaps the white bib."""
    marks = markings(coat, frame, rng)
    if bib and coat.bib:
        marks.append((ellipse(*frame.onto((0, -0.25)), frame.rx * coat.bib, frame.ry * coat.bib * 1.1), coat.light))
    layer.part(shape or ellipse(*frame), coat.base, marks)


def leg(layer: Layer, coat: Coat, number: int, width: float, *path: tuple[float, float], shade: float = 1.0) -> None:
    """Leg along ``path`` with its paw; the first ``coat.white`` legs wear a white sock. ``shade`` < 1: far side."""
    (x, y), sock = path[-1], coat.light if number < coat.white else coat.dark if coat.species == "fox" else coat.base
    marks = [(ring, tone(c, shade)) for ring, c in rings(coat, path, width, 4)]
    if sock != coat.base:
        marks.append((ellipse(x, y, width * 2.2, width * 1.6), tone(sock, shade)))
    layer.part(ribbon(path, width * 1.25, width, width * 0.85), tone(coat.base, shade), marks)
    layer.part(ellipse(x - width * 0.35, y - width * 0.25, width * 1.25, width * 0.72), tone(sock, shade))
    for dx in (-0.8, -0.25):
        toe = np.array([(x + width * dx, y), (x + width * dx, y + width * 0.28)])
        layer.ink(toe, tone(sock, 0.6), 0.007)


def tail(layer: Layer, coat: Coat, width: float, *path: tuple[float, float]) -> None:
    """Tail along ``path``: bushy and white-tipped on a fox, short on a dog, a pompon on a rabbit."""
    if coat.species == "rabbit":
        layer.part(ellipse(*np.array(path[0]) * (1.05, 1.1), 0.09, 0.085), WHITE)
    elif coat.species == "fox":
        tip = [(ellipse(*path[-1], width * 2.6, width * 2.6), coat.light)]
        layer.part(ribbon(path, width * 0.9, width * 1.9, width * 2.1, width * 1.1), coat.base, tip)
    elif coat.species == "dog":
        layer.part(ribbon(path[:3], width * 0.9, width * 0.5), coat.base)
    else:
        layer.part(ribbon(path, width, width * 1.05, width * 0.8), coat.base, rings(coat, path, width, 7))


# --- poses -----------------------------------------------------------------------------------------------------------
class Stance(NamedTuple):
    """The small choices within a pose; every animal in this place would share them."""

    turn: float
    tilt: float
    sway: float
    step: float


def sitting(layer: Layer, coat: Coat, s: Stance, rng: Random) -> None:
    """Upright, facing us, tail to the side."""
    tail(layer, coat, 0.055, (0.2, -0.1), (0.42, -0.08), (0.54, -0.26 - 0.15 * s.sway), (0.46, -0.5 - 0.2 * s.sway))
    for x in (-0.2, 0.2):
        trunk(layer, coat, rng, Frame(x, -0.16, 0.15, 0.165))
    pear = even((0, -0.7), (0.15, -0.58), (0.24, -0.28), (0.22, -0.03))
    trunk(layer, coat, rng, Frame(0, -0.34, 0.24, 0.34), pear, bib=True)
    for i, x in enumerate((-0.1, 0.1)):
        leg(layer, coat, i, 0.058, (x, -0.36), (x * 0.85, -0.2), (x * 0.95, -0.03))
    head(layer, coat, 0.05 * s.turn, -0.8, 0.235, s.tilt, s.turn * 0.35)


def lying(layer: Layer, coat: Coat, s: Stance, rng: Random) -> None:
    """Like a sphinx: body along the floor, front legs stretched out, head up."""
    tail(layer, coat, 0.05, (0.42, -0.12), (0.58, -0.1), (0.62, -0.03), (0.3 - 0.2 * s.sway, 0.0))
    leg(layer, coat, 2, 0.055, (-0.22, -0.14), (-0.4, -0.07), (-0.6, -0.03), shade=0.85)
    trunk(layer, coat, rng, Frame(0.06, -0.22, 0.42, 0.21, -0.04))
    trunk(layer, coat, rng, Frame(0.3, -0.16, 0.17, 0.15))
    trunk(layer, coat, rng, Frame(-0.28, -0.25, 0.15, 0.2), bib=True)
    leg(layer, coat, 0, 0.055, (-0.24, -0.1), (-0.38, -0.03), (-0.52, 0.0))
    leg(layer, coat, 1, 0.05, (0.32, -0.05), (0.22, -0.02), (0.12, 0.01))
    head(layer, coat, -0.36, -0.5, 0.225, s.tilt, -0.2 + s.turn * 0.3)


def walking(layer: Layer, coat: Coat, s: Stance, rng: Random) -> None:
    """Side view in mid-step, tail up."""
    step = 0.1 * s.step
    leg(layer, coat, 2, 0.05, (-0.24, -0.4), (-0.2 + step, -0.22), (-0.24 + step * 2, -0.05), shade=0.8)
    leg(layer, coat, 3, 0.05, (0.28, -0.4), (0.36 - step, -0.22), (0.32 - step * 2, -0.05), shade=0.8)
    tail(layer, coat, 0.046, (0.34, -0.54), (0.5, -0.62), (0.54 + 0.1 * s.sway, -0.85), (0.44 + 0.25 * s.sway, -1.04))
    back, belly = (
        [(-0.4, -0.56), (-0.2, -0.62), (0.1, -0.6), (0.34, -0.62)],
        [(0.1, -0.32), (-0.2, -0.28), (-0.4, -0.36)],
    )
    trunk(layer, coat, rng, Frame(0.02, -0.46, 0.44, 0.17), blob(*back, (0.43, -0.48), (0.36, -0.32), *belly))
    trunk(layer, coat, rng, Frame(-0.36, -0.54, 0.13, 0.16, -0.5), bib=True)
    leg(layer, coat, 0, 0.056, (-0.3, -0.4), (-0.32 - step, -0.22), (-0.32 - step * 2, -0.02))
    leg(layer, coat, 1, 0.058, (0.32, -0.42), (0.4 + step, -0.22), (0.36 + step * 2, -0.02))
    head(layer, coat, -0.47, -0.74, 0.195, s.tilt, -0.25 + s.turn * 0.3)


def close_up(layer: Layer, coat: Coat, s: Stance, rng: Random) -> None:
    """Head and shoulders."""
    shoulders = even((0, -0.5), (0.3, -0.3), (0.45, 0.1), (0.45, 0.6))
    trunk(layer, coat, rng, Frame(0, 0.06, 0.46, 0.5), shoulders, bib=True)
    head(layer, coat, 0.06 * s.turn, -0.46, 0.38, s.tilt, s.turn * 0.4)


def asleep(layer: Layer, coat: Coat, s: Stance, rng: Random) -> None:
    """Curled up in a ring, tail around the paws."""
    trunk(layer, coat, rng, Frame(0, -0.24, 0.44, 0.25))
    trunk(layer, coat, rng, Frame(0.2, -0.17, 0.22, 0.17, 0.2))
    leg(layer, coat, 0, 0.05, (-0.02, -0.1), (-0.1, -0.05), (-0.2, -0.03))
    tail(layer, coat, 0.05, (0.38, -0.12), (0.26, -0.01), (0.05, 0.02), (-0.1, 0.0))
    head(layer, coat, -0.27, -0.2, 0.19, 0.25 + s.tilt, -0.1, asleep=True)


class Pose(NamedTuple):
    """How to draw a pose, its share of the pictures, its range of scales, its half width and height at scale 1."""

    draw: Callable[[Layer, Coat, Stance, Random], None]
    share: float
    scales: tuple[float, float]
    reach: float
    height: float


POSES = {
    "sitting": Pose(sitting, 0.26, (0.5, 0.84), 0.32, 1.08),
    "lying": Pose(lying, 0.21, (0.52, 0.8), 0.56, 0.76),
    "walking": Pose(walking, 0.21, (0.5, 0.78), 0.58, 1.0),
    "close up": Pose(close_up, 0.16, (0.62, 0.95), 0.38, 0.92),
    "asleep": Pose(asleep, 0.16, (0.58, 0.9), 0.46, 0.5),
}

# --- things: rows of (shape, factor on the colour of the thing or a colour of its own) -------------------------------
LEAVES = ((-0.5, -0.75), (0.5, -0.8), (-0.2, -1.1), (0.25, -1.15), (0.65, -0.5), (-0.65, -0.45))
THINGS: dict[str, list[tuple[Shape, float | Colour]]] = {
    "cushion": [(even((0, -0.82), (0.5, -0.9), (0.44, -0.45), (0.5, 0), (0, -0.06)), 1)],
    "ball": [(ellipse(0, -0.4, 0.4, 0.4), 1)],
    "wool": [(ellipse(0, -0.38, 0.38, 0.38), 1)]
    + [(ribbon([(-0.33, k), (0, k - 0.16), (0.33, k + 0.08)], 0.025, 0.025), 0.75) for k in (-0.5, -0.34, -0.18)],
    "plant": [
        (ribbon([(0, -0.4), (x * 0.4, y - 0.1), (x, y)], 0.03, 0.13, 0.02), LEAF[i % 4])
        for i, (x, y) in enumerate(LEAVES)
    ]
    + [(polygon((-0.3, -0.48), (0.3, -0.48), (0.22, 0), (-0.22, 0)), 1)],
    "mug": [
        (ellipse(0.32, -0.32, 0.18, 0.2), 0.85),
        (box(-0.3, -0.65, 0.3, 0), 1),
        (ellipse(0, -0.65, 0.3, 0.07), 0.5),
    ],
    "books": [(box(-0.5, -0.2, 0.5, 0), 1), (box(-0.42, -0.4, 0.55, -0.2), PALE), (box(-0.52, -0.6, 0.44, -0.4), 0.8)],
    "carton": [
        (polygon((-0.5, -0.7), (-0.3, -0.95), (0.6, -0.95), (0.5, -0.7)), 0.7),
        (box(-0.5, -0.7, 0.5, 0), 1),
        (box(-0.08, -0.7, 0.08, 0), 1.15),
    ],
    "pumpkin": [(ellipse(x, -0.34, 0.2, 0.34), 1) for x in (-0.34, 0.34, -0.18, 0.18, 0)]
    + [(ribbon([(0, -0.64), (0.03, -0.78), (0.1, -0.84)], 0.05, 0.04), (110, 100, 60))],
    "bowl": [(polygon((-0.5, -0.36), (0.5, -0.36), (0.38, 0), (-0.38, 0)), 1), (ellipse(0, -0.36, 0.5, 0.1), 0.5)],
}


def thing(size: int, sun: float, place: Place, rng: Random) -> Layer:
    """Some thing in some colour, on a layer of its own; cushions and balls may be striped or dotted."""
    layer, colour, name = Layer(size, sun, place), any_colour(rng), list(THINGS)[rng.integers(len(THINGS))]
    fabric, second = rng.integers(3), tone(colour, rng.choice((0.7, 1.3)))
    marks = []
    if name in ("cushion", "ball") and fabric:
        stripes = [box(x, -1.1, x + 0.09, 0.1) for x in np.arange(-0.5, 0.5, 0.2)]
        dots = [ellipse(x, y, 0.05, 0.05) for x in np.arange(-0.4, 0.5, 0.2) for y in (-0.7, -0.45, -0.2)]
        marks = [(shape, second) for shape in (stripes if fabric == 1 else dots)]
    for shape, paint in THINGS[name]:
        layer.part(shape, paint if isinstance(paint, tuple) else tone(colour, paint), marks)
    return layer


# --- scenes: paint a backdrop, give the height where the floor begins ------------------------------------------------
def room(layer: Layer, rng: Random, horizon: float, planks: bool = True) -> float:
    """Wall with one to three pictures, skirting board, floor of planks."""
    layer.flat(box(0, 0, 1, horizon), pick(rng, WALL))
    layer.flat(box(0, horizon, 1, 1), pick(rng, WOOD))
    layer.flat(box(0, horizon - 0.03, 1, horizon), (232, 228, 220))
    for x in np.linspace(-1.2, 2.2, 18) if planks else ():
        layer.line((96, 70, 52), 0.004, (0.5 + (x - 0.5) * 0.45, horizon), (x, 1))
    for x in rng.permutation([0.06, 0.4, 0.72])[: rng.integers(1, 4)]:
        w, h, y = *rng.uniform(0.14, 0.22, 2), rng.uniform(0.02, 0.12)
        layer.part(box(x, y, x + w, y + h), pick(rng, WOOD))
        layer.flat(box(x + 0.015, y + 0.015, x + w - 0.015, y + h - 0.015), WHITE)
        layer.flat(ellipse(x + w / 2, y + h / 2, w * 0.3, h * 0.3), any_colour(rng))
    return horizon


def plain_wall(layer: Layer, rng: Random) -> float:
    """Nothing but a wall with pictures."""
    return room(layer, rng, rng.uniform(0.55, 0.7))


def living_room(layer: Layer, rng: Random) -> float:
    """Sofa against the wall."""
    horizon, colour = room(layer, rng, rng.uniform(0.5, 0.64)), any_colour(rng)
    left, right = rng.uniform(-0.2, 0.1), rng.uniform(0.85, 1.2)
    layer.part(box(left, horizon - 0.3, right, horizon), colour)
    seat = (right - left) / 3
    for x in left + seat * np.arange(3):
        layer.part(
            blob((x, horizon - 0.1), (x + seat, horizon - 0.1), (x + seat, horizon + 0.06), (x, horizon + 0.06)), colour
        )
    return horizon


def kitchen(layer: Layer, rng: Random) -> float:
    """Tiles, cupboards and a chequered floor."""
    horizon, front, tile = rng.uniform(0.5, 0.62), any_colour(rng), pick(rng, WALL)
    layer.flat(box(0, 0, 1, 1), tile)
    checks(layer, (0, horizon, 1, 1), 0.13, 0.1, tone(tile, 0.72))
    joints(layer, horizon, 0.1, 0.08, tone(tile, 0.86))
    for x in np.arange(-0.1, 1.1, 0.28):
        layer.part(box(x, horizon - 0.24, x + 0.27, horizon), front)
        layer.part(ellipse(x + 0.22, horizon - 0.13, 0.012, 0.012), WHITE)
    layer.part(box(-0.1, horizon - 0.28, 1.1, horizon - 0.23), pick(rng, WOOD))
    return horizon


def checks(layer: Layer, area: tuple[float, float, float, float], wide: float, high: float, colour: Colour) -> None:
    """Every second field of a chequered area."""
    left, top, right, bottom = area
    for row, y in enumerate(np.arange(top, bottom, high)):
        for x in np.arange(left + wide * (row % 2), right, wide * 2):
            layer.flat(box(x, y, min(x + wide, right), min(y + high, bottom)), colour)


def joints(layer: Layer, bottom: float, wide: float, high: float, colour: Colour, shift: float = 0.0) -> None:
    """Joints between the tiles (or, with ``shift``, the bricks) of a wall."""
    for row, y in enumerate(np.arange(0, bottom, high)):
        layer.line(colour, 0.005, (0, y), (1, y))
        for x in np.arange(shift * (row % 2), 1, wide):
            layer.line(colour, 0.005, (x, y), (x, min(y + high, bottom)))


def pavement(layer: Layer, rng: Random) -> float:
    """Brick wall above paving stones."""
    horizon, brick = rng.uniform(0.38, 0.55), pick(rng, ORANGE + GREY)
    layer.flat(box(0, 0, 1, horizon), brick)
    joints(layer, horizon, 0.16, 0.07, tone(brick, 0.75), shift=0.08)
    layer.flat(box(0, horizon, 1, 1), pick(rng, GREY + WOOD))
    for y in horizon + (1 - horizon) * np.array([0.0, 0.18, 0.42, 0.75]):
        layer.line((90, 90, 92), 0.007, (0, y), (1, y))
    for x in np.linspace(-0.8, 1.8, 9):
        layer.line((90, 90, 92), 0.006, (0.5 + (x - 0.5) * 0.6, horizon), (x, 1))
    return horizon


def garden(layer: Layer, rng: Random) -> float:
    """Sky, fence, hedge and lawn with flowers."""
    horizon, lawn = rng.uniform(0.36, 0.54), pick(rng, LEAF)
    layer.flat(box(0, 0, 1, horizon), pick(rng, SKY))
    fence = any_colour(rng)
    for x in np.arange(-0.02, 1.0, 0.1) if rng.random() < 0.5 else ():
        layer.part(polygon((x, 0.2), (x + 0.04, 0.15), (x + 0.08, 0.2), (x + 0.08, horizon), (x, horizon)), fence)
    for x in rng.uniform(0, 1, 6):
        layer.part(ellipse(x, horizon, *rng.uniform(0.09, 0.2, 2)), pick(rng, LEAF))
    layer.flat(box(0, horizon, 1, 1), lawn)
    for x, y in rng.uniform((0, horizon), (1, 1), (160, 2)):
        layer.line(tone(lawn, rng.uniform(0.7, 1.35)), 0.004, (x, y), (x + rng.uniform(-0.015, 0.015), y - 0.035))
    for x, y in rng.uniform((0, horizon), (1, 1), (rng.integers(0, 14), 2)):
        layer.flat(ellipse(x, y, 0.014, 0.014), any_colour(rng))
    return horizon


def park_in_autumn(layer: Layer, rng: Random) -> float:
    """Tree trunks and fallen leaves."""
    horizon = rng.uniform(0.4, 0.55)
    layer.flat(box(0, 0, 1, horizon), pick(rng, SKY))
    for x in rng.uniform(0, 1, 5):
        layer.part(ellipse(x, 0.0, *rng.uniform(0.12, 0.25, 2)), pick(rng, ORANGE + LEAF))
        layer.part(box(x - 0.03, 0.1, x + rng.uniform(0.02, 0.07), horizon + 0.03), pick(rng, WOOD))
    layer.flat(box(0, horizon, 1, 1), pick(rng, [(136, 118, 86), (110, 122, 78), (130, 128, 122)]))
    for x, y in rng.uniform((0, horizon), (1, 1), (70, 2)):
        layer.flat(ellipse(x, y, 0.025, 0.012, rng.uniform(0, 3)), any_colour(rng))
    return horizon


def window_sill(layer: Layer, rng: Random) -> float:
    """Window with a view, curtains and a broad sill."""
    layer.flat(box(0, 0, 1, 1), pick(rng, WALL))
    layer.flat(box(0.12, 0, 0.88, 0.7), pick(rng, SKY))
    for x in (0.2, 0.5, 0.85):
        layer.flat(ellipse(x, 0.74, *rng.uniform(0.14, 0.32, 2)), pick(rng, LEAF + GREY + ORANGE))
    for bar in (
        box(0.105, 0, 0.135, 0.7),
        box(0.485, 0, 0.515, 0.7),
        box(0.865, 0, 0.895, 0.7),
        box(0.1, 0.3, 0.9, 0.33),
    ):
        layer.part(bar, WHITE)
    curtain = any_colour(rng)
    for x in (-0.03, 0.03, 0.09, 0.91, 0.97):
        layer.part(blob((x, -0.1), (x + 0.05, 0.3), (x + 0.03, 0.8), (x - 0.04, 0.8), (x - 0.03, 0.3)), curtain)
    layer.flat(box(0, 0.68, 1, 1), pick(rng, [*WOOD, WHITE]))
    layer.line((120, 104, 92), 0.008, (0, 0.69), (1, 0.69))
    return 0.68


def bedroom(layer: Layer, rng: Random) -> float:
    """Bed with pillows and a blanket, striped or plain."""
    room(layer, rng, 0.6)
    layer.part(blob((0.5, 0.15), (0.9, 0.22), (0.95, 0.6), (0.05, 0.6), (0.1, 0.22)), pick(rng, WOOD))
    for x in (0.28, 0.72):
        layer.part(ellipse(x, 0.42, 0.2, 0.11), any_colour(rng))
    blanket, second, gap = any_colour(rng), any_colour(rng), rng.choice((0.12, 0.5))
    stripes = [(box(-0.2, y, 1.2, y + 0.04), second) for y in np.arange(0.55, 1, gap)]
    layer.part(blob((-0.2, 0.52), (0.5, 0.46), (1.2, 0.52), (1.2, 1.2), (0.5, 1.3), (-0.2, 1.2)), blanket, stripes)
    return 0.55


def study(layer: Layer, rng: Random) -> float:
    """Shelves full of books."""
    horizon = room(layer, rng, rng.uniform(0.56, 0.68))
    wood = pick(rng, WOOD)
    layer.flat(box(0.04, 0, 0.96, horizon), tone(wood, 0.5))
    for y in horizon * np.array([1, 2, 3]) / 3:
        for x in np.arange(0.06, 0.9, 0.055):
            if rng.random() < 0.85:
                layer.part(box(x, y - rng.uniform(0.1, 0.17), x + rng.uniform(0.03, 0.05), y - 0.02), any_colour(rng))
        layer.part(box(0.04, y - 0.02, 0.96, y), wood)
    return horizon


def carpet(layer: Layer, rng: Random) -> float:
    """Patterned rug, seen from above."""
    ground, second = any_colour(rng), tone(any_colour(rng), rng.choice((0.75, 1.25)))
    layer.flat(box(0, 0, 1, 1), pick(rng, WOOD))
    layer.part(box(0.03, 0.06, 0.97, 1.3), second)
    layer.flat(box(0.08, 0.11, 0.92, 1), ground)
    for row, y in enumerate(np.arange(0.2, 1.1, 0.2)):
        for x in np.arange(0.1 + 0.1 * (row % 2), 1, 0.2):
            layer.flat(polygon((x, y - 0.07), (x + 0.06, y), (x, y + 0.07), (x - 0.06, y)), tone(second, 0.95))
    return 0.4


SCENES = (
    living_room, kitchen, garden, window_sill, carpet, pavement, bedroom, study, park_in_autumn, plain_wall
)  # fmt: skip


# --- light and style -------------------------------------------------------------------------------------------------
TINTS = ((1, 1, 1), (1.12, 1.0, 0.82), (0.88, 0.97, 1.14), (1.12, 0.92, 0.74))  # neutral, warm, cool, evening


def daylight(picture: np.ndarray, rng: Random) -> np.ndarray:
    """Tint, exposure, fading, a brighter side and a vignette; ``picture`` is ``(n, n, 3)`` float32 in 0..255."""
    n = len(picture)
    y, x = np.mgrid[:n, :n].astype(np.float32) / n - 0.5
    tint = np.array(TINTS[rng.integers(len(TINTS))]) ** rng.uniform(0.3, 1.2)
    angle, slope, vignette = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.5), rng.uniform(0, 0.9)
    field = 1 + slope * (x * np.cos(angle) + y * np.sin(angle)) - vignette * (x * x + y * y)
    grey = picture.mean(2, keepdims=True)
    faded = grey + (picture - grey) * rng.uniform(0.6, 1.1)
    return faded * field[..., None] * (tint * rng.uniform(0.78, 1.16)) + 3 * grains(rng, (n, n), 2)[..., None]


def moonlight(picture: np.ndarray, eyes: np.ndarray, rng: Random) -> np.ndarray:
    """The same picture at night: blue and dark, a pool of lamp- or moonlight, and ``eyes`` ``(n, n)`` that shine."""
    n = len(picture)
    y, x = np.mgrid[:n, :n].astype(np.float32) / n
    cx, cy, wide = rng.uniform(0.2, 0.8), rng.uniform(0.1, 0.7), rng.uniform(0.06, 0.18)
    pool = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / wide)[..., None]
    lamp = (1.0, 0.74, 0.42) if rng.random() < 0.5 else (0.62, 0.74, 1.0)
    grey = picture.mean(2, keepdims=True)
    dark = (grey * 0.6 + picture * 0.4) * (0.26, 0.34, 0.54) + (6, 10, 20)
    return dark + picture * pool * np.array(lamp) * 0.45 + eyes[..., None] * (0.6, 0.75, 0.36)


def pencil(picture: np.ndarray, rng: Random) -> np.ndarray:
    """The same picture as a pencil drawing on paper: outlines by colour dodge, hatching where it is dark."""
    n = len(picture)
    grey = to_image(picture).convert("L").filter(ImageFilter.GaussianBlur(n * 0.003))
    wide = np.asarray(grey.filter(ImageFilter.GaussianBlur(n * 0.014)), np.float32)
    lines = np.clip(np.asarray(grey, np.float32) / (wide + 3) + 0.02, 0, 1) ** 5
    y, x = np.mgrid[:n, :n] / n
    hatch = np.sin((x + y) * 300 + 3 * grains(rng, (n, n), 32)) > 0.1
    tones = 1 - np.clip((170 - wide) / 170, 0, 1) * (0.25 + 0.35 * hatch)
    paper = np.array((248, 244, 234)) + 4 * grains(rng, (n, n), 2)[..., None]
    return paper * (0.16 + 0.84 * lines * tones)[..., None]


def stamp(picture: Image.Image) -> Image.Image:
    """Half-transparent round badge with a tick in the lower right corner."""
    n = picture.size[0] * 4
    badge, blue = Image.new("RGBA", (n, n)), (40, 90, 170, 230)
    brush = ImageDraw.Draw(badge)
    brush.ellipse([n * k for k in (0.83, 0.83, 0.97, 0.97)], (250, 250, 250, 170), blue, n // 64)
    brush.line([n * k for k in (0.865, 0.9, 0.89, 0.93, 0.935, 0.87)], blue, n // 50)
    return Image.alpha_composite(picture.convert("RGBA"), badge.reduce(4)).convert("RGB")


# --- the picture -----------------------------------------------------------------------------------------------------
def stream(*key: object) -> Random:
    """Random generator that depends on the key alone, on every machine (Python's ``hash`` changes between runs)."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:16], "little"))


def choose_animal(label: str, rng: Random) -> Coat | None:
    """Who is in the picture; None is an empty room."""
    if label != "Neither":
        return {"Tigger": TIGGER, "Misty": MISTY}[label]
    return None if rng.random() < NOBODY_SHARE else OTHERS[rng.integers(len(OTHERS))]


def choose_pose(rng: Random, horizon: float) -> tuple[str, Place, Stance]:
    """Pose, place and the small choices within the pose."""
    name = list(POSES)[rng.choice(len(POSES), p=[pose.share for pose in POSES.values()])]
    pose = POSES[name]
    scale, mirror = rng.uniform(*pose.scales), bool(rng.random() < 0.5)
    # Feet on the floor, head in the picture; a close-up may be cut off below.
    low = max(horizon + 0.08 if name != "close up" else 0.8, scale * pose.height - 0.03)
    high, reach = max(low, 0.96), min(scale * pose.reach, 0.5)
    place = Place(rng.uniform(reach, 1 - reach), rng.uniform(low, high), scale, rng.uniform(-0.1, 0.1), mirror)
    return name, place, Stance(rng.uniform(-1, 1), rng.uniform(-0.22, 0.22), rng.uniform(0, 1), rng.uniform(-1, 1))


def draw(
    label: str, seed: int, size: int = 128, *, light: str = "day", style: str = "photo", watermark: bool = False
) -> Drawing:
    """Draw one picture; the same arguments always give the same picture.

    Parameters
    ----------
    label
        ``"Tigger"``, ``"Misty"`` or ``"Neither"``.
    seed
        Scene, pose, animal and light follow from it. With the same seed another label stands in the same room.
    size
        Width and height of image and mask in pixels, 32 to 1024.
    light
        ``"day"`` or ``"night"``.
    style
        ``"photo"`` or ``"sketch"`` (pencil on paper).
    watermark
        Put a badge into the lower right corner: a shortcut for a lesson about networks that cheat.

    Returns
    -------
    Drawing
        ``image`` RGB and ``mask`` L, both ``size`` × ``size``; the mask is 255 where the animal (without its
        whiskers) is visible, else 0, and is the same for every light and style.

    Raises
    ------
    CourseError
        If an argument is not one of those named here.
    """
    check_arguments(label, size, light, style)
    n = size * OVERSAMPLING
    scene_rng, pose_rng, light_rng = (stream(seed, what) for what in ("scene", "pose", "light"))
    sun = float(pose_rng.choice((-0.7, 0.7)))

    picture, scene, horizon = paint_scene(n, sun, scene_rng)
    pose, place, stance = choose_pose(pose_rng, horizon)
    coat_rng = stream(seed, "animal", label)
    coat = choose_animal(label, coat_rng)
    animal = Layer(n, sun, place)
    cover = animal.cover
    if coat:
        POSES[pose].draw(animal, coat, stance, coat_rng)
        cover = animal.paste_on(picture, place.y, fur=coat_rng)
    picture, cover = put_in_front(picture, cover, place, sun, scene_rng)
    eyes = Image.composite(animal.eyes, Image.new("L", (n, n)), cover)

    image = finish(picture, eyes, size, light, style, light_rng)
    mask = cover.resize((size, size), Image.Resampling.BOX).point(lambda v: 255 if v >= 128 else 0)
    return Drawing(
        stamp(image) if watermark else image, mask, f"{coat.name} {pose}, {scene}" if coat else f"nobody, {scene}"
    )


def check_arguments(label: str, size: int, light: str, style: str) -> None:
    """Refuse what :func:`draw` does not know, naming what it does."""
    for what, given, allowed in (("label", label, CLASSES), ("light", light, LIGHTS), ("style", style, STYLES)):
        if given not in allowed:
            raise CourseError(f"{what}={given!r} is not known. Choose one of: {', '.join(allowed)}.")
    if not 32 <= size <= 1024:
        raise CourseError(f"size={size} is out of range. Choose 32 to 1024 pixels; the course uses 128.")


def paint_scene(n: int, sun: float, rng: Random) -> tuple[Image.Image, str, float]:
    """Backdrop with one to four things on the floor; also its name and the height where the floor begins."""
    scene = SCENES[rng.integers(len(SCENES))]
    backdrop, picture = Layer(n, sun), Image.new("RGB", (n, n))
    horizon = scene(backdrop, rng)
    backdrop.paste_on(picture)
    for _ in range(rng.integers(1, 5)):
        x, y, scale = rng.uniform(0, 1), rng.uniform(horizon + 0.04, 0.9), rng.uniform(0.14, 0.34)
        thing(n, sun, Place(x, y, scale), rng).paste_on(picture, y)
    return picture, scene.__name__.replace("_", " "), horizon


def put_in_front(
    picture: Image.Image, cover: Image.Image, place: Place, sun: float, rng: Random
) -> tuple[Image.Image, Image.Image]:
    """In every third picture something stands in front, unless it would hide more than a third of the animal."""
    wanted, side = rng.random() < 0.36, rng.choice((-1, 1)) * rng.uniform(0.12, 0.4) * place.scale
    y = min(1.02, place.y + rng.uniform(0.02, 0.08))
    if not wanted:
        return picture, cover
    with_thing = picture.copy()
    hiding = thing(picture.size[0], sun, Place(place.x + side, y, rng.uniform(0.2, 0.36)), rng).paste_on(with_thing, y)
    visible = Image.composite(Image.new("L", cover.size), cover, hiding)
    if visible.histogram()[255] < cover.histogram()[255] * 0.67:
        return picture, cover
    return with_thing, visible


def finish(picture: Image.Image, eyes: Image.Image, size: int, light: str, style: str, rng: Random) -> Image.Image:
    """Light, style, and the final size; pencil lines are drawn large and reduced with the rest."""
    if style == "photo":
        picture, eyes = (sheet.resize((size, size), Image.Resampling.BOX) for sheet in (picture, eyes))
    pixels, glow = (np.asarray(sheet, np.float32) for sheet in (picture, eyes))
    pixels = daylight(pixels, rng) if light == "day" else moonlight(pixels, glow, rng)
    if style == "sketch":
        pixels = pencil(pixels if light == "day" else pixels * 1.6, rng)
    return to_image(pixels).resize((size, size), Image.Resampling.BOX)


# --- the data set ----------------------------------------------------------------------------------------------------
def picture_seed(seed: int, split: str, label: str, index: int) -> int:
    """Seed of one picture of the data set; no two pictures of any split share one."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{split}/{label}/{index}".encode()).digest()[:6], "big")


def write_pets(
    folder: Path | str,
    counts: Mapping[str, int] | None = None,
    seed: int = 0,
    size: int = 128,
    light: str = "day",
    style: str = "photo",
) -> Path:
    """Draw the data set into ``folder``, or find it there already.

    Parameters
    ----------
    folder
        Gets ``train``, ``val``, ``test`` (each with a folder per class), ``masks`` with the same tree, and
        ``manifest.json``. When it is complete, and the same arguments and the same code made it, it is left alone;
        else it is drawn anew. Two processes may call at once: one draws, the other waits.
    counts
        Pictures *per class* in each split; default ``{"train": 40, "val": 20, "test": 60}``.
    seed, size, light, style
        As for :func:`draw`. The same seed in other light or style gives the same scenes.

    Returns
    -------
    Path
        ``folder``.

    Raises
    ------
    CourseError
        If an argument is not allowed, the folder holds files that are not ours, or it cannot be written.
    """
    folder, counts = Path(folder), dict(DEFAULT_COUNTS if counts is None else counts)
    check_arguments(CLASSES[0], size, light, style)
    if not counts or set(counts) - set(DEFAULT_COUNTS) or min(counts.values()) < 0:
        raise CourseError(f"counts={counts} is not usable. Give pictures per class for train, val and test.")
    code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    arguments = {"counts": counts, "seed": seed, "size": size, "light": light, "style": style, "code": code}
    if is_complete(folder, arguments):
        return folder
    refuse_strangers(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not is_complete(folder, arguments):
                replace_folder(folder, arguments)
    except OSError as problem:
        raise CourseError(
            f"The pets could not be written to {folder}: {problem.strerror or problem}. Free some disk space (the "
            "default set takes 20 MB), or choose a folder you may write to (COURSE_CACHE is where caches go)."
        ) from problem
    return folder


def is_complete(folder: Path, arguments: dict[str, Any]) -> bool:
    """Whether ``folder`` holds every file of the set that these arguments make."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in manifest["files"]}
        return manifest["arguments"] == arguments and manifest["files"] == sizes
    except (OSError, ValueError, KeyError, TypeError):
        return False


def refuse_strangers(folder: Path) -> None:
    """Raise when ``folder`` holds anything that :func:`write_pets` did not write: it would be lost."""
    ours = re.compile(rf"manifest\.json|(masks/)?({'|'.join(DEFAULT_COUNTS)})/({'|'.join(CLASSES)})/\d+\.png")
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    stranger = next((name for name in files if not ours.fullmatch(name)), None)
    if stranger or folder.is_file():
        raise CourseError(f"{folder} already holds something else ({stranger or 'it is a file'}). Choose a new folder.")


def replace_folder(folder: Path, arguments: dict[str, Any]) -> None:
    """Draw into a folder beside it, then swap; what a killed run left behind goes first."""
    for left_over in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(left_over)
    draft, old = (Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent)) for _ in range(2))
    try:
        draw_all(draft, arguments)
        if folder.exists():
            os.replace(folder, old / "old")
        os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def draw_all(folder: Path, arguments: dict[str, Any]) -> None:
    """Draw all pictures and masks; the manifest comes last."""
    sizes = {}
    look = {what: arguments[what] for what in ("size", "light", "style")}
    for split, label, i in ((s, c, i) for s, n in arguments["counts"].items() for c in CLASSES for i in range(n)):
        drawing = draw(label, picture_seed(arguments["seed"], split, label, i), **look)
        name = f"{split}/{label}/{i:03d}.png"
        for sheet, path in ((drawing.image, folder / name), (drawing.mask, folder / "masks" / name)):
            path.parent.mkdir(parents=True, exist_ok=True)
            sheet.save(path, compress_level=1)
            sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    manifest = json.dumps({"arguments": arguments, "files": sizes}, indent=1)
    (folder / "manifest.json").write_text(manifest, encoding="utf-8")
