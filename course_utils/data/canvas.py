"""The means to paint a picture: shapes, and layers that give a part its light, its fur and its shadow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Random = np.random.Generator
PALE, WHITE = (182, 187, 194), (244, 242, 236)


def tone(colour: Colour, factor: float) -> Colour:
    """Return the colour darker (``factor`` < 1) or lighter (> 1)."""
    return tuple(int(min(255, c * factor)) for c in colour)


# --- shapes ----------------------------------------------------------------------------------------------------------
class Shape(NamedTuple):
    """A closed outline and its lit core, both ``(N, 2)``; a part gets brighter from outline to core."""

    outline: np.ndarray
    core: np.ndarray

    def moved(self, change: Callable[[np.ndarray], np.ndarray]) -> Shape:
        """Return the shape with ``change`` applied to its points."""
        return Shape(change(self.outline), change(self.core))


def spin(points: np.ndarray, angle: float) -> np.ndarray:
    """Return the points turned about the origin by ``angle`` radians."""
    c, s = np.cos(angle), np.sin(angle)
    return points @ np.array([[c, s], [-s, c]]) if angle else points


def smooth(points: Any, closed: bool = False) -> np.ndarray:
    """Return a Catmull-Rom curve through ``points``, ``(N, 2)`` (Catmull & Rom, 1974)."""
    p = np.asarray(points, float)
    p = np.concatenate([p[-1:], p, p[:2]] if closed else [2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    t = np.linspace(0, 1, 6, endpoint=False)[None, :, None]
    a, b, c, d = (p[i : len(p) - 3 + i, None] for i in range(4))
    q = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return q.reshape(-1, 2) if closed else np.concatenate([q.reshape(-1, 2), p[-2:-1]])


def polygon(*points: Sequence[float]) -> Shape:
    """Return the shape with straight edges through ``points``."""
    outline = np.array(points, float)
    return Shape(outline, outline * 0.5 + outline.sum(0) * (0.5 / len(outline)))


def blob(*points: Sequence[float]) -> Shape:
    """Return the closed smooth shape through ``points``."""
    return polygon(*smooth(points, closed=True))


def even(*points: Sequence[float]) -> Shape:
    """Return a symmetric smooth shape: ``points`` are its right half, from top to bottom."""
    return blob(*points, *((-x, y) for x, y in reversed(points) if x))


def box(left: float, top: float, right: float, bottom: float) -> Shape:
    """Return an upright rectangle."""
    return polygon((left, top), (right, top), (right, bottom), (left, bottom))


CIRCLE = np.array([(np.cos(t), np.sin(t)) for t in np.linspace(0, 2 * np.pi, 32, endpoint=False)])


def ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> Shape:
    """Return the ellipse about ``(x, y)`` with these half-axes, turned by ``angle`` radians."""
    ring, centre = spin(CIRCLE * (rx, ry), angle), np.array((x, y))
    return Shape(ring + centre, ring * 0.45 + centre)


def ribbon(points: Any, *widths: float) -> Shape:
    """Return a stroke along a smooth path with a round end: tails, legs, stripes, leaves.

    ``widths`` are half its width, evenly spread from the path's start to its end.
    """
    path = smooth(points)
    t = np.linspace(0, 1, len(path))
    half = np.interp(t, np.linspace(0, 1, len(widths)), widths) * np.sqrt(1 - np.clip((t - 0.86) / 0.142, 0, 1) ** 2)
    along = np.gradient(path, axis=0)
    side = np.c_[-along[:, 1], along[:, 0]] * (half / (np.hypot(*along.T) + 1e-9))[:, None]
    return Shape(*(np.concatenate([path + side * k, (path - side * k)[::-1]]) for k in (1.0, 0.4)))


class Frame(NamedTuple):
    """The ellipse of a body part, onto which markings are placed from the unit circle."""

    x: float
    y: float
    rx: float
    ry: float
    angle: float = 0.0

    def onto(self, points: Any) -> np.ndarray:
        """Return points of the unit circle as points of the body part."""
        return spin(np.asarray(points) * (self.rx, self.ry), self.angle) + np.array((self.x, self.y))


# --- layers ----------------------------------------------------------------------------------------------------------
class Place(NamedTuple):
    """The place in the picture (0 to 1) of a drawing with coordinates of its own (ground at y=0, up is negative)."""

    x: float = 0.0
    y: float = 0.0
    scale: float = 1.0
    angle: float = 0.0
    mirror: bool = False

    def put(self, points: np.ndarray) -> np.ndarray:
        """Return the drawing's points in coordinates of the picture."""
        stretch = np.array((-self.scale if self.mirror else self.scale, self.scale))
        return spin(points, self.angle) * stretch + np.array((self.x, self.y))


def _pairs(points: np.ndarray) -> list[tuple[float, float]]:
    return list(map(tuple, points.tolist()))


class Layer:
    """Transparent sheet on which parts are painted; colour, relief and cover stay apart until :meth:`paste_on`.

    Parameters
    ----------
    size, sun
        Width and height in pixels, and direction of the light, from -1 (left) to 1 (right).
    place
        Place of the drawing in the picture; by default the coordinates are the picture's own.
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

    def shine(self, points: np.ndarray) -> None:
        """Remember the outline of an eye, which shines at night."""
        ImageDraw.Draw(self.eyes).polygon(_pairs(self._pixels(points)), 255)

    def paste_on(self, picture: Image.Image, ground: float | None = None, fur: Random | None = None) -> Image.Image:
        """Put the layer on ``picture``, with a shadow if it stands on a ``ground``; return its cover.

        ``fur`` draws the hairs of an animal; its edges are frayed.
        """
        colour, cover = (fray(sheet) if fur else sheet for sheet in (self.colour, self.cover))
        if ground is not None:
            shadow = shadow_of(cover, ground * self.size, self.sun)
            area = shadow.getbbox() or (0, 0, 0, 0)
            picture.paste((28, 24, 36), area, shadow.crop(area))
        area = cover.getbbox()
        if area:
            soft = self.relief.crop(area).filter(ImageFilter.GaussianBlur(self.size * 0.012))
            light = np.asarray(soft, np.float32)[..., None] * np.array((0.62, 0.61, 0.52), np.float32) / 255
            light += np.array((0.57, 0.55, 0.63), np.float32)  # cool in the shade, warm in the sun
            if fur:
                light *= hair(fur, light.shape[:2])
            picture.paste(to_image(np.asarray(colour.crop(area)) * light), area[:2], cover.crop(area))
        brush = ImageDraw.Draw(picture)
        for points, ink, width in self._inks:
            if width:
                brush.line(points, ink, max(1, round(width)))
            else:
                brush.polygon(points, ink)
        return cover


def to_image(picture: np.ndarray) -> Image.Image:
    """Return a picture of floats from 0 to 255 as a Pillow image."""
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


@cache
def noise(grain: int, streak: int = 1) -> np.ndarray:
    """Return a smooth random texture in [-1, 1], ``(1024, 1024)`` float32; ``streak`` > 1 stretches it like fur."""
    rough = np.random.default_rng(grain * 31 + streak).uniform(0, 255, (1024 // grain // streak, 1024 // grain))
    picture = Image.fromarray(rough.astype(np.uint8)).resize((1024, 1024), Image.Resampling.BICUBIC)
    return (np.asarray(picture, np.float32) - 127.5) / 127.5


def grains(rng: Random, shape: tuple[int, ...], grain: int, streak: int = 1) -> np.ndarray:
    """Return a random window of :func:`noise`; ``shape`` is ``(height, width)``."""
    y, x = rng.integers(0, 1024, 2)
    rows, columns = np.arange(y, y + shape[0]) % 1024, np.arange(x, x + shape[1]) % 1024
    return noise(grain, streak)[np.ix_(rows, columns)]


def hair(rng: Random, shape: tuple[int, ...]) -> np.ndarray:
    """Return the brightness of fur, ``(height, width, 1)`` around 1: fine hairs and soft tufts."""
    return (1 + 0.12 * grains(rng, shape, 2, 3) + 0.06 * grains(rng, shape, 16))[..., None]


@cache
def fray_map(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return row and column of a near neighbour for each pixel of a square sheet, both ``(n, n)``."""
    texture = np.ix_(np.arange(n) % 1024, np.arange(n) % 1024)
    down, across = noise(3)[texture] + noise(5, 2)[texture], noise(3, 2)[texture] + noise(5)[texture]
    rows, columns = np.mgrid[:n, :n]
    rows, columns = rows + down * (n * 0.005), columns + across * (n * 0.005)
    return rows.clip(0, n - 1).astype(np.intp), columns.clip(0, n - 1).astype(np.intp)


def fray(sheet: Image.Image) -> Image.Image:
    """Return the sheet with every pixel taken from a neighbour: smooth outlines become furry ones."""
    return Image.fromarray(np.asarray(sheet)[fray_map(sheet.width)])


def shadow_of(cover: Image.Image, ground: float, sun: float) -> Image.Image:
    """Return a soft shadow, half dark: the cover laid flat on the floor, away from the light."""
    small = cover.reduce(4)  # a shadow is soft: a quarter of the size will do
    y, flat, lean = ground / 4, 0.32, sun * 0.5
    laid = small.transform(
        small.size, Image.Transform.AFFINE, (1, -lean / flat, lean / flat * y, 0, 1 / flat, y - y / flat)
    )
    soft = laid.filter(ImageFilter.GaussianBlur(small.size[0] * 0.018)).point(lambda v: v // 2)
    return soft.resize(cover.size, Image.Resampling.BILINEAR)
