"""sampling.py: who draws random numbers, and who does not."""

from __future__ import annotations

import pytest
import torch
from helpers import ColourPatches
from torch.utils.data import TensorDataset

from course_utils.datasets import MemoryDataset
from course_utils.engine.sampling import SeededDraws, seeded_draws


class Flipped(MemoryDataset):
    """Augments, and says nothing about it."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return (image.flip(-1) if torch.rand(()) < 0.5 else image), label


class Batched(MemoryDataset):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


class Brighter(MemoryDataset):
    """Draws nothing, and says so."""

    fixed = True

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image + 1, label


class Named(Brighter):
    name = "a subclass that gives the same"


class NoisyTensors(TensorDataset):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image + torch.rand(()), label


def tensors(kind):
    data = ColourPatches(4)
    if issubclass(kind, TensorDataset):
        return kind(data.images, torch.tensor(data.labels))
    return kind(data.images, data.labels, data.classes)


@pytest.mark.parametrize("kind", [MemoryDataset, TensorDataset, Brighter, Named])
def test_what_draws_nothing_is_left_as_it_is(kind):
    data = tensors(kind)
    assert seeded_draws(data) is data


@pytest.mark.parametrize("kind", [Flipped, Batched, NoisyTensors])
def test_a_subclass_that_gives_other_samples_does_not_inherit_that_nothing_is_drawn(kind):
    data = tensors(kind)
    assert isinstance(seeded_draws(data), SeededDraws)
    data.fixed = True  # the reader says so of this one
    assert seeded_draws(data) is data
