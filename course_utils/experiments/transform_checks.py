"""A check that a transform prepares pictures as the weights ask for.

A wrong preparation raises no error, it only costs accuracy. :func:`check_transform` finds it, whoever wrote the
transform, by looking at what comes out for a few made-up pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode

from course_utils.common.errors import CourseError
from course_utils.common.state import generator_marks, generators_put_back
from course_utils.transforms import Transform, image_size, preset_of

# Brightness is counted from 0 (black) to 1 (white); one step of an 8-bit picture is 0.0039.
SAME_SCALE = 0.003
SAME_SCALE_AT_RANDOM = 0.006  # colour jitter may end one step beside white
SAME_PIXELS = 0.006  # mean over noise: two correct ways to resize differ by 0.0016, bicubic and Lanczos by 0.014
RANDOM_VIEWS = 12
Brightness = Callable[[Image.Image], Tensor]  # a picture after a transform, (H, W, 3), from 0 (black) to 1 (white)
BLUE_FIRST = "gives the channels in the order blue, green, red; red, green, blue is wanted"


def check_transform(transform: Transform, weights: Any, training: bool = False) -> list[str]:
    """Return everything in which a transform differs from the one that the weights were trained with.

    The transform is judged by what it does to pictures: a hand-written function is checked like a ``v2.Compose``.

    Parameters
    ----------
    transform, weights
        Any callable that takes a PIL RGB picture, and the same as in :func:`~course_utils.transforms.eval_transform`.
    training
        True for a transform that is meant to be random. Then only the tensor's type and size, the normalisation and
        the order of the channels are checked, not where it cuts and how it resizes.

    Returns
    -------
    list of str
        One entry per mismatch, each the rest of a sentence that begins with "The transform"; empty when it fits.

    Raises
    ------
    CourseError
        If `transform` cannot be called, or the weights do not say how to prepare a picture.

    Examples
    --------
    >>> from torchvision.models import ResNet50_Weights
    >>> from course_utils.transforms import eval_transform
    >>> first, second = ResNet50_Weights.IMAGENET1K_V1, ResNet50_Weights.IMAGENET1K_V2
    >>> check_transform(eval_transform(first), second)
    ['resizes the shorter side to 256 pixels before it crops; 232 are wanted']
    """
    preset, side = preset_of(weights), image_size(weights)
    if not callable(transform):
        raise CourseError(
            f"{transform!r} is no transform: give something that takes a PIL picture and returns a tensor, such as "
            "eval_transform(weights)."
        )
    with generators_put_back(seed=0):
        try:
            return _mismatches(transform, preset, side, training)
        except _Unusable as error:
            return [str(error)]


class _Unusable(Exception):
    """The output of a transform allows no further measurement; the message is the mismatch."""


def _mismatches(transform: Transform, preset: Any, side: int, training: bool) -> list[str]:
    size = _probe_size(preset, 1.1)
    found = _form_mismatches(_call(transform, _noise(*size)))
    view = _Viewer(transform, _draws(transform, _noise(*size)), size)
    if view.is_random and not training:
        found.append("is random: the same picture comes out differently each time; only training may draw")
    sizes = _size_mismatches(view, side)
    # A random change of brightness or contrast moves black up and white down: the extremes are undisturbed.
    scale = _Scale(view.flat(0, 0, 0).min(0).values, view.flat(255, 255, 255).max(0).values)
    found += sizes + _scale_mismatches(scale, preset, SAME_SCALE_AT_RANDOM if view.is_random else SAME_SCALE)
    if not scale.usable:
        return found
    colours = _colour_mismatches(view, scale)
    found += colours
    if training or view.is_random or colours not in ([], [BLUE_FIRST]):
        return found

    def seen(picture: Image.Image) -> Tensor:
        bright = scale.brightness(view(picture)[0].permute(1, 2, 0))
        return bright.flip(-1) if colours else bright  # with red and blue put back, the rest can still be seen

    # Each needs what the one before it found right. Pixels can be compared only where the sizes are the same.
    return found + (
        _brightness_mismatches(seen, size)
        or _place_mismatches(seen, size, preset)
        or ([] if sizes else _pixel_mismatches(seen, preset))
    )


@dataclass(frozen=True)
class _Viewer:
    """Pictures as a transform gives them; `size` is (width, height) of the pictures of one colour that it is given."""

    transform: Transform
    is_random: bool
    size: tuple[int, int]

    def __call__(self, picture: Image.Image, times: int = 1) -> list[Tensor]:
        """Return the views as ``(3, H, W)`` in the transform's own units; one if nothing is random."""
        return [_as_channels(_call(self.transform, picture)) for _ in range(times if self.is_random else 1)]

    def flat(self, *rgb: int, times: int = RANDOM_VIEWS) -> Tensor:
        """Return the typical value of each channel for a picture of one colour: ``(views, 3)``."""
        # The median does not see an erased rectangle, or the corners that a rotation uncovers.
        views = self(Image.new("RGB", self.size, rgb), times)
        return torch.stack([view[:, ::3, ::3].flatten(1).median(1).values for view in views])


@dataclass(frozen=True)
class _Scale:
    """The values of black and white after a transform, each ``(3,)``; brightness lies on a line between them."""

    black: Tensor
    white: Tensor

    @property
    def usable(self) -> bool:
        """True if white is brighter than black in every channel."""
        return bool((self.white - self.black > 1e-6).all())

    def brightness(self, values: Tensor) -> Tensor:
        """Return values in the transform's units, channels last, as brightness from 0 (black) to 1 (white)."""
        return (values - self.black) / (self.white - self.black)

    def equals(self, other: _Scale, tolerance: float) -> bool:
        """True if black and white are those of `other`, up to this share of the distance between them."""
        off = torch.stack([self.black - other.black, self.white - other.white]).abs()
        return bool((off <= tolerance * (other.white - other.black)).all())


def _scale_mismatches(scale: _Scale, preset: Any, tolerance: float) -> list[str]:
    """Return what is wrong with the normalisation, in one sentence or none."""
    mean, std = _mean_and_std(preset)
    goal = f"mean {_numbers(mean)} and standard deviation {_numbers(std)}"
    black, white = -mean / std, (1 - mean) / std
    if scale.equals(_Scale(black, white), tolerance):
        return []
    if (scale.white < scale.black).all():
        return [f"makes negatives: white comes out darker than black; {goal} are wanted"]
    if not scale.usable:
        return [f"makes the same of black and of white, as if by each picture's own mean; {goal} are wanted"]
    zero, one, blue_first = torch.zeros_like(mean), torch.ones_like(mean), (black.flip(0), white.flip(0))
    usual = {
        f"leaves values from 0 to 255; they have to be divided by 255, then normalised with {goal}": (zero, 255 * one),
        f"leaves values from 0 to 1; they have to be normalised with {goal}": (zero, one),
        "normalises values from 0 to 255; they have to be divided by 255 before that": (black, (255 - mean) / std),
        "divides by 255 twice before it normalises": (black, (1 / 255 - mean) / std),
        "normalises twice": ((black - mean) / std, (white - mean) / std),
        f"normalises with mean and standard deviation in the order blue, green, red; {goal} are wanted": blue_first,
    }
    for text, known in usual.items():
        if scale.equals(_Scale(*known), tolerance):
            return [text]
    own_std = 1 / (scale.white - scale.black)
    own = f"mean {_numbers(-scale.black * own_std)} and standard deviation {_numbers(own_std)}"
    return [f"normalises with {own}; {goal} are wanted"]


def _form_mismatches(output: Any) -> list[str]:
    """Return what is wrong with type, dtype and layout; raise _Unusable if the rest cannot be measured."""
    found = [] if isinstance(output, Tensor) else [f"gives {type(output).__name__}; a tensor is wanted"]
    if isinstance(output, Image.Image):
        return found
    if not isinstance(output, Tensor) and (not isinstance(output, np.ndarray) or output.dtype.kind not in "biuf"):
        raise _Unusable(found[0])
    shape = tuple(output.shape)
    if len(shape) == 4 and shape[0] == 1:
        found.append(f"gives a batch of one, {shape}; (3, H, W) is wanted, making batches is the DataLoader's work")
        shape = shape[1:]
    if len(shape) == 3 and shape[0] != 3 and shape[2] == 3:
        found.append(f"gives {shape}, channels last; (3, H, W) is wanted")
        shape = (shape[2], *shape[:2])
    if len(shape) != 3 or shape[0] != 3:
        raise _Unusable(f"gives the shape {tuple(output.shape)}; (3, H, W) is wanted")
    dtype = str(output.dtype).removeprefix("torch.")
    return found if dtype == "float32" else [*found, f"gives {dtype}; float32 is wanted"]


def _as_channels(output: Any) -> Tensor:
    """Return ``(3, H, W)``, float64, from any output that _form_mismatches lets through."""
    if isinstance(output, Image.Image):
        output = output.convert("RGB")
    if not isinstance(output, Tensor):
        output = torch.from_numpy(np.array(output, dtype=np.float64))
    tensor = output.detach().cpu().double()
    tensor = tensor[0] if tensor.ndim == 4 else tensor
    if tensor.ndim == 3 and tensor.shape[0] != 3:
        tensor = tensor.permute(2, 0, 1)
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        raise _Unusable(f"gives the shape {tuple(output.shape)} for some pictures; (3, H, W) is wanted for all")
    if not tensor.isfinite().all():
        raise _Unusable("gives NaN or infinity, as dividing by the spread of a picture of one colour does")
    return tensor


def _size_mismatches(view: _Viewer, side: int) -> list[str]:
    width, height = view.size
    pictures = [Image.new("RGB", size) for size in (view.size, (height, width))]
    sizes = {tuple(each.shape[-2:]) for picture in pictures for each in view(picture, times=3)}
    if sizes == {(side, side)}:
        return []
    found = ", ".join(f"{high} × {wide}" for high, wide in sorted(sizes))
    if len(sizes) > 1:
        return [f"gives pictures of different sizes ({found}); a crop to {side} × {side} is wanted"]
    return [f"gives pictures of {found} pixels; {side} × {side} are wanted"]


def _colour_mismatches(view: _Viewer, scale: _Scale) -> list[str]:
    """Check that pure red comes out in the first channel alone, green in the second, blue in the third."""
    pure = [[255 * (i == j) for j in range(3)] for i in range(3)]
    seen = torch.stack([scale.brightness(view.flat(*rgb, times=RANDOM_VIEWS // 2)) for rgb in pure])
    typical = seen.median(1).values  # (colour, channel)
    if (typical[[0, 2], [2, 0]] > 0.6).all() and (typical[[0, 2], [0, 2]] < 0.4).all():
        return [BLUE_FIRST]
    if (seen.max(-1).values - seen.min(-1).values < 0.1).all():
        return ["takes the colour out: the three channels are equal"]
    if view.is_random or (typical - torch.eye(3)).abs().max() < 0.02:
        return []
    shares = ", ".join(f"{share:.2f}" for share in typical[0].tolist())
    return [f"changes colours: pure red comes out as {shares} of red, green and blue"]


def _brightness_mismatches(seen: Brightness, size: tuple[int, int]) -> list[str]:
    """Check that mid-grey comes out in the middle; otherwise gradients would be misread."""
    middle = seen(Image.new("RGB", size, (128, 128, 128))).median().item()
    if abs(middle - 128 / 255) < 0.01:
        return []
    return [f"changes the brightness: mid-grey comes out at {middle:.2f} of the way from black to white, not at 0.50"]


def _place_mismatches(seen: Brightness, size: tuple[int, int], preset: Any) -> list[str]:
    """Check what is cut out, and at which size, with two gradients, in which each brightness is a place."""
    width, height = size
    across, down = (seen(ramp).mean(-1) for ramp in _ramps(width, height))
    step_x, middle_x = _line(across.mean(0), width)
    step_y, middle_y = _line(down.mean(1), height)
    if min(abs(step_x), abs(step_y)) < 0.05:
        return ["turns pictures on their side, or shows nothing of where things are"]
    found = [text for step, text in ((step_x, "mirrors pictures"), (step_y, "turns pictures upside down")) if step < 0]
    step_x, step_y = abs(step_x), abs(step_y)
    resized = min(preset.resize_size)
    if abs(step_x / step_y - 1) > 0.03:
        own = f"{round(width / step_x)} × {round(height / step_y)} pixels of {width} × {height}"
        return [*found, f"changes the aspect ratio: it makes {own}; resize the shorter side to {resized}, then crop"]
    own_side = height / (step_x * step_y) ** 0.5
    if abs(own_side - resized) > max(1.0, 0.01 * resized):
        found.append(f"resizes the shorter side to {own_side:.0f} pixels before it crops; {resized} are wanted")
    if abs(middle_x) > 1.5 * step_x or abs(middle_y) > 1.5 * step_y:
        found.append("does not cut out the middle of the picture")
    return found


def _line(values: Tensor, length: int) -> tuple[float, float]:
    """Return input pixels per output pixel, and the shift of the middle, from brightness along a line of pixels."""
    n = len(values)
    inner = slice(n // 5, n - n // 5)  # near the border, interpolation bends the gradient
    at, place = np.arange(n) - (n - 1) / 2, (values.numpy() - 0.5) * (length - 1)
    step, middle = np.polyfit(at[inner], place[inner], deg=1)
    return step.item(), middle.item()


def _pixel_mismatches(seen: Brightness, preset: Any) -> list[str]:
    """Compare with the weights' own transform; noise shows which interpolation was used."""
    mean, std = _mean_and_std(preset)

    def wanted(picture: Image.Image) -> Tensor:
        return preset(picture).permute(1, 2, 0) * std + mean

    noise = _noise(*_probe_size(preset, 1.5))
    own = seen(noise)
    if _distance(own, wanted(noise)) > SAME_PIXELS:
        for text, other in _other_ways_to_resize(preset, noise):
            if _distance(own, other) <= SAME_PIXELS:
                return [text]
    pictures = (noise, noise.transpose(Image.Transpose.ROTATE_90), noise.resize((60, 60)), *_ramps(90, 60))
    far = max(_distance(seen(each), wanted(each)) for each in pictures)
    if far <= SAME_PIXELS:
        return []
    return [
        "changes pictures in a way that this check has no name for: in a test picture, brightness differs from what "
        f"the weights' own transform gives by {100 * far:.0f} % of the range on average"
    ]


def _other_ways_to_resize(preset: Any, picture: Image.Image) -> Iterator[tuple[str, Tensor]]:
    """Yield brightness ``(H, W, 3)`` with other interpolations, and without antialiasing."""
    wanted = preset.interpolation.value
    ways = [(f"resizes with {mode.value} interpolation; {wanted} is wanted", mode, True) for mode in InterpolationMode]
    ways += [
        (f"resizes without antialiasing ({mode.value}); {wanted} with antialiasing is wanted", mode, False)
        for mode in (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)
    ]
    for text, mode, antialias in ways:
        # A picture is always resized with antialiasing, a tensor when it is asked for.
        image = picture if antialias else v2.functional.pil_to_tensor(picture)
        image = v2.functional.resize(image, preset.resize_size, interpolation=mode, antialias=antialias)
        image = v2.functional.to_image(v2.functional.center_crop(image, preset.crop_size))
        yield text, image.double().permute(1, 2, 0) / 255


def _distance(first: Tensor, second: Tensor) -> float:
    return (first - second).abs().mean().item() if first.shape == second.shape else 1.0


def _call(transform: Transform, picture: Image.Image) -> Any:
    try:
        return transform(picture)
    except Exception as error:  # whatever somebody's code stumbles over, it means the same here
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise _Unusable(f"fails on an RGB picture of {picture.width} × {picture.height} pixels ({what})") from error


def _draws(transform: Transform, picture: Image.Image) -> bool:
    """True if a global generator moves, or two views differ."""
    before = generator_marks()
    first = _as_channels(_call(transform, picture))
    if generator_marks() != before:
        return True
    others = (_as_channels(_call(transform, picture)) for _ in range(RANDOM_VIEWS // 2))
    return any(other.shape != first.shape or not torch.equal(other, first) for other in others)


def _probe_size(preset: Any, times: float) -> tuple[int, int]:
    """Return width and height, 3 : 2, of a picture this many times as large as the one that the weights crop."""
    half = round(times * min(preset.resize_size) / 2)
    return 3 * half, 2 * half


def _noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _ramps(width: int, height: int) -> list[Image.Image]:
    """Return two gradients from black to white: from left to right, and from top to bottom."""
    # Without some noise, rounding to whole steps of brightness would make stairs of the slope.
    noise = np.random.default_rng(0).uniform(-8, 8, (height, width, 3))
    ramps = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return [Image.fromarray((ramp[..., None] + noise).round().clip(0, 255).astype(np.uint8)) for ramp in ramps]


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{value:.3g}" for value in values.tolist())


def _mean_and_std(preset: Any) -> tuple[Tensor, Tensor]:
    return torch.tensor(preset.mean, dtype=torch.float64), torch.tensor(preset.std, dtype=torch.float64)
