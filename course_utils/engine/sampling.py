"""In which order an epoch shows the training pictures, and what augmentation draws for each of them.

Both are functions of (seed, epoch), whatever was drawn before: a resumed run sees what the unbroken one would have
seen, and it does not matter how many processes load the pictures.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler, TensorDataset

from course_utils.common.errors import CourseError
from course_utils.common.state import generators_put_back


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


class SeededDraws(Dataset):
    """A data set whose random numbers are a function of (seed, epoch, index).

    Augmentation draws from the generators of Python, NumPy or torch. Here they are seeded for each picture and put
    back afterwards, so that a picture looks the same whether it is loaded first or last, here or in a worker, and
    dropout draws the same numbers with and without augmentation.

    Parameters
    ----------
    dataset
        Gives anything for an index.
    seed
        At least 0.
    """

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose numbers are drawn."""
        # The third number keeps them apart from those of the order.
        self.seeds = np.random.default_rng([self.seed, epoch, 1]).integers(2**32, size=len(self.dataset))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Give several at once, as a ``DataLoader`` asks for them: putting the generators back costs time."""
        with generators_put_back():
            return [self._drawn(index) for index in indices]

    def _drawn(self, index: int) -> Any:
        seed = int(self.seeds[index])
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed asks for every kind of device: 100 times slower
        return self.dataset[index]


def seeded_draws(dataset: Dataset, seed: int) -> Dataset:
    """Wrap a data set in :class:`SeededDraws`, unless it draws nothing: tensors in memory, or what says so itself.

    A data set says so by an attribute ``fixed`` that is true, as that of
    :class:`~course_utils.datasets.MemoryDataset` is.
    """
    fixed = isinstance(dataset, TensorDataset) or getattr(dataset, "fixed", False)
    return dataset if fixed else SeededDraws(dataset, seed)
