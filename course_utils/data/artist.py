"""One picture of Tigger, Misty or Neither, drawn from a label and a seed.

Tigger is an orange tabby, Misty a grey cat with a white bib and a white paw. Everything else is *Neither*: plain
ginger and grey tabby cats, dogs, foxes, rabbits, and rooms with nobody in them. Rooms, cushions and pumpkins are
orange or grey as often behind one class as behind another, so the colours of a picture do not tell who is in it.

One seed feeds separate random streams (scene, pose, animal, light), so another label with the same seed stands in the
*same* room, and night or sketch is the same picture in other light.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from course_utils.common.errors import CourseError
from course_utils.data.animals import MISTY, OTHERS, POSES, TIGGER, Coat, Stance
from course_utils.data.canvas import Layer, Place, Random, grains, to_image
from course_utils.data.scenes import SCENES, thing

CLASSES = ("Tigger", "Misty", "Neither")
LIGHTS = ("day", "night")
STYLES = ("photo", "sketch")
NOBODY_SHARE = 0.17
OVERSAMPLING = 2


class Drawing(NamedTuple):
    """One picture: ``image`` (RGB), ``mask`` (L, 255 where the animal is visible, else 0) and a ``caption``."""

    image: Image.Image
    mask: Image.Image
    caption: str


# --- light and style -------------------------------------------------------------------------------------------------
TINTS = ((1, 1, 1), (1.12, 1.0, 0.82), (0.88, 0.97, 1.14), (1.12, 0.92, 0.74))  # neutral, warm, cool, evening


def daylight(picture: np.ndarray, rng: Random) -> np.ndarray:
    """Return the picture in daylight: tinted, faded, one side brighter, corners darker.

    ``picture`` is ``(n, n, 3)`` float32 from 0 to 255; what comes back may lie outside of that range.
    """
    n = len(picture)
    y, x = np.mgrid[:n, :n].astype(np.float32) / n - 0.5
    tint = np.array(TINTS[rng.integers(len(TINTS))]) ** rng.uniform(0.3, 1.2)
    angle, slope, vignette = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.5), rng.uniform(0, 0.9)
    field = 1 + slope * (x * np.cos(angle) + y * np.sin(angle)) - vignette * (x * x + y * y)
    grey = picture.mean(2, keepdims=True)
    faded = grey + (picture - grey) * rng.uniform(0.6, 1.1)
    return faded * field[..., None] * (tint * rng.uniform(0.78, 1.16)) + 3 * grains(rng, (n, n), 2)[..., None]


def moonlight(picture: np.ndarray, eyes: np.ndarray, rng: Random) -> np.ndarray:
    """Return the same picture at night: blue and dark, with a pool of light and ``eyes`` ``(n, n)`` that shine."""
    n = len(picture)
    y, x = np.mgrid[:n, :n].astype(np.float32) / n
    cx, cy, wide = rng.uniform(0.2, 0.8), rng.uniform(0.1, 0.7), rng.uniform(0.06, 0.18)
    pool = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / wide)[..., None]
    lamp = (1.0, 0.74, 0.42) if rng.random() < 0.5 else (0.62, 0.74, 1.0)
    grey = picture.mean(2, keepdims=True)
    dark = (grey * 0.6 + picture * 0.4) * (0.26, 0.34, 0.54) + (6, 10, 20)
    return dark + picture * pool * np.array(lamp) * 0.45 + eyes[..., None] * (0.6, 0.75, 0.36)


def pencil(picture: np.ndarray, rng: Random) -> np.ndarray:
    """Return the same picture as a pencil drawing: outlines by colour dodge, hatching where it is dark."""
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
    """Return the picture with a half-transparent round badge with a tick in the lower right corner."""
    n = picture.size[0] * 4
    badge, blue = Image.new("RGBA", (n, n)), (40, 90, 170, 230)
    brush = ImageDraw.Draw(badge)
    brush.ellipse([n * k for k in (0.83, 0.83, 0.97, 0.97)], (250, 250, 250, 170), blue, n // 64)
    brush.line([n * k for k in (0.865, 0.9, 0.89, 0.93, 0.935, 0.87)], blue, n // 50)
    return Image.alpha_composite(picture.convert("RGBA"), badge.reduce(4)).convert("RGB")


# --- the picture -----------------------------------------------------------------------------------------------------
def stream(*key: object) -> Random:
    """Return a generator that depends on the key alone, on every machine (Python's ``hash`` changes between runs)."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:16], "little"))


def choose_animal(label: str, rng: Random) -> Coat | None:
    """Return the animal in the picture; None for an empty room."""
    if label != "Neither":
        return TIGGER if label == "Tigger" else MISTY
    return None if rng.random() < NOBODY_SHARE else OTHERS[rng.integers(len(OTHERS))]


def choose_pose(rng: Random, horizon: float) -> tuple[str, Place, Stance]:
    """Return the name of a pose, its place in the picture and the small choices within it."""
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
    """Return one picture; the same arguments always give the same.

    Parameters
    ----------
    label
        ``"Tigger"``, ``"Misty"`` or ``"Neither"``.
    seed
        Seed of scene, pose, animal and light.
    size
        Width and height of image and mask in pixels, 32 to 1024.
    light, style
        ``"day"`` or ``"night"``; ``"photo"`` or ``"sketch"`` (pencil on paper).
    watermark
        True for a badge in the lower right corner: a shortcut for a lesson about networks that cheat.

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
    scene_rng, pose_rng, light_rng = (stream(seed, name) for name in ("scene", "pose", "light"))
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
    caption = f"{coat.name} {pose}, {scene}" if coat else f"nobody, {scene}"
    return Drawing(stamp(image) if watermark else image, mask, caption)


def check_arguments(label: str, size: int, light: str, style: str) -> None:
    """Refuse arguments that :func:`draw` does not know, and name those that it does."""
    for name, given, allowed in (("label", label, CLASSES), ("light", light, LIGHTS), ("style", style, STYLES)):
        if given not in allowed:
            raise CourseError(f"{name}={given!r} is not known. Choose one of: {', '.join(allowed)}.")
    if not 32 <= size <= 1024:
        raise CourseError(f"size={size} is out of range. Choose 32 to 1024 pixels; the course uses 128.")


def paint_scene(n: int, sun: float, rng: Random) -> tuple[Image.Image, str, float]:
    """Return a backdrop with one to four things on the floor, its name, and the height where the floor begins."""
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
    """Return picture and cover, in every third case with a thing in front that hides a third of the animal at most."""
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
    """Return the picture in its light and style, at its final size; pencil lines are drawn large, then reduced."""
    if style == "photo":
        picture, eyes = (sheet.resize((size, size), Image.Resampling.BOX) for sheet in (picture, eyes))
    pixels, glow = (np.asarray(sheet, np.float32) for sheet in (picture, eyes))
    pixels = daylight(pixels, rng) if light == "day" else moonlight(pixels, glow, rng)
    if style == "sketch":
        pixels = pencil(pixels if light == "day" else pixels * 1.6, rng)
    return to_image(pixels).resize((size, size), Image.Resampling.BOX)
