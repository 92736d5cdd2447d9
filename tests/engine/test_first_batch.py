"""first_batch.py and what people bring to fit: it works, or one sentence says what to do."""

from __future__ import annotations

import copy
import sys

import numpy as np
import pytest
import torch
from helpers import ColourPatches, Noisy, copy_of, generators_untouched, mini, moved
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from course_utils.common.errors import CourseError
from course_utils.engine.first_batch import check_call
from course_utils.engine.options import FitOptions
from course_utils.evaluation import evaluate
from course_utils.feature_extraction import extract_features
from course_utils.fine_tuning import FEATURE_EXTRACTION, FULL
from course_utils.training import fit, last_run

VAL = ColourPatches(6, seed=2)
OPTIONS = {"epochs": 1, "batch_size": 4, "device": "cpu", "log": "off"}


class Odd(ColourPatches):
    """Twelve samples, each of which is what `change` makes of (image, label, index); nothing else is known of them."""

    def __init__(self, change, only=range(12)):
        super().__init__(12, seed=1)
        self.change, self.only, self.given = change, only, self.labels
        del self.labels

    def __len__(self):
        return 12

    def __getitem__(self, index):
        image, label = self.images[index], self.given[index]
        return self.change(image, label, index) if index in self.only else (image, label)


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(VAL.images, VAL.labels, strict=True)


def with_labels(labels):
    dataset = ColourPatches(6, seed=1)
    dataset.labels = labels
    return dataset


WORKS = {
    "float labels": Odd(lambda x, y, i: (x, float(y))),
    "labels of NumPy": Odd(lambda x, y, i: (x, np.int32(y))),
    "tensors of one label": Odd(lambda x, y, i: (x, torch.tensor([y]))),
    "a list": [ColourPatches(12, seed=1)[i] for i in range(12)],
    "a part": Subset(ColourPatches(24, seed=1), range(12)),
}


@pytest.mark.parametrize("name", WORKS)
def test_data_sets_of_these_kinds_are_learned_from_like_any_other(name):
    odd, plain, train = mini(), mini(), ColourPatches(12, seed=1)
    train.images = torch.stack([WORKS[name][i][0] for i in range(12)])
    run = fit(odd, WORKS[name], VAL, FULL, **OPTIONS)
    assert numbers(run) == numbers(fit(plain, train, VAL, FULL, **OPTIONS))
    assert not moved(copy_of(odd), copy_of(plain))
    assert evaluate(odd, WORKS[name]).labels.tolist() == list(train.labels)
    assert extract_features(odd, WORKS[name])[1].tolist() == list(train.labels)


def numbers(run):
    return [(r.train_loss, r.train_accuracy, r.val_loss, r.val_accuracy) for r in run.history]


REFUSED = {
    "labels from 1": (Odd(lambda x, y, i: (x, y + 1)), "labels up to 3, the model's head has 3 outputs.*subtract 1"),
    "one-hot labels": (Odd(lambda x, y, i: (x, torch.eye(3)[y])), r"one-hot label give label\.argmax"),
    "names for labels": (Odd(lambda x, y, i: (x, "red")), r"'red' is none\. Number the names"),
    "names in .labels": (with_labels(["red"] * 6), r"'red' is none"),
    "one-hot in .labels": (with_labels(np.eye(3)[[0, 1, 2] * 2]), r"label\.argmax"),
    "label -1": (Odd(lambda x, y, i: (x, -1)), "label -1: labels count from 0, and -100 marks"),
    "uint8": (Odd(lambda x, y, i: (x.byte(), y)), r"torch\.uint8, the network computes in torch\.float32.*ToDtype"),
    "float64": (Odd(lambda x, y, i: (x.double(), y)), r"pictures of torch\.float64.*ToDtype\(torch\.float32"),
    "one channel": (Odd(lambda x, y, i: (x[:1], y)), r"of 1 × 32 × 32, the network takes 3 channels.*RGB"),
    "four channels": (Odd(lambda x, y, i: (torch.cat([x, x[:1]]), y)), r"of 4 × 32 × 32.*RGB"),
    "two sizes": (Odd(lambda x, y, i: (x[:, i:], y)), r"of 3 × 32 × 32 float32 and of 3 × 21 × 32.*eval_transform"),
    "a row of pixels": (
        Odd(lambda x, y, i: (x.flatten(), y)),
        r"cannot answer a picture of the train split, \(3072,\)",
    ),
    "PIL pictures": (Odd(lambda x, y, i: (Image.new("RGB", (32, 32)), y)), "gives a Image instead of a tensor"),
    "three values": (Odd(lambda x, y, i: (x, y, "path")), r"gives 3 values for a sample.*pair \(image, label\)"),
    "dicts": (Odd(lambda x, y, i: {"image": x, "label": y}), "a dict with the keys image, label.*__getitem__"),
    "an image alone": (Odd(lambda x, y, i: x), "gives a Tensor for a sample"),
    "a loader": (DataLoader(VAL), r"a DataLoader: give its data set, loader\.dataset"),
    "a stream": (Stream(), r"is a Stream: fit needs a data set with a length.*list\(stream\)"),
    "nothing": (None, "is a NoneType"),
}
LATER = {
    "label 7 later": (lambda x, y, i: (x, 7), "labels up to 7, the model's head has 3 outputs"),
    "label -1 later": (lambda x, y, i: (x, -1), "label -1"),
    "another size later": (lambda x, y, i: (x[:, 1:], y), "3 × 31 × 32"),
    "a name later": (lambda x, y, i: (x, "red"), "'red'"),
}
REFUSED |= {name: (Odd(change, only=[5]), told) for name, (change, told) in LATER.items()}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_learned_from_is_one_sentence(name):
    train, told = REFUSED[name]
    with pytest.raises(CourseError, match=told) as caught:
        fit(mini(), train, VAL, FULL, **OPTIONS)
    assert "\n" not in str(caught.value)
    with pytest.raises(CourseError, match=told.replace("train", "val")):
        fit(mini(), VAL, train, FULL, **OPTIONS)


@pytest.mark.skipif(sys.platform != "linux", reason="starts a worker by fork, which imports nothing anew")
def test_a_sentence_from_a_worker_is_that_sentence():
    with pytest.raises(CourseError, match=r"^The train split has labels up to 7.*num_classes=8\.$"):
        fit(mini(), Odd(LATER["label 7 later"][0], only=[5]), VAL, FULL, **OPTIONS, num_workers=1)


def test_pictures_without_a_label_are_allowed():
    train = Odd(lambda x, y, i: (x, -100), only=[1, 5])
    assert fit(mini(), train, VAL, FULL, **OPTIONS).stopped == "finished"
    model = mini()
    check_call(model, with_labels([0, 1, 2, -100, -100, -100]), VAL, FitOptions())


def test_the_look_leaves_no_trace():
    model = mini()
    model.layer4.eval()
    before, modes = copy_of(model), [module.training for module in model.modules()]
    with generators_untouched():
        check_call(model, Noisy(12, 1), Noisy(6, 2), FitOptions())
    assert not moved(before, copy_of(model)) and [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_validation_pictures_of_another_size_are_tried_too():
    small = ColourPatches(6, seed=2, side=8)
    assert fit(mini(), ColourPatches(12, seed=1), small, FULL, **OPTIONS).stopped == "finished"

    class Strict(type(mini())):
        def forward(self, x):
            assert x.shape[-1] == 32, "32 pixels only"
            return super().forward(x)

    model = mini()
    model.__class__ = Strict
    with pytest.raises(CourseError, match=r"picture of the val split, \(3, 8, 8\): AssertionError: 32 pixels only"):
        fit(model, ColourPatches(12, seed=1), small, FULL, **OPTIONS)


def test_a_network_that_gives_no_logits_is_named():
    class Pair(type(mini())):
        def forward(self, x):
            return super().forward(x), x

    model = mini()
    model.__class__ = Pair
    with pytest.raises(CourseError, match=r"gives a tuple instead of logits \(1, 3\)"):
        fit(model, ColourPatches(12, seed=1), VAL, FULL, **OPTIONS)


def test_networks_and_pictures_in_float64_agree():
    data = [ColourPatches(size, seed, dtype=torch.float64) for size, seed in ((12, 1), (6, 2))]
    run = fit(mini().double(), *data, FULL, **OPTIONS, class_weights=[1, 2, 3])
    assert run.stopped == "finished"
    with pytest.raises(CourseError, match=r"ToDtype\(torch\.float64"):
        fit(mini().double(), VAL, VAL, FULL, **OPTIONS)


def test_folders_with_other_classes_are_refused(tmp_path):
    """torchvision numbers the folders that are there: c would be 2 in train and 1 in val."""
    for place in ("train/a", "train/b", "train/c", "val/a", "val/c"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / place / "1.png")
    ready = v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])
    train, val = (ImageFolder(tmp_path / split, ready) for split in ("train", "val"))
    with pytest.raises(CourseError, match=r"train split .a, b, c. and of the val split .a, c.*the val split has no b"):
        fit(mini(), train, val, FULL, **OPTIONS)
    (tmp_path / "val" / "b").mkdir()
    complete = ImageFolder(tmp_path / "val", ready, allow_empty=True)
    assert fit(mini(), train, complete, FULL, **OPTIONS).stopped == "finished"


def test_a_head_without_a_bias_learns():
    model = mini()
    model.fc = nn.Linear(model.fc.in_features, 3, bias=False)
    before = copy.deepcopy(model.fc.weight)
    assert fit(model, ColourPatches(12, seed=1), VAL, FEATURE_EXTRACTION, **OPTIONS).stopped == "finished"
    assert not torch.equal(before, model.fc.weight) and last_run().best.epoch == 0
