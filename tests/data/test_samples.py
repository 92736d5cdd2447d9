"""samples.py: labels and class names wherever a data set keeps them, and batches that say what is wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset, default_collate
from torchvision.datasets import ImageFolder

from course_utils.common.errors import CourseError
from course_utils.data.samples import Collate, as_label, check_same_classes, classes_of, labels_of
from course_utils.engine.provenance import describe_data


class Named(Dataset):
    """Three samples and any attributes."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return torch.zeros(3, 8, 8), index


@pytest.fixture
def folder(tmp_path):
    for name, number in (("ant", 2), ("bee", 1)):
        (tmp_path / name).mkdir()
        for i in range(number):
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{i}.png")
    return tmp_path


def images(n):
    return torch.zeros(n, 3, 8, 8)


# --- labels and classes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "labels"),
    [
        (Named(), None),
        (Named(labels=(0, 1, 2)), [0, 1, 2]),
        (Named(targets=[0, 1, 2]), [0, 1, 2]),
        (Named(labels=[2, 1, 0], targets=["c", "b", "a"]), [2, 1, 0]),
        (Named(labels=torch.tensor([[2], [1], [0]])), [2, 1, 0]),
        (Named(labels=np.array([0.0, 1.0, -100.0])), [0, 1, -100]),
        (Named(targets=[0, 1, 2], target_transform=lambda label: 2 - label), [2, 1, 0]),
        (Named(labels=["cat", "dog"]), None),  # names of classes, not one for each sample
        (Named(labels={0: "cat", 1: "dog", 2: "pig"}), None),
        (Named(labels="cat"), None),
        (Subset(Named(labels=(0, 1, 2)), [2, 0]), [2, 0]),
        (Subset(Subset(Named(targets=(0, 1, 2)), [2, 0]), [1]), [0]),
        (Subset(Named(), [2, 0]), None),
        (ConcatDataset([Named(labels=(0, 1, 2)), Named(targets=(2, 2, 2))]), [0, 1, 2, 2, 2, 2]),
        (ConcatDataset([Named(labels=(0, 1, 2)), Named()]), None),
        (TensorDataset(images(2), torch.tensor([1, 0])), [1, 0]),
        (TensorDataset(images(2)), None),
    ],
)
def test_labels_are_found_without_reading_a_sample(dataset, labels, monkeypatch):
    monkeypatch.setattr(Named, "__getitem__", None)
    assert labels_of(dataset) == labels


def test_an_image_folder_says_its_labels_and_classes(folder):
    dataset = ImageFolder(folder)
    part = Subset(dataset, [0, 2])
    assert (labels_of(dataset), classes_of(dataset)) == ([0, 0, 1], ("ant", "bee"))
    assert (labels_of(part), classes_of(part)) == ([0, 1], ("ant", "bee"))
    assert describe_data(dataset)["classes"] == {"ant": 2, "bee": 1}


@pytest.mark.parametrize("classes", [None, "ant", 2, {"ant": 0}])
def test_what_is_no_list_of_names_is_none(classes):
    assert classes_of(Named(classes=classes)) == classes_of(Named()) == ()


def test_classes_of_several_parts_have_to_agree():
    one, other = Named(classes=["a", "b", "c"]), Named(classes=["a", "c"])
    assert classes_of(ConcatDataset([one, Named(), one])) == ("a", "b", "c")
    with pytest.raises(CourseError, match="another part has no b"):
        classes_of(ConcatDataset([one, other]))


@pytest.mark.parametrize(
    ("val", "told"),
    [
        (("a", "c"), "(a, b, c) and of the val split (a, c) are not the same: the val split has no b."),
        (("a", "b", "c", "d"), "the train split has no d."),
        (("a", "b", "x"), "the train split has no x and the val split has no c."),
        (("b", "a", "c"), "they are in another order."),
    ],
)
def test_other_classes_are_named(val, told):
    with pytest.raises(CourseError) as caught:
        check_same_classes({"train split": ("a", "b", "c"), "val split": val})
    assert told in str(caught.value)
    check_same_classes({"train split": val, "val split": val})
    check_same_classes({"train split": val, "val split": ()})


# --- one label, one batch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [2, 2.0, np.int32(2), np.float64(2), np.array(2), torch.tensor(2), torch.tensor([2])])
def test_a_label_is_a_whole_number_in_any_form(label):
    assert as_label(label) == 2 and type(as_label(label)) is int
    _, labels = Collate(classes=3)([(images(1)[0], label)] * 2)
    assert labels.dtype == torch.int64 and labels.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("label", "told"),
    [
        (torch.eye(3)[1], "[0.0, 1.0, 0.0] is none. Of a one-hot label give label.argmax()"),
        (np.array([0.3, 0.7]), "MixUp"),
        ("cat", "'cat' is none. Number the names: classes.index(name)."),
        (1.5, "1.5 is none."),
        (math.nan, "nan is none."),
        (math.inf, "inf is none."),
        (None, "None is none."),
    ],
)
def test_what_is_no_class_number_is_refused(label, told):
    with pytest.raises(CourseError) as caught:
        as_label(label)
    assert told in str(caught.value)


def test_a_good_batch_is_that_of_torch():
    samples = [(torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(i)), i) for i in range(3)]
    for ours, theirs in zip(Collate("train split", 3)(samples), default_collate(samples), strict=True):
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype


def test_pictures_of_one_batch_have_one_size_and_type():
    odd = {"3 × 9 × 8 float32": torch.zeros(3, 9, 8), "1 × 8 × 8 float32": images(1)[0, :1]}
    odd["3 × 8 × 8 float64"] = images(1)[0].double()
    for form, image in odd.items():
        with pytest.raises(CourseError, match=rf"pictures of 3 × 8 × 8 float32 and of {form}.*eval_transform"):
            Collate()([(images(1)[0], 0), (images(1)[0], 0), (image, 0)])
