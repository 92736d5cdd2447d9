"""In which order an epoch shows the training pictures, and what augmentation draws for each of them.

Both are functions of (seed, epoch), whatever was drawn before: a resumed run sees what the unbroken one would have
seen, and it does not matter how many processes load the pictures. The sampler decides both: it yields indices that
carry their epoch and the seed of their sample (:class:`SampleIndex`), also to worker processes that stay.
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


class SampleIndex(int):
    """The index of a sample, with the epoch in which it is shown and the seed of what is drawn for it.

    An ``int``, so that every data set can be asked with it.
    """

    epoch: int
    seed: int

    def __new__(cls, index: int, epoch: int = 0, seed: int = 0) -> SampleIndex:
        """Return the index; the two attributes travel with it, also to another process."""
        self = super().__new__(cls, index)
        self.epoch, self.seed = epoch, seed
        return self

    def __getnewargs__(self) -> tuple[int, int, int]:
        return int(self), self.epoch, self.seed


def sample_indices(indices: Sequence[int], size: int, seed: int, epoch: int) -> list[SampleIndex]:
    """Return indices of a data set of `size` samples with their epoch, and a seed for each sample."""
    # The third number keeps the generator apart from that of the order.
    seeds = np.random.default_rng([seed, epoch, 1]).integers(2**32, size=size).tolist()
    return [SampleIndex(index, epoch, seeds[index]) for index in indices]


class SeededOrder(Sampler[SampleIndex]):
    """Indices in an order that is a function of (seed, epoch) alone.

    Shuffling by the global random generator would depend on all that was drawn before. This order is the same
    whether a run comes to an epoch in one go or is resumed there.

    Parameters
    ----------
    size
        Number of samples.
    seed
        At least 0.
    epoch
        The epoch whose order the next iteration gives.
    """

    def __init__(self, size: int, seed: int, epoch: int = 0) -> None:
        self.size, self.seed, self.epoch = size, seed, epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[SampleIndex]:
        order = self._order(np.random.default_rng([self.seed, self.epoch]))
        return iter(sample_indices(order, self.size, self.seed, self.epoch))

    def _order(self, rng: np.random.Generator) -> list[int]:
        return rng.permutation(self.size).tolist()


class BalancedOrder(SeededOrder):
    """As many indices as there are samples, drawn with replacement so that each class is equally likely.

    First a class is drawn, then one of its samples. Those of a rare class come back again and again (with another
    augmentation each time, if there is one), and many of a frequent class are left out of an epoch. Like
    :class:`SeededOrder` it is a function of (seed, epoch) alone.

    Parameters
    ----------
    labels
        One number per sample. Classes that none of them names are not drawn.
    seed, epoch
        Same as in :class:`SeededOrder`.

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

    def __init__(self, labels: Sequence[int], seed: int, epoch: int = 0) -> None:
        super().__init__(len(labels), seed, epoch)
        if not len(labels):
            raise CourseError("There are no labels: no class can be drawn.")
        labels = np.asarray(labels)
        self.members = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def _order(self, rng: np.random.Generator) -> list[int]:
        classes = rng.integers(len(self.members), size=self.size)
        places = rng.integers([len(self.members[c]) for c in classes])  # one number for each, below its class's size
        return [int(self.members[c][place]) for c, place in zip(classes, places, strict=True)]


def training_order(train: Dataset, seed: int, oversample: bool) -> SeededOrder:
    """Return the order of the training pictures; with `oversample` every class comes equally often.

    Raises
    ------
    CourseError
        If `oversample` is asked for, and the data set does not have the label of every picture in ``labels``.
    """
    if not oversample:
        return SeededOrder(len(train), seed)
    labels = getattr(train, "labels", None)
    if labels is None or len(labels) != len(train):
        found = "has none" if labels is None else f"has {len(labels)} for {len(train)} pictures"
        raise CourseError(
            f"oversample=True draws by class, so it needs the label of every picture in advance: train.labels. This "
            f"{type(train).__name__} {found}. Use a data set of course_utils.datasets, or give yours that attribute."
        )
    return BalancedOrder([int(label) for label in labels], seed)


class SeededDraws(Dataset):
    """A data set whose random numbers are a function of the index that it is asked with.

    Augmentation draws from the generators of Python, NumPy or torch. Here they are seeded for each picture and put
    back afterwards, so that a picture looks the same whether it is loaded first or last, here or in a worker, and
    dropout draws the same numbers with and without augmentation.

    Parameters
    ----------
    dataset
        Gives anything for an index. It is asked with a :class:`SampleIndex`, or with a plain one, whose seed is 0.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return several samples, as a ``DataLoader`` asks for them: putting the generators back costs time."""
        with generators_put_back():
            return [self._drawn(index) for index in indices]

    def _drawn(self, index: int) -> Any:
        seed = getattr(index, "seed", 0)
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed asks for every kind of device: 100 times slower
        return self.dataset[index]


def seeded_draws(dataset: Dataset) -> Dataset:
    """Return the data set in :class:`SeededDraws`, unless it draws nothing: tensors in memory, or what says so itself.

    A data set says so by an attribute ``fixed`` that is true, as that of
    :class:`~course_utils.datasets.MemoryDataset` is.
    """
    fixed = isinstance(dataset, TensorDataset) or getattr(dataset, "fixed", False)
    return dataset if fixed else SeededDraws(dataset)
