"""Shifts of the domain: the same scenes by night, or as a sketch.

The drawn pets are drawn again in other light. Photographs are darkened, or reduced to their outlines, which is a shift
of the same kind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import v2

from course_utils.common.errors import CourseError
from course_utils.datasets import Splits, open_dataset
from course_utils.settings import Settings


def night_photo(picture: Image.Image) -> Image.Image:
    """Return a photograph as if taken in the dark: little light, most of it blue. RGB in, RGB out."""
    values = (np.asarray(picture.convert("RGB"), dtype=np.float32) / 255) ** 1.6
    return Image.fromarray((255 * values * np.array([0.30, 0.36, 0.58])).astype(np.uint8))


def sketch_photo(picture: Image.Image) -> Image.Image:
    """Return a photograph reduced to its outlines, dark lines on white paper. RGB in, RGB out."""
    edges = picture.convert("L").filter(ImageFilter.GaussianBlur(1)).filter(ImageFilter.FIND_EDGES)
    return ImageOps.invert(ImageOps.autocontrast(edges, cutoff=2)).convert("RGB")


SHIFTS: dict[str, tuple[dict[str, str], Callable[[Image.Image], Image.Image]]] = {
    "night": ({"light": "night"}, night_photo),
    "sketch": ({"style": "sketch"}, sketch_photo),
}


def shifted(settings: Settings, splits: Splits, kind: str, transform: Callable[[Any], Any] | None = None) -> Splits:
    """Return the splits in another domain: the same scenes and labels, seen differently.

    Photographs are changed on the fly, pets are drawn anew. `kind` is ``"night"`` or ``"sketch"``, otherwise a
    :class:`CourseError` is raised; `transform` is applied after the shift.
    """
    if kind not in SHIFTS:
        raise CourseError(f"There is no shift {kind!r}; choose one of {', '.join(SHIFTS)}.")
    options, change = SHIFTS[kind]
    if settings.dataset == "pets":
        drawn = open_dataset("pets", seed=settings.seed, cache=settings.cache, **options)
        return drawn.with_transforms(transform, transform)
    both = change if transform is None else v2.Compose([change, transform])
    return splits.with_transforms(both, both)
