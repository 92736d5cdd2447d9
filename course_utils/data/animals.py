"""The animals: coats, heads and bodies, and the poses that put them together.

Each animal is a few ellipses and ribbons on a :class:`~course_utils.data.canvas.Layer`, placed by a pose function.
Bodies have the ground at y=0 and up as negative; heads are in units of their radius, looking at us.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from course_utils.data.canvas import (
    PALE,
    WHITE,
    Colour,
    Frame,
    Layer,
    Random,
    Shape,
    blob,
    ellipse,
    even,
    polygon,
    ribbon,
    smooth,
    spin,
    tone,
)

GINGER, CREAM, RUST, SLATE, BLACK = (218, 136, 64), (248, 226, 190), (156, 76, 28), (136, 142, 152), (46, 42, 44)
PINK, EAR = (214, 108, 112), (210, 156, 144)

Marks = list[tuple[Shape, Colour]]


# --- coats -----------------------------------------------------------------------------------------------------------
class Coat(NamedTuple):
    """The look of an animal; ``white`` counts its white paws, ``bib`` is the size of its white breast (0: none)."""

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


def markings(coat: Coat, frame: Frame, rng: Random) -> Marks:
    """Return the stripes, spots or patches of one body part."""
    if coat.pattern == "tabby":
        return [(rib, coat.dark) for rib in tabby_ribs(frame)]
    if coat.pattern == "spots":
        return [(ellipse(*frame.onto(p), 0.032, 0.026), coat.dark) for p in rng.uniform(-0.85, 0.75, (26, 2))]
    colours = {"patches": (coat.dark,) * 3, "calico": (GINGER, coat.dark, GINGER)}.get(coat.pattern, ())
    return [
        (ellipse(*frame.onto(rng.uniform(-0.8, 0.8, 2)), *(frame.rx * rng.uniform(0.25, 0.5, 2))), c) for c in colours
    ]


def tabby_ribs(frame: Frame) -> list[Shape]:
    """Return stripes that run down from the back and follow the roundness of the body."""
    ribs, drop, width = [], np.linspace(0, 1, 4), 0.085 if frame.rx > frame.ry else 0.11
    for s in np.linspace(-0.78, 0.78, 7):
        top = -np.sqrt(1 - s * s)
        path = np.c_[s + 0.22 * s * np.sin(drop * 2.2), top + (0.42 + 0.12 * np.cos(9 * s) - top) * drop]
        ribs.append(ribbon(path, width, width * 0.8, width * 0.3).moved(frame.onto))
    return ribs


def rings(coat: Coat, path: Any, width: float, count: int) -> Marks:
    """Return the rings of a tabby around a tail or a leg; none for other coats."""
    path = smooth(path)
    at = np.linspace(0.12, 0.9, count) * (len(path) - 1) if coat.pattern == "tabby" else []
    way = np.arctan2(*np.gradient(path, axis=0).T[::-1])
    return [(ellipse(*path[int(i)], width * 0.32, width * 1.5, way[int(i)]), coat.dark) for i in at]


# --- heads -----------------------------------------------------------------------------------------------------------
class Piece(NamedTuple):
    """Part of a head. The nearer to us (``depth``), the further it slides when the head turns.

    ``twice`` paints it left and right; ``ink`` draws it sharply on top.
    """

    shape: Shape
    paint: str | Colour
    depth: float = 0.0
    twice: bool = False
    ink: bool = False


def bean(x: float, y: float, rx: float, ry: float, paint: str | Colour, depth: float) -> Piece:
    """Return a small sharp oval: nose, tongue, glint."""
    return Piece(ellipse(x, y, rx, ry), paint, depth, ink=True)


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


def face_marks(coat: Coat) -> Marks:
    """Return the markings of a face: the M and cheek lines of a tabby, a white blaze, white fox cheeks."""
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
    return [(mark, paint) for shape in right for mark in (shape, shape.moved(lambda p: p * (-1, 1)))]


def head(
    layer: Layer, coat: Coat, x: float, y: float, r: float, tilt: float, turn: float, asleep: bool = False
) -> None:
    """Paint a head of radius ``r`` at ``(x, y)``; ``tilt`` leans it, ``turn`` (-1 to 1) makes it look sideways."""

    def at(points: np.ndarray, depth: float) -> np.ndarray:
        return spin((points + np.array((turn * depth, 0))) * r, tilt) + np.array((x, y))

    muzzle = tone(coat.base, 1.12) if coat is MISTY else coat.light
    paints = {**coat._asdict(), "skull": coat.base, "muzzle": muzzle, "chin": coat.light}
    for piece in HEADS[coat.species]:
        for flip in (-1, 1) if piece.twice else (1,):
            shape = piece.shape.moved(lambda p, f=flip, depth=piece.depth: at(p * (f, 1), depth))
            paint = paints.get(piece.paint, piece.paint)
            if piece.ink:
                layer.ink(shape.outline, paint)
            else:
                marks = face_marks(coat) if piece.paint == "skull" else ()
                marks = [(mark.moved(lambda p: at(p, 0.2)), colour) for mark, colour in marks]
                layer.part(shape, paint, marks, rim=0.92 if piece.depth else 0.78)
    for side in (-1, 1):
        eye(layer, coat, at, side * EYES_AT[coat.species], asleep)
    if coat.species in ("cat", "rabbit"):
        layer.ink(at(MOUTH, 0.5), (84, 54, 50), 0.011)
        for side in (-1, 1):
            for dy in (-0.1, 0.02, 0.16):
                whisker = [(side * 0.35, 0.34 + dy * 0.4), (side * 0.85, 0.3 + dy), (side * 1.35, 0.34 + dy * 1.9)]
                layer.ink(at(np.array(whisker), 0.3), WHITE, 0.006)


def eye(layer: Layer, coat: Coat, at: Callable[..., np.ndarray], x: float, asleep: bool) -> None:
    """Paint an eye with iris, pupil and a glint, or the curved line of a closed one."""
    if asleep:
        layer.ink(at(LID + np.array((x, 0)), 0.25), BLACK, 0.014)
        return
    narrow = coat.species in ("cat", "fox")
    rx, ry, lean = (0.2, 0.165, -0.22 * np.sign(x)) if narrow else (0.15, 0.16, 0.0)
    for dx, dy, wide, high, paint in (
        (0, 0, rx * 1.2, ry * 1.22, BLACK),
        (0, 0, rx, ry, coat.eye),
        (0, 0, 0.07 if narrow else 0.1, ry * 0.88, (20, 16, 18)),
        (-0.06, -0.06, 0.05, 0.05, (252, 252, 252)),
    ):
        layer.ink(at(ellipse(x + dx, dy - 0.12, wide, high, lean).outline, 0.25), paint)
    layer.shine(at(ellipse(x, -0.12, rx, ry, lean).outline, 0.25))


# --- bodies ----------------------------------------------------------------------------------------------------------
def trunk(layer: Layer, coat: Coat, rng: Random, frame: Frame, shape: Shape | None = None, bib: bool = False) -> None:
    """Paint the body or a haunch with its markings and perhaps the white bib."""
    marks = markings(coat, frame, rng)
    if bib and coat.bib:
        marks.append((ellipse(*frame.onto((0, -0.25)), frame.rx * coat.bib, frame.ry * coat.bib * 1.1), coat.light))
    layer.part(shape or ellipse(*frame), coat.base, marks)


def leg(layer: Layer, coat: Coat, number: int, width: float, *path: tuple[float, float], shade: float = 1.0) -> None:
    """Paint a leg with its paw; the first ``coat.white`` legs have a white sock. ``shade`` < 1: on the far side."""
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
    """Paint a tail: bushy and white-tipped on a fox, short on a dog, a ball on a rabbit."""
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
    """The small choices within a pose, the same for every animal in this place."""

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
    back = (-0.4, -0.56), (-0.2, -0.62), (0.1, -0.6), (0.34, -0.62), (0.43, -0.48)
    belly = (0.36, -0.32), (0.1, -0.32), (-0.2, -0.28), (-0.4, -0.36)
    trunk(layer, coat, rng, Frame(0.02, -0.46, 0.44, 0.17), blob(*back, *belly))
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
    """A pose: its drawing, its share of the pictures, its range of scales, its half width and height at scale 1."""

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
