"""From files of every kind to RGB, and from RGB to what the weights ask for."""

from __future__ import annotations

import io
import pickle
import random
import re
import struct
import zlib
from pathlib import Path

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

from course_utils import transforms as course_transforms
from course_utils.common.errors import CourseError
from course_utils.mini.networks import BUILDERS, ResNet18_Mini_Weights
from course_utils.transforms import (
    AUGMENTATIONS,
    check_transform,
    decode_picture,
    denormalise,
    eval_transform,
    image_size,
    load_picture,
    require_matching_transform,
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


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


# --- reading files


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "gif", "webp"])
def test_ordinary_formats_keep_size_and_mode(tmp_path, suffix):
    picture = load_picture(saved(photo(), tmp_path / f"a.{suffix}"))
    assert (picture.mode, picture.size) == ("RGB", (160, 120))


def test_grey_becomes_three_equal_channels(tmp_path):
    pixels = np.asarray(load_picture(saved(photo().convert("L"), tmp_path / "a.png")))
    assert pixels.shape == (120, 160, 3)
    assert (pixels == pixels[..., :1]).all()


def test_one_bit_is_black_and_white(tmp_path):
    picture = load_picture(saved(photo().convert("1"), tmp_path / "a.png"))
    assert set(np.unique(np.asarray(picture))) == {0, 255}


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, name):
    values = np.linspace(0, 65535, 256 * 16).reshape(16, 256).astype(np.uint16)
    path = saved(Image.fromarray(values), tmp_path / name)
    found = np.asarray(load_picture(path))[..., 0]
    assert np.abs(found.astype(float) - values / 257).max() <= 0.5
    assert len(np.unique(found)) == 256


def test_big_endian_16_bit_grey(tmp_path):
    values = np.linspace(0, 65535, 64).reshape(8, 8).astype(">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 8 8 65535\n" + values.tobytes())
    found = np.asarray(load_picture(tmp_path / "a.pgm"))[..., 0]
    assert np.abs(found.astype(float) - values.astype(float) / 257).max() <= 1


def test_floating_point_grey_is_stretched_over_its_own_range(tmp_path):
    values = np.linspace(-2.0, 6.0, 64, dtype=np.float32).reshape(8, 8)
    found = np.asarray(load_picture(saved(Image.fromarray(values), tmp_path / "a.tiff")))
    assert (found.min(), found.max()) == (0, 255)


def test_a_constant_floating_point_picture_is_no_division_by_zero(tmp_path):
    path = saved(Image.fromarray(np.full((4, 4), 7.0, np.float32)), tmp_path / "a.tiff")
    assert load_picture(path).size == (4, 4)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(tmp_path, mode):
    picture = Image.new(mode, (20, 10), (0, 0, 0, 0) if mode == "RGBA" else (0, 0))
    picture.paste((0, 0, 0, 255) if mode == "RGBA" else (0, 255), (0, 0, 10, 10))
    found = load_picture(saved(picture, tmp_path / "a.png"))
    assert found.mode == "RGB"
    assert found.getpixel((2, 2)) == (0, 0, 0)
    assert found.getpixel((15, 2)) == (255, 255, 255)


def test_half_transparent_red_becomes_pink(tmp_path):
    found = load_picture(saved(Image.new("RGBA", (4, 4), (255, 0, 0, 128)), tmp_path / "a.png"))
    red, green, blue = found.getpixel((0, 0))
    assert red == 255
    assert green == blue == 127


def test_palette_with_and_without_transparency(tmp_path):
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([0, 0, 0, 10, 200, 30])
    assert load_picture(saved(picture, tmp_path / "opaque.png")).getpixel((0, 0)) == (10, 200, 30)
    transparent = saved(picture, tmp_path / "transparent.png", transparency=1)
    assert load_picture(transparent).getpixel((0, 0)) == (255, 255, 255)
    bytes_per_colour = saved(picture, tmp_path / "bytes.png", transparency=bytes([255, 0]))
    assert load_picture(bytes_per_colour).getpixel((0, 0)) == (255, 255, 255)


def test_cmyk_jpeg(tmp_path):
    path = saved(Image.new("RGB", (32, 32), (200, 40, 90)).convert("CMYK"), tmp_path / "a.jpg", quality=95)
    with Image.open(path) as stored:
        assert stored.mode == "CMYK"
    assert np.abs(np.array(load_picture(path).getpixel((16, 16))) - (200, 40, 90)).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = photo()
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[274] = orientation
    found = load_picture(saved(stored, tmp_path / "a.png", exif=exif))
    assert found.size == upright.size
    assert ImageOps.invert(found).tobytes() == ImageOps.invert(upright).tobytes()


def test_only_large_jpegs_are_decoded_smaller(tmp_path):
    small, large = saved(photo(900, 640), tmp_path / "s.jpg"), saved(photo(1600, 1300), tmp_path / "l.jpg")
    assert load_picture(small).size == (900, 640)
    assert load_picture(large).size == (800, 650)
    assert load_picture(large, smallest_side=None).size == (1600, 1300)


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_picture(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


def bad_bytes() -> dict[str, tuple[bytes, str]]:
    jpeg, png = io.BytesIO(), io.BytesIO()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(jpeg, "JPEG")
    noise.save(png, "PNG")
    # A PNG that says it has 100,000 × 100,000 pixels
    header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    huge = png.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header)) + png.getvalue()[33:]
    return {
        "empty": (b"", "empty file"),
        "text": (b"no picture at all", "not a picture"),
        "truncated jpeg": (jpeg.getvalue()[:-2000], "truncated or damaged"),
        "truncated png": (png.getvalue()[:-2000], "truncated or damaged"),
        "header only": (jpeg.getvalue()[:30], "truncated or damaged"),
        "heic": (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a picture"),
        "bomb": (huge, "too large"),
    }


@pytest.mark.parametrize("kind", bad_bytes())
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_files_say_why(tmp_path, kind):
    data, reason = bad_bytes()[kind]
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(CourseError, match=reason) as caught:
        load_picture(tmp_path / "a.jpg")
    assert "a.jpg" in str(caught.value)
    assert "open_dataset" in str(caught.value)


def test_a_cut_jpeg_is_noticed_at_reduced_size_too():
    data, _ = bad_bytes()["truncated jpeg"]
    with pytest.raises(CourseError, match="truncated"):
        decode_picture(io.BytesIO(data), smallest_side=1)


def test_pixel_limit(tmp_path, monkeypatch):
    path = saved(photo(), tmp_path / "a.png")
    monkeypatch.setattr(course_transforms, "MAX_PIXELS", 160 * 120 - 1)
    with pytest.raises(CourseError, match="160 × 120"):
        load_picture(path)


def test_a_file_that_is_gone(tmp_path):
    with pytest.raises(CourseError, match=r"gone\.png cannot be read: No such file"):
        load_picture(tmp_path / "gone.png")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 300))
def test_damaged_bytes_never_raise_anything_else(junk, cut):
    """Whatever follows a good beginning, the answer is a picture or the one error."""
    buffer = io.BytesIO()
    photo(32, 32).save(buffer, "PNG")
    try:
        assert decode_picture(io.BytesIO(buffer.getvalue()[:cut] + junk)).mode == "RGB"
    except CourseError as error:
        assert str(error)


# --- the weights' transforms


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


# --- does a transform fit the weights?

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
    require_matching_transform(transform, R18)


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


def test_a_mismatch_stops_with_everything_that_is_wrong():
    with pytest.raises(CourseError) as caught:
        require_matching_transform(compose(*CUT, *TO_FLOAT), R18)
    assert str(caught.value) == (
        "The transform does not fit the weights ResNet18_Weights.IMAGENET1K_V1: it leaves values from 0 to 1; they "
        f"have to be normalised with {GOAL}. Use eval_transform(weights), which reads all of it from them."
    )
    with pytest.raises(CourseError) as caught:
        require_matching_transform(compose(v2.RandomResizedCrop(128), *TO_FLOAT), R18.transforms(), training=True)
    assert str(caught.value) == (
        "The transform does not fit these weights: it (1) gives pictures of 128 × 128 pixels; 224 × 224 are wanted; "
        f"(2) leaves values from 0 to 1; they have to be normalised with {GOAL}. "
        "Use train_transform(weights, augment), which reads all of it from them."
    )


def test_checking_leaves_the_generators_alone():
    with generators_untouched():
        check_transform(train_transform(R18, "strong"), R18, training=True)
        check_transform(lambda picture: torch.rand(3, 224, 224) * random.random() * np.random.rand(), R18)


def test_a_transform_has_to_be_callable():
    with pytest.raises(CourseError, match="None is no transform: give something that takes a PIL picture"):
        check_transform(None, R18)
    with pytest.raises(CourseError, match="torchvision weights entry"):
        check_transform(by_hand, "resnet18")
