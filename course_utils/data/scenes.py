"""The rooms and the things in them. A scene paints a backdrop and returns the height where the floor begins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from course_utils.data.canvas import (
    PALE,
    WHITE,
    Colour,
    Layer,
    Place,
    Random,
    Shape,
    blob,
    box,
    ellipse,
    even,
    polygon,
    ribbon,
    tone,
)

# --- colours ---------------------------------------------------------------------------------------------------------
ORANGE = [(222, 138, 62), (205, 118, 48), (232, 160, 92), (190, 104, 44)]
GREY = [(138, 143, 152), (118, 122, 130), (160, 163, 168), (96, 101, 110)]
OTHER = [(86, 132, 130), (120, 148, 92), (176, 72, 62), (74, 98, 150), (236, 222, 196), (150, 110, 150)]
WALL = [(226, 214, 196), (198, 204, 208), (210, 180, 144), (168, 184, 178), (218, 194, 170), (180, 184, 192)]
WOOD = [(164, 116, 74), (128, 88, 58), (190, 150, 106), (122, 116, 112), (150, 142, 136), (178, 122, 66)]
LEAF = [(84, 122, 62), (108, 146, 74), (66, 104, 70), (136, 158, 82)]
SKY = [(180, 208, 232), (210, 216, 222), (246, 210, 164), (160, 172, 188)]


def pick(rng: Random, colours: Sequence[Colour]) -> Colour:
    """Return one of the colours, a little darker or lighter."""
    return tone(colours[rng.integers(len(colours))], rng.uniform(0.88, 1.12))


def any_colour(rng: Random) -> Colour:
    """Return the colour of a thing: orange and grey equally often (36 % each), something else in 28 %."""
    return pick(rng, (ORANGE, GREY, OTHER)[rng.choice(3, p=(0.36, 0.36, 0.28))])


# --- things ----------------------------------------------------------------------------------------------------------
LEAVES = ((-0.5, -0.75), (0.5, -0.8), (-0.2, -1.1), (0.25, -1.15), (0.65, -0.5), (-0.65, -0.45))
# Rows of (shape, factor on the colour of the thing or a colour of its own).
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
    """Return a random thing in a random colour, on a layer of its own; cushions and balls may have a pattern."""
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


# --- scenes ----------------------------------------------------------------------------------------------------------
def room(layer: Layer, rng: Random, horizon: float) -> float:
    """Wall with one to three pictures, skirting board, floor of planks."""
    layer.flat(box(0, 0, 1, horizon), pick(rng, WALL))
    layer.flat(box(0, horizon, 1, 1), pick(rng, WOOD))
    layer.flat(box(0, horizon - 0.03, 1, horizon), (232, 228, 220))
    for x in np.linspace(-1.2, 2.2, 18):
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
    seat, top, bottom = (right - left) / 3, horizon - 0.1, horizon + 0.06
    for x in left + seat * np.arange(3):
        layer.part(blob((x, top), (x + seat, top), (x + seat, bottom), (x, bottom)), colour)
    return horizon


def kitchen(layer: Layer, rng: Random) -> float:
    """Tiles, cupboards and a chequered floor."""
    horizon, front, tile = rng.uniform(0.5, 0.62), any_colour(rng), pick(rng, WALL)
    layer.flat(box(0, 0, 1, 1), tile)
    for row, y in enumerate(np.arange(horizon, 1, 0.1)):
        for x in np.arange(0.13 * (row % 2), 1, 0.13 * 2):
            layer.flat(box(x, y, min(x + 0.13, 1), min(y + 0.1, 1)), tone(tile, 0.72))
    joints(layer, horizon, 0.1, 0.08, tone(tile, 0.86))
    for x in np.arange(-0.1, 1.1, 0.28):
        layer.part(box(x, horizon - 0.24, x + 0.27, horizon), front)
        layer.part(ellipse(x + 0.22, horizon - 0.13, 0.012, 0.012), WHITE)
    layer.part(box(-0.1, horizon - 0.28, 1.1, horizon - 0.23), pick(rng, WOOD))
    return horizon


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
    for bar in ((0.105, 0, 0.135, 0.7), (0.485, 0, 0.515, 0.7), (0.865, 0, 0.895, 0.7), (0.1, 0.3, 0.9, 0.33)):
        layer.part(box(*bar), WHITE)
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


SCENES = (living_room, kitchen, garden, window_sill, carpet, pavement, bedroom, study, park_in_autumn, plain_wall)
