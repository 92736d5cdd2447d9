"""The order of the training pictures in an epoch, and the random numbers of their augmentation.

Both are functions of (seed, epoch), whatever was drawn before, so a resumed run is equal to an unbroken one, with any
number of worker processes. The sampler decides both: its indices carry their epoch and a seed (:class:`SampleIndex`).
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
from course_utils.data.samples import labels_of


class SampleIndex(int):
    """The index of a sample, with its epoch and the seed of its augmentation; an ``int`` for every data set."""

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


def spread_out(size: int, count: int) -> list[int]:
    """Return at most `count` indices of `size` samples, evenly spaced from the first to the last."""
    return sorted({round(i) for i in np.linspace(0, size - 1, min(count, size))})


class SeededOrder(Sampler[SampleIndex]):
    """The indices of `size` samples in an order that is a function of (seed, epoch) alone; the seed is at least 0."""

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
    """Indices that are drawn with replacement so that each class is equally likely, one for each sample.

    First a class is drawn, then one of its samples: those of a rare class are repeated, and many of a frequent class
    are left out of an epoch. ``torch.utils.data.WeightedRandomSampler`` with weights ``1 / count of the class`` draws
    from the same distribution, but by the global generator. Class weights in the loss have the same aim.

    Parameters
    ----------
    labels
        One number per sample, of which at least one is 0 or more (or it is a CourseError). A sample with a negative
        one, which does not count in the loss, is not drawn.
    seed, epoch
        Same as in :class:`SeededOrder`.
    """

    def __init__(self, labels: Sequence[int], seed: int, epoch: int = 0) -> None:
        super().__init__(len(labels), seed, epoch)
        labels = np.asarray(labels, dtype=int)
        self.members = [np.flatnonzero(labels == label) for label in np.unique(labels[labels >= 0])]
        if not self.members:
            raise CourseError("There are no labels: no class can be drawn.")

    def _order(self, rng: np.random.Generator) -> list[int]:
        classes = rng.integers(len(self.members), size=self.size)
        places = rng.integers([len(self.members[c]) for c in classes])  # one number for each, below its class's size
        return [int(self.members[c][place]) for c, place in zip(classes, places, strict=True)]


def training_order(train: Dataset, seed: int, oversample: bool) -> SeededOrder:
    """Return the order of the training pictures; with `oversample`, which needs all labels, balanced by class."""
    if not oversample:
        return SeededOrder(len(train), seed)
    labels = labels_of(train)
    if labels is None:
        raise CourseError(
            f"oversample=True draws by class, so it needs the label of every picture in advance: train.labels, or "
            f"train.targets. This {type(train).__name__} has none, or not {len(train)} of them. Use a data set of "
            "course_utils.datasets, or give yours that attribute."
        )
    return BalancedOrder(labels, seed)


def batches_of(order: Sequence[int], batch_size: int, *, training: bool) -> list[Sequence[int]]:
    """Return the order cut into batches; in training, a last batch of a single picture joins the one before it.

    BatchNorm would take the mean and variance of that one picture for those of the data, at full strength and right
    before validation, or refuse to (one value per channel has no variance). Batches of 1 that were asked for stay.

    Examples
    --------
    >>> [len(batch) for batch in batches_of(range(97), 32, training=True)]
    [32, 32, 33]
    """
    starts = list(range(0, len(order), batch_size))
    if training and len(starts) > 1 and batch_size > 1 and starts[-1] == len(order) - 1:
        starts.pop()
    return [order[start:stop] for start, stop in zip(starts, [*starts[1:], len(order)], strict=True)]


class SeededDraws(Dataset):
    """A data set whose random numbers are a function of the :class:`SampleIndex` (a plain index has the seed 0).

    The generators of Python, NumPy and torch are seeded for each picture and put back afterwards, so that a picture
    looks the same whether it is loaded first or last, here or in a worker, and dropout draws the same numbers with and
    without augmentation.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return several samples, as a ``DataLoader`` asks for them: putting the generators back costs time."""
        samples = []
        with generators_put_back():
            for index in indices:
                seed = getattr(index, "seed", 0)
                random.seed(seed)
                np.random.seed(seed)
                torch.default_generator.manual_seed(seed)  # torch.manual_seed is 100 times slower: it seeds all devices
                samples.append(self.dataset[index])
        return samples


def seeded_draws(dataset: Dataset) -> Dataset:
    """Return the data set in :class:`SeededDraws`, unless it draws nothing: a ``TensorDataset``, or one with ``fixed``.

    ``fixed`` is an attribute that is True where nothing is drawn (:class:`~course_utils.datasets.MemoryDataset`). A
    subclass with a ``__getitem__`` of its own does not inherit it.
    """
    fixed = isinstance(dataset, TensorDataset) or getattr(dataset, "fixed", False)
    for kind in type(dataset).__mro__:
        if kind is TensorDataset or "fixed" in vars(kind):
            break
        if "__getitem__" in vars(kind) or "__getitems__" in vars(kind):  # in front of the class that says so
            fixed = getattr(dataset, "__dict__", {}).get("fixed", False)
            break
    return dataset if fixed else SeededDraws(dataset)
