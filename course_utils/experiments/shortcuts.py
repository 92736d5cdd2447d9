"""A mark that gives the answer away, to see whether a network takes it: Clever Hans in a laboratory.

The horse Clever Hans answered sums by watching his questioner's face. Networks do the same with whatever tells the
classes apart more easily than the object does: a watermark on all photos of horses, the ruler beside the melanoma.
Lapuschkin, S. et al. (2019). Unmasking Clever Hans predictors. https://arxiv.org/abs/1902.10178
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from course_utils.common.errors import CourseError
from course_utils.data.artist import stamp
from course_utils.data.pictures import load_picture
from course_utils.datasets import PhotoDataset
from course_utils.gradcam import as_seen


class Watermarked(PhotoDataset):
    """The same pictures, some of them with a badge in the lower right corner.

    Parameters
    ----------
    photos
        Pets or photographs. All are cropped to a square, marked or not: otherwise their form would give away what the
        mark does.
    classes
        Names of the classes whose pictures are marked. One class: the mark is a shortcut. None of them (an empty
        list): the test without it. All of them with ``share=0.5``: the repair, in which the mark tells nothing.
    share, seed
        Share of each of these classes that is marked, in [0, 1], rounded to whole pictures, and seed of their choice.

    Notes
    -----
    The mark is put on before the transform. A crop may cut it off and a mirror image moves it to the left, so the
    experiment needs the transform for evaluation in training too.
    """

    def __init__(self, photos: PhotoDataset, classes: Iterable[str], share: float = 1.0, seed: int = 0) -> None:
        super().__init__(photos.paths, photos.labels, photos.classes, photos.transform, photos.masks)
        wanted = list(classes)
        if unknown := [name for name in wanted if name not in self.classes]:
            raise CourseError(f"There is no class {unknown[0]!r} to mark; there are {', '.join(self.classes)}.")
        if not 0 <= share <= 1:
            raise CourseError(f"share={share}: it is a part of the pictures, from 0 to 1.")
        marked = np.zeros(len(self), dtype=bool)
        generator = np.random.default_rng(seed)
        for name in wanted:
            own = np.flatnonzero(np.asarray(self.labels) == self.classes.index(name))
            marked[generator.permutation(own)[: round(share * len(own))]] = True
        self.marked = tuple(marked.tolist())

    def __getitem__(self, index: int) -> tuple[Any, int]:
        picture = load_picture(self.paths[index])
        picture = ImageOps.fit(picture, (min(picture.size),) * 2)
        if self.marked[index]:
            picture = stamp(picture)
        return (picture if self.transform is None else self.transform(picture)), self.labels[index]

    def with_transform(self, transform: Callable[[Image.Image], Any] | None) -> Watermarked:
        """Return the same samples, marked in the same way, with another transform."""
        other = copy.copy(self)
        other.transform = transform
        return other

    def subset(self, indices: Iterable[int]) -> Watermarked:
        """Return the samples at these indices, in this order, marked as they are here."""
        chosen = [int(i) for i in indices]
        other = Watermarked(super().subset(chosen), [])
        other.marked = tuple(self.marked[i] for i in chosen)
        return other

    def __repr__(self) -> str:
        return f"Watermarked({len(self)} pictures, {sum(self.marked)} of them marked)"


def watermark_mask(weights: Any, side: int = 512) -> np.ndarray:
    """Return where the badge is in the picture that a network sees: bool ``(H, W)``.

    ``cam_checks.energy_inside(maps, watermark_mask(weights))`` is the share of a map on it. The badge is tried out on
    a picture of `side` × `side` pixels.
    """
    blank = Image.new("RGB", (side, side))
    drawn = np.asarray(stamp(blank)).any(2)
    return np.asarray(as_seen(Image.fromarray(np.uint8(255 * drawn)), weights)) > 127
