"""Every way to prepare pictures wrongly is named, and nothing that is right."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
import torch
from helpers import generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageOps
from torchvision import models
from torchvision import transforms as v1
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode

from course_utils.common.errors import CourseError
from course_utils.experiments.transform_checks import check_transform
from course_utils.mini.networks import BUILDERS, ResNet18_Mini_Weights
from course_utils.transforms import AUGMENTATIONS, eval_transform, train_transform

CHECKED = ("resnet18", "resnet50", "vgg16", "efficientnet_b0", "mobilenet_v3_small", *BUILDERS)
R18 = models.ResNet18_Weights.IMAGENET1K_V1
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
GOAL = "mean 0.485, 0.456, 0.406 and standard deviation 0.229, 0.224, 0.225"
CUT = [v2.Resize(256), v2.CenterCrop(224)]
TO_FLOAT = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
NORMAL = v2.Normalize(MEAN, STD)
TO_255 = "leaves values from 0 to 255; they have to be divided by 255, then normalised with " + GOAL
BLUE_FIRST = "gives the channels in the order blue, green, red; red, green, blue is wanted"
NOT_ONE_SIZE = "gives pictures of different sizes ({}); a crop to 224 × 224 is wanted"
DRAWS = "is random: the same picture comes out differently each time; only training may draw"


def entries_by_preparation() -> dict[str, list]:
    """The entries of all checked models; those that want pictures prepared in the same way stand together."""
    groups: dict[str, list] = {}
    for name in CHECKED:
        for entry in models.get_model_weights(name):
            groups.setdefault(str(entry.transforms()), []).append(entry)
    return {str(entries[0]): entries for entries in groups.values()}


def by_hand(picture: Image.Image) -> torch.Tensor:
    """The same as ResNet-18's own transform, with nothing but Pillow and NumPy."""
    width, height = picture.size
    short = min(width, height)
    picture = picture.resize((width * 256 // short, height * 256 // short), Image.Resampling.BILINEAR)
    left, top = round((picture.width - 224) / 2), round((picture.height - 224) / 2)
    pixels = np.asarray(picture.crop((left, top, left + 224, top + 224))) / 255
    return torch.from_numpy(((pixels - MEAN) / STD).astype(np.float32)).permute(2, 0, 1)


def own_mean(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor - tensor.mean()) / (tensor.std() + 1e-6)


def compose(*steps: object) -> v2.Compose:
    return v2.Compose(list(steps))


@pytest.mark.parametrize("first", entries_by_preparation())
def test_no_false_alarm(first):
    for weights in entries_by_preparation()[first]:
        assert check_transform(eval_transform(weights), weights) == []
    for augment in AUGMENTATIONS:
        assert check_transform(train_transform(weights, augment), weights.transforms(), training=True) == []


@pytest.mark.parametrize(
    "transform",
    [
        by_hand,
        v1.Compose([v1.Resize(256), v1.CenterCrop(224), v1.ToTensor(), v1.Normalize(MEAN, STD)]),
        compose(*TO_FLOAT, *CUT, NORMAL),
        compose(v2.PILToTensor(), *CUT, v2.ToDtype(torch.float32, scale=True), NORMAL),
    ],
    ids=["by hand", "v1", "float tensor first", "tensor first"],
)
def test_another_way_to_the_same_pixels_is_no_mismatch(transform):
    assert check_transform(transform, R18) == []


MISMATCHES = {
    "not a tensor": (compose(*CUT), ["gives Image; a tensor is wanted", TO_255]),
    "grey picture": (
        compose(*CUT, v2.Grayscale()),
        ["gives Image; a tensor is wanted", TO_255, "takes the colour out: the three channels are equal"],
    ),
    "an array": (
        compose(*CUT, np.asarray),
        [
            "gives ndarray; a tensor is wanted",
            "gives (224, 224, 3), channels last; (3, H, W) is wanted",
            "gives uint8; float32 is wanted",
            TO_255,
        ],
    ),
    "array of words": (lambda picture: np.array(["a"]), ["gives ndarray; a tensor is wanted"]),
    "something else": (lambda picture: (picture, 1), ["gives tuple; a tensor is wanted"]),
    "None": (lambda picture: None, ["gives NoneType; a tensor is wanted"]),
    "batch": (
        compose(*CUT, *TO_FLOAT, NORMAL, lambda x: x[None]),
        ["gives a batch of one, (1, 3, 224, 224); (3, H, W) is wanted, making batches is the DataLoader's work"],
    ),
    "one channel": (
        compose(*CUT, v2.Grayscale(), *TO_FLOAT),
        ["gives the shape (1, 224, 224); (3, H, W) is wanted"],
    ),
    "one channel for some": (
        lambda picture: by_hand(picture)[: 1 + 2 * (picture.width > picture.height)],
        ["gives the shape (1, 224, 224) for some pictures; (3, H, W) is wanted for all"],
    ),
    "dtype": (compose(*CUT, *TO_FLOAT, NORMAL, lambda x: x.double()), ["gives float64; float32 is wanted"]),
    "uint8": (compose(*CUT, v2.PILToTensor()), ["gives uint8; float32 is wanted", TO_255]),
    "not a picture's transform": (
        NORMAL,
        ["fails on an RGB picture of 423 × 282 pixels (TypeError: Normalize() does not support PIL images.)"],
    ),
    "size": (
        compose(v2.Resize(256), v2.CenterCrop(192), *TO_FLOAT, NORMAL),
        ["gives pictures of 192 × 192 pixels; 224 × 224 are wanted"],
    ),
    "no crop": (
        compose(v2.Resize(256), *TO_FLOAT, NORMAL),
        [NOT_ONE_SIZE.format("256 × 384, 384 × 256")],
    ),
    "0 to 255": (compose(*CUT, v2.PILToTensor(), v2.ToDtype(torch.float32)), [TO_255]),
    "0 to 1": (
        compose(*CUT, *TO_FLOAT),
        ["leaves values from 0 to 1; they have to be normalised with " + GOAL],
    ),
    "normalised without dividing": (
        compose(*CUT, v2.PILToTensor(), v2.ToDtype(torch.float32), NORMAL),
        ["normalises values from 0 to 255; they have to be divided by 255 before that"],
    ),
    "divided twice": (
        compose(*CUT, *TO_FLOAT, lambda x: x / 255, NORMAL),
        ["divides by 255 twice before it normalises"],
    ),
    "normalised twice": (compose(*CUT, *TO_FLOAT, NORMAL, NORMAL), ["normalises twice"]),
    "other mean and sd": (
        compose(*CUT, *TO_FLOAT, v2.Normalize([0.5, 0.5, 0.5], [0.5, 0.25, 0.5])),
        ["normalises with mean 0.5, 0.5, 0.5 and standard deviation 0.5, 0.25, 0.5; " + GOAL + " are wanted"],
    ),
    "mean a little off": (
        compose(*CUT, *TO_FLOAT, v2.Normalize([0.48, 0.456, 0.406], STD)),
        ["normalises with mean 0.48, 0.456, 0.406 and standard deviation 0.229, 0.224, 0.225; " + GOAL + " are wanted"],
    ),
    "mean and sd in BGR": (
        compose(*CUT, *TO_FLOAT, v2.Normalize(MEAN[::-1], STD[::-1])),
        ["normalises with mean and standard deviation in the order blue, green, red; " + GOAL + " are wanted"],
    ),
    "own mean": (
        compose(*CUT, *TO_FLOAT, own_mean),
        ["makes the same of black and of white, as if by each picture's own mean; " + GOAL + " are wanted"],
    ),
    "own spread": (
        compose(*CUT, *TO_FLOAT, lambda x: x / x.std()),
        ["gives NaN or infinity, as dividing by the spread of a picture of one colour does"],
    ),
    "negative": (
        compose(*CUT, ImageOps.invert, *TO_FLOAT, NORMAL),
        ["makes negatives: white comes out darker than black; " + GOAL + " are wanted"],
    ),
    "BGR": (compose(*CUT, *TO_FLOAT, lambda x: x.flip(0), NORMAL), [BLUE_FIRST]),
    "BGR and bicubic": (
        compose(v2.Resize(256, InterpolationMode.BICUBIC), CUT[1], *TO_FLOAT, lambda x: x.flip(0), NORMAL),
        [BLUE_FIRST, "resizes with bicubic interpolation; bilinear is wanted"],
    ),
    "grey": (
        compose(*CUT, v2.Grayscale(3), *TO_FLOAT, NORMAL),
        ["takes the colour out: the three channels are equal"],
    ),
    "other order": (
        compose(*CUT, *TO_FLOAT, lambda x: x[[1, 2, 0]], NORMAL),
        ["changes colours: pure red comes out as 0.00, 0.00, 1.00 of red, green and blue"],
    ),
    "gamma": (
        compose(*CUT, *TO_FLOAT, lambda x: x**0.5, NORMAL),
        ["changes the brightness: mid-grey comes out at 0.71 of the way from black to white, not at 0.50"],
    ),
    "squashed": (
        compose(v2.Resize((224, 224)), *TO_FLOAT, NORMAL),
        ["changes the aspect ratio: it makes 224 × 224 pixels of 423 × 282; resize the shorter side to 256, then crop"],
    ),
    "resize size": (
        compose(v2.Resize(232), CUT[1], *TO_FLOAT, NORMAL),
        ["resizes the shorter side to 232 pixels before it crops; 256 are wanted"],
    ),
    "corner": (
        compose(CUT[0], lambda picture: picture.crop((0, 0, 224, 224)), *TO_FLOAT, NORMAL),
        ["does not cut out the middle of the picture"],
    ),
    "mirrored": (compose(*CUT, ImageOps.mirror, *TO_FLOAT, NORMAL), ["mirrors pictures"]),
    "upside down": (compose(*CUT, ImageOps.flip, *TO_FLOAT, NORMAL), ["turns pictures upside down"]),
    "on its side": (
        compose(*CUT, lambda picture: picture.rotate(90), *TO_FLOAT, NORMAL),
        ["turns pictures on their side, or shows nothing of where things are"],
    ),
    "bicubic": (
        compose(v2.Resize(256, InterpolationMode.BICUBIC), CUT[1], *TO_FLOAT, NORMAL),
        ["resizes with bicubic interpolation; bilinear is wanted"],
    ),
    "nearest": (
        compose(v2.Resize(256, InterpolationMode.NEAREST), CUT[1], *TO_FLOAT, NORMAL),
        ["resizes with nearest interpolation; bilinear is wanted"],
    ),
    "no antialiasing": (
        compose(*TO_FLOAT, v2.Resize(256, antialias=False), CUT[1], NORMAL),
        ["resizes without antialiasing (bilinear); bilinear with antialiasing is wanted"],
    ),
    "sharpened": (
        compose(*CUT, v2.RandomAdjustSharpness(3, p=1), *TO_FLOAT, NORMAL),
        [DRAWS],  # it draws whether to do it, although it always does
    ),
    "random": (train_transform(R18, "light"), [DRAWS]),
    "seldom random": (compose(*CUT, *TO_FLOAT, NORMAL, v2.RandomErasing(p=1e-6)), [DRAWS]),
    "size and resize size": (
        ResNet18_Mini_Weights.TINY_IMAGENET.transforms(),
        [
            "gives pictures of 128 × 128 pixels; 224 × 224 are wanted",
            "resizes the shorter side to 128 pixels before it crops; 256 are wanted",
        ],
    ),
}


@pytest.mark.parametrize("kind", MISMATCHES)
def test_every_mismatch_is_named(kind):
    transform, expected = MISMATCHES[kind]
    assert check_transform(transform, R18) == expected


def test_a_change_without_a_name_is_found_too():
    blurred = compose(*CUT, lambda picture: picture.filter(ImageFilter.BoxBlur(1)), *TO_FLOAT, NORMAL)
    (text,) = check_transform(blurred, R18)
    assert re.fullmatch(
        "changes pictures in a way that this check has no name for: in a test picture, brightness differs from what "
        r"the weights' own transform gives by \d+ % of the range on average",
        text,
    )


class OwnGenerator:
    """Random without any global generator."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        return by_hand(picture).flip(-1) if self.generator.random() < 0.5 else by_hand(picture)


def test_a_private_generator_is_noticed_too():
    assert check_transform(OwnGenerator(), R18) == [DRAWS]
    assert check_transform(OwnGenerator(), R18, training=True) == []


def augmented(*middle: object, end: tuple[object, ...] = (*TO_FLOAT, NORMAL)) -> v2.Compose:
    return compose(v2.RandomResizedCrop(224), v2.ColorJitter(0.3, 0.3, 0.3, 0.05), *middle, *end)


TRAINING = {
    "fits": (augmented(), []),
    "policy": (augmented(v2.TrivialAugmentWide()), []),
    "any hue": (augmented(v2.ColorJitter(0.5, 0.5, 0.5, 0.5)), []),
    "grey every second time": (augmented(v2.RandomGrayscale(0.5)), []),
    "turned": (augmented(v2.RandomRotation(180)), []),
    "0 to 1": (augmented(end=TO_FLOAT), ["leaves values from 0 to 1; they have to be normalised with " + GOAL]),
    "0 to 255": (augmented(end=(v2.PILToTensor(), v2.ToDtype(torch.float32))), [TO_255]),
    "sd": (
        augmented(end=(*TO_FLOAT, v2.Normalize(MEAN, [0.225, 0.224, 0.225]))),
        [
            "normalises with mean 0.485, 0.456, 0.406 and standard deviation 0.225, 0.224, 0.225; "
            + GOAL
            + " are wanted"
        ],
    ),
    "BGR": (augmented(end=(*TO_FLOAT, lambda x: x.flip(0), NORMAL)), [BLUE_FIRST]),
    "grey": (augmented(v2.Grayscale(3)), ["takes the colour out: the three channels are equal"]),
    "size": (
        compose(v2.RandomResizedCrop(160), *TO_FLOAT, NORMAL),
        ["gives pictures of 160 × 160 pixels; 224 × 224 are wanted"],
    ),
    "no crop": (
        compose(v2.RandomHorizontalFlip(), v2.Resize(256), *TO_FLOAT, NORMAL),
        [NOT_ONE_SIZE.format("256 × 384, 384 × 256")],
    ),
}


@pytest.mark.parametrize("kind", TRAINING)
def test_a_random_transform_is_checked_for_size_scale_and_channels(kind):
    transform, expected = TRAINING[kind]
    assert check_transform(transform, R18, training=True) == expected


@settings(max_examples=25, deadline=None)
@given(
    mean=st.lists(st.floats(0.1, 0.9), min_size=3, max_size=3),
    std=st.lists(st.floats(0.1, 1), min_size=3, max_size=3),
    crop=st.integers(32, 72),
    more=st.integers(0, 24),
    mode=st.sampled_from([InterpolationMode.BILINEAR, InterpolationMode.BICUBIC, InterpolationMode.LANCZOS]),
    change=st.sampled_from(["nothing", "mean", "std", "size", "resize", "mode"]),
)
def test_whatever_the_weights_want_a_single_change_is_a_single_mismatch(mean, std, crop, more, mode, change):
    def preset(**other):
        made = R18.transforms()
        wanted = {"mean": mean, "std": std, "crop_size": [crop], "resize_size": [crop + more], "interpolation": mode}
        for name, value in (wanted | other).items():
            setattr(made, name, value)
        return made

    others = {
        "nothing": ({}, None),
        "mean": ({"mean": [mean[0] + 0.02, *mean[1:]]}, "normalises with"),
        "std": ({"std": [*std[:2], std[2] * 1.3]}, "normalises with"),
        "size": ({"crop_size": [crop - 5]}, "gives pictures of"),
        "resize": ({"resize_size": [crop + more + 6]}, "resizes the shorter side"),
        "mode": ({"interpolation": InterpolationMode.BOX}, "resizes with box interpolation"),
    }
    other, beginning = others[change]
    found = check_transform(preset(**other), preset())
    assert [text[: len(beginning or "")] for text in found] == ([] if beginning is None else [beginning])


def test_checking_leaves_the_generators_alone():
    with generators_untouched():
        check_transform(train_transform(R18, "strong"), R18, training=True)
        check_transform(lambda picture: torch.rand(3, 224, 224) * random.random() * np.random.rand(), R18)


def test_a_transform_has_to_be_callable():
    with pytest.raises(CourseError, match="None is no transform: give something that takes a PIL picture"):
        check_transform(None, R18)
    with pytest.raises(CourseError, match="torchvision weights entry"):
        check_transform(by_hand, "resnet18")
