"""Folders of pictures as readers have them, for running the lessons on: ``python tests/lesson_folders.py KIND FOLDER``.

The lessons have to pass on every one of them, whatever their numbers say there: ``course test --data FOLDER``. CI does
that for the three smallest.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLOURS = [(220, 50, 50), (50, 70, 220), (50, 200, 60), (220, 200, 60), (160, 60, 200), (60, 200, 200)]
LONG = "a class name of two hundred characters, as it comes out of a data base that keeps whole sentences, " * 2


def draw(number: int, seed: int, noise: int = 60, side: int = 96) -> tuple[Image.Image, Image.Image]:
    """Return a picture of class `number`, a rectangle of the class's colour on noise, and the mask of the rectangle."""
    rng = np.random.default_rng([number, seed])
    picture = Image.fromarray(rng.integers(0, 2 * noise, (side, side, 3), dtype=np.uint8))
    x, y = (int(v) for v in rng.integers(8, side - 48, 2))
    # Beyond the colours there are, classes differ by the shape of the rectangle too.
    width, height = 40 - 5 * (number // 6 % 6), 40 - 5 * (number // 36 % 6)
    mask = Image.new("L", (side, side))
    for image, fill in ((picture, COLOURS[number % 6]), (mask, 255)):
        ImageDraw.Draw(image).rectangle([x, y, x + width, y + height], fill=fill)
    return picture, mask


def fill(folder: Path, classes: list[str], counts: list[int], noise: int = 60, first: int = 0) -> None:
    """Draw pictures into one folder per class."""
    for number, (name, count) in enumerate(zip(classes, counts, strict=True)):
        (folder / name).mkdir(parents=True)
        for seed in range(first, first + count):
            draw(number, seed, noise)[0].save(folder / name / f"{seed:04d}.png")


def five(folder: Path) -> None:
    """Five pictures per class, the fewest that are accepted."""
    fill(folder, ["cat", "dog"], [5, 5])


def easy(folder: Path) -> None:
    """Twelve pictures per class, told apart without a mistake."""
    fill(folder, ["a", "b", "c"], [12, 12, 12], noise=10)


def masked(folder: Path) -> None:
    """Splits with masks, told apart without a mistake."""
    for first, (split, count) in enumerate((("train", 12), ("val", 6), ("test", 6))):
        for number, name in enumerate(("cat", "dog")):
            for place in (folder / split / name, folder / "masks" / split / name):
                place.mkdir(parents=True)
            for i in range(count):
                picture, mask = draw(number, 100 * first + i)
                picture.save(folder / split / name / f"{i:03d}.png")
                mask.save(folder / "masks" / split / name / f"{i:03d}.png")


def skewed(folder: Path) -> None:
    """One class three times as large as the others."""
    fill(folder, ["cat", "dog", "fox"], [60, 20, 20], noise=110)


def two(folder: Path) -> None:
    """Two classes, hard to tell apart."""
    fill(folder, ["cat", "dog"], [40, 40], noise=127)


def many(folder: Path) -> None:
    """102 classes, as in the flowers of Oxford."""
    fill(folder, [f"flower {number:03d}" for number in range(102)], [8] * 102)


def names(folder: Path) -> None:
    """Class names with dollar signs, in Chinese, of 200 characters."""
    fill(folder, ["under_$20_to_$50", "above_$50_$99", "猫と犬", LONG[:200].strip()], [15] * 4)


def large(folder: Path) -> None:
    """2,000 pictures in two classes."""
    fill(folder, ["cat", "dog"], [1000, 1000], noise=120)


KINDS = {make.__name__: make for make in (five, easy, masked, skewed, two, many, names, large)}

if __name__ == "__main__":
    kind, place = sys.argv[1:]
    KINDS[kind](Path(place))
