"""written_transforms.py: what is written down is built again to the last bit, and nothing else is ever built."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import transforms as v1
from torchvision.models import ResNet50_Weights
from torchvision.transforms import v2

from course_utils.engine.written_transforms import CannotBuild, as_plain, build_transform, is_complete
from course_utils.mini.networks import ResNet18_Mini_Weights
from course_utils.transforms import eval_transform, train_transform

MINI = ResNet18_Mini_Weights.TINY_IMAGENET
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8))
MEAN = torch.tensor([0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    "transform",
    [
        eval_transform(MINI),
        ResNet50_Weights.IMAGENET1K_V2.transforms(),
        train_transform(MINI, "strong"),
        v2.Compose([v2.Pad(4, fill=7), v2.Resize((40, 50)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]),
        v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32), v2.Normalize(MEAN, np.float32([2, 3, 4]))]),
        nn.Sequential(v2.Resize((40, 50)), v2.PILToTensor(), nn.Sequential(v2.ToDtype(torch.float32, scale=True))),
        v1.Compose([v1.Resize(40, v1.InterpolationMode.BICUBIC), v1.ToTensor(), v1.Normalize(MEAN, MEAN)]),
    ],
    ids=lambda transform: type(transform).__module__,
)
def test_a_transform_comes_back_from_its_record(transform):
    plain = as_plain(transform)
    built = build_transform(json.loads(json.dumps(plain)))
    assert is_complete(plain) and as_plain(built) == plain
    torch.manual_seed(0)
    there = transform(PICTURE)
    torch.manual_seed(0)
    assert torch.equal(built(PICTURE), there)


@pytest.mark.parametrize("change", ["hook", "pre-hook", "forward"])
def test_a_row_that_was_changed_is_not_taken_for_a_plain_one(change):
    plain = as_plain(nn.Sequential(v2.Resize(40), v2.PILToTensor()))
    row = nn.Sequential(v2.Resize(40), v2.PILToTensor())
    if change == "forward":
        row.forward = lambda image: row[1](image)
    else:
        register = row.register_forward_hook if change == "hook" else row.register_forward_pre_hook
        register(lambda *_: None)
    assert as_plain(row) != plain and is_complete(plain) and not is_complete(as_plain(row))
    with pytest.raises(CannotBuild):
        build_transform(as_plain(row))


class Brighter(v2.Resize):
    """A class of one's own, under the name of a class of torchvision."""


def noisy(strength):
    return lambda image: image + strength * torch.randn_like(image)


@pytest.mark.parametrize(
    ("step", "name"),
    [(Brighter(40), "Brighter"), (v2.Lambda(noisy(1)), "lambda"), (nn.Identity(), "Identity"), (noisy(1), "lambda")],
    ids=["own class", "Lambda", "torch", "function"],
)
def test_what_is_not_torchvisions_is_named_and_not_built(step, name):
    plain = json.loads(json.dumps(as_plain(v2.Compose([step, v2.ToImage()]))))
    assert not is_complete(plain)
    with pytest.raises(CannotBuild, match=f"{name}.* is none of torchvision's transforms"):
        build_transform(plain)


@pytest.mark.parametrize(
    "plain",
    [
        {"class": "os.system"},
        {"class": "torchvision.transforms.transforms.torch"},
        {"class": "torchvision.transforms.transforms.Sequence"},
        {"class": "torchvision.transforms.v2.functional.resize"},
        {"class": "torchvision.transforms.of_another_day.Resize"},
        {"class": "torchvision.transforms.v2.Resize"},
        {"class": "torchvision.transforms.InterpolationMode"},
        {"enum": "torchvision.transforms.v2.Resize", "name": "BILINEAR"},
        {"dtype": "load"},
        {"tensor": [1.0]},
        {"unknown": 1},
        "torchvision.transforms.v2.Resize",
        None,
    ],
    ids=str,
)
def test_a_record_that_is_no_transform_is_one_line(plain):
    with pytest.raises(CannotBuild):
        build_transform(plain)


def test_another_behaviour_is_another_record():
    class Sharpen:
        def __init__(self, function, strength=1.0):
            self.function, self.strength = function, strength

        def __call__(self, picture):
            return self.function(picture)

        def __repr__(self):
            return "Sharpen()"

    first, edited = Sharpen, type("Sharpen", (Sharpen,), {"__call__": lambda self, picture: self.function(picture) / 2})
    different = [first(noisy(0)), first(noisy(30)), first(noisy(0), 2.0), edited(noisy(0)), v2.RandomRotation(5)]
    records = [json.dumps(as_plain(transform)) for transform in (*different, v2.RandomRotation(6))]
    assert len(set(records)) == len(records)
    again = [first(noisy(0)), first(noisy(30))]
    assert [json.dumps(as_plain(transform)) for transform in again] == records[:2]
