"""In which order an epoch shows the training pictures: each one once, or every class equally often."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from course_utils.errors import CourseError


class SeededOrder(Sampler[int]):
    """Indices in an order that is a function of (seed, epoch) alone.

    Shuffling by the global random generator would depend on all that was drawn before. This order is the same
    whether a run comes to an epoch in one go or is resumed there.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        return iter(order.tolist())


class BalancedOrder(SeededOrder):
    """As many indices as there are samples, drawn with replacement so that each class is equally likely.

    First a class is drawn, then one of its samples. Those of a rare class come back again and again (with another
    augmentation each time, if there is one), and many of a frequent class are left out of an epoch. Like
    :class:`SeededOrder` it is a function of (seed, epoch) alone.

    Parameters
    ----------
    labels
        One number per sample. Classes that none of them names are not drawn.
    seed
        At least 0.

    Raises
    ------
    CourseError
        Without a label there is nothing to draw from.

    Notes
    -----
    ``torch.utils.data.WeightedRandomSampler`` with weights ``1 / count of the class`` draws from the same
    distribution, but by the global generator. Class weights in the loss have the same aim: there every picture is seen
    once, and a mistake on a rare class costs more.
    """

    def __init__(self, labels: Sequence[int], seed: int) -> None:
        super().__init__(len(labels), seed)
        if not len(labels):
            raise CourseError("There are no labels: no class can be drawn.")
        labels = np.asarray(labels)
        self.members = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        classes = rng.integers(len(self.members), size=self.size)
        places = rng.integers([len(self.members[c]) for c in classes])  # one number for each, below its class's size
        return iter([int(self.members[c][place]) for c, place in zip(classes, places, strict=True)])
