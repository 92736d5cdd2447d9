"""From RGB to what the weights ask for, and back."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import models

from course_utils.common.errors import CourseError
from course_utils.mini.networks import ResNet18_Mini_Weights
from course_utils.transforms import (
    AUGMENTATIONS,
    denormalise,
    eval_transform,
    image_size,
    train_transform,
)

ENTRIES = (
    ResNet18_Mini_Weights.TINY_IMAGENET,
    models.ResNet50_Weights.IMAGENET1K_V1,
    models.ResNet50_Weights.IMAGENET1K_V2,
    models.EfficientNet_B0_Weights.IMAGENET1K_V1,
    models.VGG16_Weights.IMAGENET1K_FEATURES,
)


def photo(width: int = 160, height: int = 120) -> Image.Image:
    """A smooth picture with a colour gradient, so that every direction looks different."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("weights", ENTRIES, ids=str)
def test_eval_is_what_the_weights_say(weights):
    assert torch.equal(eval_transform(weights)(photo()), weights.transforms()(photo()))
    assert image_size(weights) == weights.transforms().crop_size[0]
    assert torch.equal(eval_transform(weights.transforms())(photo()), weights.transforms()(photo()))


@pytest.mark.parametrize("weights", ENTRIES, ids=str)
def test_no_augmentation_is_exactly_eval(weights):
    assert torch.equal(train_transform(weights, "none")(photo()), eval_transform(weights)(photo()))


@pytest.mark.parametrize("augment", ["light", "strong"])
@pytest.mark.parametrize("weights", ENTRIES, ids=str)
def test_augmentation_keeps_shape_and_scale(weights, augment):
    torch.manual_seed(0)
    views = torch.stack([train_transform(weights, augment)(photo()) for _ in range(4)])
    assert views.shape == (4, 3, image_size(weights), image_size(weights))
    assert views.dtype == torch.float32
    assert (views[0] != views[1]).any()
    plain = denormalise(eval_transform(weights)(photo()), weights)
    assert (denormalise(views, weights).mean((0, 2, 3)) - plain.mean((1, 2))).abs().max() < 0.15


def test_numbers_come_from_the_entry():
    preset = models.EfficientNet_B0_Weights.IMAGENET1K_V1.transforms()
    preset.mean, preset.std, preset.crop_size = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7], [96]
    for augment in AUGMENTATIONS:
        assert train_transform(preset, augment)(photo()).shape == (3, 96, 96)
    crop, *_, normalise = train_transform(preset, "light").transforms
    assert (list(normalise.mean), list(normalise.std)) == (preset.mean, preset.std)
    assert crop.interpolation == preset.interpolation != models.ResNet18_Weights.DEFAULT.transforms().interpolation


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_torch_seed_decides_everything(augment):
    transform = train_transform(ResNet18_Mini_Weights.TINY_IMAGENET, augment)
    views = []
    for other in (1, 2):
        torch.manual_seed(7)
        random.seed(other)
        np.random.seed(other)
        views.append(torch.stack([transform(photo()) for _ in range(4)]))
    assert torch.equal(*views)


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_transforms_can_be_pickled(augment):
    transform = train_transform(ResNet18_Mini_Weights.TINY_IMAGENET, augment)
    copy = pickle.loads(pickle.dumps(transform))
    views = []
    for each in (transform, copy):
        torch.manual_seed(3)
        views.append(each(photo()))
    assert torch.equal(*views)


def test_unknown_augmentation_lists_the_known_ones():
    with pytest.raises(CourseError, match=r"'wild'.*none, light, strong"):
        train_transform(ResNet18_Mini_Weights.TINY_IMAGENET, "wild")


@pytest.mark.parametrize("function", [eval_transform, train_transform, image_size])
def test_something_else_than_weights(function):
    with pytest.raises(CourseError, match="torchvision weights entry"):
        function("resnet18")


def test_pictures_that_are_not_square():
    preset = models.ResNet18_Weights.DEFAULT.transforms()
    preset.crop_size = [224, 192]
    with pytest.raises(CourseError, match="square"):
        image_size(preset)


@settings(max_examples=40, deadline=None)
@given(
    mean=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    std=st.lists(st.floats(0.05, 1), min_size=3, max_size=3),
    seed=st.integers(0, 2**31),
    batch=st.integers(0, 3),
)
def test_denormalise_undoes_normalise(mean, std, seed, batch):
    preset = models.ResNet18_Weights.DEFAULT.transforms()
    preset.mean, preset.std, preset.crop_size, preset.resize_size = mean, std, [8], [8]
    pixels = torch.randint(0, 256, (batch, 3, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    back = denormalise(preset(pixels), preset)
    assert back.shape == pixels.shape
    assert torch.allclose(back, pixels / 255, atol=1e-5)
    if batch:
        assert torch.equal(denormalise(preset(pixels)[0], preset), back[0])


def test_denormalise_stays_in_range_and_checks_its_input():
    weights = models.ResNet18_Weights.DEFAULT
    assert denormalise(torch.full((2, 3, 4, 4), 100.0), weights).max() == 1
    assert denormalise(torch.full((2, 3, 4, 4), -100.0), weights).min() == 0
    with pytest.raises(CourseError, match=r"\(2, 1, 4, 4\)"):
        denormalise(torch.zeros(2, 1, 4, 4), weights)
