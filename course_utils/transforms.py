"""From a picture to the tensor that a network wants.

A pre-trained network expects its pictures prepared as they were when it was trained: the same size, interpolation, mean
and standard deviation. torchvision keeps these in the weights entry, so every function here reads them from there.
``224`` or ``0.485`` typed into a notebook are wrong as soon as the weights change: ResNet-50's first weights resize to
256 pixels, its second to 232. A wrong preparation raises no error, it only costs accuracy;
``course_utils.experiments.transform_checks.check_transform`` finds it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode

from course_utils.common.errors import CourseError

AUGMENTATIONS = ("none", "light", "strong")

Transform = Callable[[Image.Image], Any]  # those made here give a tensor (3, H, W)


def preset_of(weights: Any) -> Any:
    """Return the weights' own transform, with ``crop_size``, ``resize_size``, ``interpolation``, ``mean`` and ``std``.

    Raises
    ------
    CourseError
        If the weights do not say how to prepare a picture.
    """
    preset = weights.transforms() if hasattr(weights, "transforms") else weights
    if not all(hasattr(preset, name) for name in ("crop_size", "interpolation", "mean", "std")):
        raise CourseError(
            f"{weights!r} does not say how pictures are prepared. Give a torchvision weights entry, such as "
            "torchvision.models.ResNet18_Weights.DEFAULT, or what its transforms() returns."
        )
    return preset


def image_size(weights: Any) -> int:
    """Return the side, in pixels, of the square picture that a network with these weights sees."""
    preset = preset_of(weights)
    sides = set(preset.crop_size)
    if len(sides) != 1:
        raise CourseError(f"These weights want pictures of {preset.crop_size} pixels; the course needs a square.")
    return int(sides.pop())


def eval_transform(weights: Any) -> Transform:
    """Return the transform that belongs to the weights: resize, centre crop, scale to [0, 1], normalise.

    Parameters
    ----------
    weights
        A torchvision weights entry such as ``ResNet50_Weights.IMAGENET1K_V2``, or what its ``transforms()`` gives.

    Returns
    -------
    Callable
        PIL RGB → float32 tensor ``(3, H, W)``, about zero mean and unit variance. It draws nothing at random.

    Raises
    ------
    CourseError
        If the weights do not say how to prepare a picture.
    """
    return preset_of(weights)


def train_transform(weights: Any, augment: str = "light") -> Transform:
    """Return the transform for training: as the weights ask for, with random changes that keep the label true.

    Parameters
    ----------
    weights
        Same as in :func:`eval_transform`; size, interpolation, mean and standard deviation come from it.
    augment
        ``"none"``: exactly :func:`eval_transform`. ``"light"``: a random crop of 70 to 100 % of the area, and a
        mirror image every second time. ``"strong"``: crops from 35 %, mirror image, up to 15° of rotation, changed
        colours, and a random rectangle erased every fourth time.

    Returns
    -------
    Callable
        PIL RGB → float32 tensor ``(3, H, W)``. All randomness comes from torch's global generator.

    Raises
    ------
    CourseError
        If ``augment`` is unknown.
    """
    if augment not in AUGMENTATIONS:
        raise CourseError(f"augment={augment!r} is unknown: choose one of {', '.join(AUGMENTATIONS)}.")
    if augment == "none":
        return eval_transform(weights)
    preset, size = preset_of(weights), image_size(weights)
    area = (0.7, 1.0) if augment == "light" else (0.35, 1.0)
    crop = v2.RandomResizedCrop(size, scale=area, interpolation=preset.interpolation, antialias=preset.antialias)
    steps = [crop, v2.RandomHorizontalFlip()]
    if augment == "strong":
        # The corners that a rotation uncovers get the mean colour, which normalising turns into zeros.
        corners = [round(255 * value) for value in preset.mean]
        steps.append(v2.RandomRotation(15, interpolation=InterpolationMode.BILINEAR, fill=corners))
        steps.append(v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05))
    steps += [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(preset.mean, preset.std)]
    if augment == "strong":
        steps.append(v2.RandomErasing(p=0.25, scale=(0.02, 0.2)))
    return v2.Compose(steps)


def denormalise(batch: Tensor, weights: Any) -> Tensor:
    """Return pictures with the normalisation undone, in [0, 1], to look at what the network was given.

    Parameters
    ----------
    batch
        ``(N, 3, H, W)`` or ``(3, H, W)``, as the transforms of these weights make it.
    """
    if batch.ndim not in (3, 4) or batch.shape[-3] != 3:
        raise CourseError(f"denormalise wants (N, 3, H, W) or (3, H, W), it was given {tuple(batch.shape)}.")
    preset = preset_of(weights)
    mean, std = (batch.new_tensor(values).view(3, 1, 1) for values in (preset.mean, preset.std))
    return (batch * std + mean).clamp(0, 1)
