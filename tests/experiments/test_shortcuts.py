"""shortcuts.py: marks where they are asked for, nowhere else, and the mask that tells where."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import generators_untouched
from PIL import Image
from torch.utils.data import DataLoader

from course_utils.common.errors import CourseError
from course_utils.data import artist
from course_utils.datasets import PhotoDataset, in_memory
from course_utils.experiments import cam_checks
from course_utils.experiments.shortcuts import Watermarked, watermark_mask
from course_utils.mini.networks import ResNet18_Mini_Weights
from course_utils.transforms import eval_transform

WEIGHTS = ResNet18_Mini_Weights.TINY_IMAGENET
CLASSES = ("ant", "bee", "cat")


@pytest.fixture
def photos(tmp_path):
    """Four grey pictures of each class, none of them square."""
    paths = [tmp_path / f"{i:02d}.png" for i in range(12)]
    for i, path in enumerate(paths):
        Image.new("RGB", (130 + i, 128), (10 * i, 100, 100)).save(path)
    return PhotoDataset(paths, [i % 3 for i in range(12)], CLASSES)


def is_marked(picture):
    pixels = np.asarray(picture, int)
    return bool((np.abs(pixels - pixels[0, 0]) > 2).any())


def test_the_marked_class_and_no_other_bears_the_mark(photos):
    marked = Watermarked(photos, ["bee"])
    assert [is_marked(picture) for picture, _ in (marked[i] for i in range(12))] == [i % 3 == 1 for i in range(12)]
    assert list(marked.marked) == [i % 3 == 1 for i in range(12)]
    assert marked.labels == photos.labels and marked.classes == CLASSES
    assert {marked[i][0].size for i in range(12)} == {(128, 128)}, "the form must not give the class away"
    assert repr(marked) == "Watermarked(12 pictures, 4 of them marked)"
    assert not any(Watermarked(photos, []).marked)


def test_half_of_every_class_tells_nothing_about_the_class(photos):
    with generators_untouched():
        repaired = Watermarked(photos, CLASSES, share=0.5, seed=3)
    labels, flags = np.array(repaired.labels), np.array(repaired.marked)
    assert [flags[labels == label].sum() for label in range(3)] == [2, 2, 2]
    assert repaired.marked == Watermarked(photos, CLASSES, share=0.5, seed=3).marked
    assert len({Watermarked(photos, CLASSES, share=0.5, seed=seed).marked for seed in range(6)}) > 1


def test_marks_stay_with_their_pictures(photos):
    marked = Watermarked(photos, CLASSES, share=0.5)
    part = marked.subset([7, 0, 5])
    assert part.marked == tuple(marked.marked[i] for i in (7, 0, 5))
    assert [is_marked(part[i][0]) for i in range(3)] == list(part.marked)
    tensors = marked.with_transform(eval_transform(WEIGHTS))
    assert tensors.marked == marked.marked and marked.transform is None
    memory = in_memory(tensors)
    flat = [bool((image - image[:, :1, :1]).abs().max() < 0.05) for image in memory.images]
    assert flat == [not flag for flag in marked.marked]
    batch, labels = next(iter(DataLoader(tensors.subset([1, 2]), batch_size=2)))
    assert batch.shape == (2, 3, 128, 128) and labels.tolist() == [1, 2]


def test_the_mask_lies_on_the_mark(photos):
    prepared = Watermarked(photos, CLASSES).with_transform(eval_transform(WEIGHTS))
    image = prepared[0][0]
    changed = ((image - image[:, :1, :1]).abs().amax(0) > 0.1).numpy()
    mask = watermark_mask(WEIGHTS)
    assert mask.shape == (128, 128) and mask.dtype == bool
    assert (mask & changed).sum() / (mask | changed).sum() > 0.9
    assert 0.01 < mask.mean() < 0.03
    assert cam_checks.energy_inside(changed[None].astype(float), mask)[0] > 0.9


def test_pets_keep_their_masks(tmp_path):
    drawing = artist.draw("Misty", seed=1, size=64)
    drawing.image.save(tmp_path / "a.png")
    drawing.mask.save(tmp_path / "m.png")
    photos = PhotoDataset([tmp_path / "a.png"], [0], ["Misty"], masks=[tmp_path / "m.png"])
    marked = Watermarked(photos, ["Misty"])
    assert np.array_equal(marked.mask(0), drawing.mask)
    assert np.array_equal(marked[0][0], artist.stamp(drawing.image))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((["dog"],), "There is no class 'dog' to mark; there are ant, bee, cat."),
        ((["ant"], 1.5), "share=1.5: it is a part of the pictures, from 0 to 1."),
    ],
)
def test_wrong_arguments(photos, arguments, told):
    with pytest.raises(CourseError) as caught:
        Watermarked(photos, *arguments)
    assert str(caught.value) == told


def test_the_global_generators_stay_as_they_are(photos):
    with generators_untouched():
        Watermarked(photos, ["ant"])[0]
        watermark_mask(WEIGHTS)
