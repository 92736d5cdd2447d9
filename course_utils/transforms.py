"""From a picture file to the tensor that a network wants.

A pre-trained network expects its pictures prepared as they were when it was trained: the same size, the same
interpolation, the same mean and standard deviation. torchvision keeps these numbers in the weights entry, so every
function here reads them from there. Typing ``224`` or ``0.485`` into a notebook works until the day the weights
change: ResNet-50's first weights resize to 256 pixels, its second to 232, and EfficientNet interpolates differently.

A wrong preparation raises no error, it only costs accuracy. :func:`check_transform` finds it, whoever wrote the
transform, by looking at what comes out for a few made-up pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode

from course_utils.common.errors import CourseError
from course_utils.common.state import generator_marks, generators_put_back

AUGMENTATIONS = ("none", "light", "strong")

# Pillow can read far more, some of it by starting another program (EPS). A list of ordinary photo formats is safer.
PICTURE_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
MAX_PIXELS = 80_000_000
SMALLEST_SIDE = 640

# check_transform counts brightness from 0 (black) to 1 (white); one step of an 8-bit picture is 0.0039.
SAME_SCALE = 0.003
SAME_SCALE_AT_RANDOM = 0.006  # colour jitter may end one step beside white
SAME_PIXELS = 0.006  # mean over noise: two correct ways to resize differ by 0.0016, bicubic and Lanczos by 0.014
RANDOM_VIEWS = 12
BLUE_FIRST = "gives the channels in the order blue, green, red; red, green, blue is wanted"

Transform = Callable[[Image.Image], Tensor]


class PictureError(CourseError):
    """A file that cannot be read as a picture; the message is the reason alone, in plain words."""


def load_picture(path: str | Path, smallest_side: int | None = SMALLEST_SIDE) -> Image.Image:
    """Read any ordinary picture file as upright 8-bit RGB.

    Parameters
    ----------
    path
        JPEG, PNG, GIF (its first frame), BMP, TIFF, WebP, PPM, JPEG 2000 or AVIF.
    smallest_side
        A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as its shorter side keeps this many pixels.
        No network of the course sees more, and a 12-megapixel photo then takes a fraction of the time. None decodes
        every pixel.

    Returns
    -------
    PIL.Image.Image
        Mode ``"RGB"``, turned as its EXIF tag says. Transparent pixels are laid on white, 16-bit grey is scaled to
        8 bits, grey becomes three equal channels.

    Raises
    ------
    CourseError
        If the file is missing, empty, damaged, too large, or no picture. Nothing is put in its place.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return decode_picture(file, smallest_side)
    except (OSError, PictureError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CourseError(
            f"The picture {path} cannot be read: {reason}. Put a good copy back, or remove the file and call "
            "open_dataset again, which lists such files in its quarantine."
        ) from error


def decode_picture(file: IO[bytes], smallest_side: int | None = None) -> Image.Image:
    """Decode an open file as :func:`load_picture` does.

    Raises
    ------
    PictureError
        With the reason why these bytes are no usable picture.
    """
    try:
        with Image.open(file, formats=_formats()) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise PictureError(_too_large(f"{width} × {height} pixels"))
            if smallest_side is not None:
                image.draft(None, (smallest_side, smallest_side))
            return to_rgb(image)
    except PictureError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(_too_large("more pixels than a photo has")) from error
    except UnidentifiedImageError as error:
        raise PictureError(_why_unknown(file)) from error
    except Exception as error:
        # A decoder that meets damaged bytes raises whatever its parser stumbled over: OSError, SyntaxError,
        # ValueError, struct.error, zlib.error, ... All of them mean the same to the reader.
        raise PictureError(f"truncated or damaged ({error or type(error).__name__})") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn a picture of any mode into upright 8-bit RGB; transparency is laid on white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit_grey(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def image_size(weights: Any) -> int:
    """Side in pixels of the square picture that a network with these weights sees."""
    preset = _preset(weights)
    sides = set(preset.crop_size)
    if len(sides) != 1:
        raise CourseError(f"These weights want pictures of {preset.crop_size} pixels; the course needs a square.")
    return int(sides.pop())


def eval_transform(weights: Any) -> Transform:
    """The transform that belongs to the weights: resize, centre crop, scale to [0, 1], normalise.

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
    return _preset(weights)


def train_transform(weights: Any, augment: str = "light") -> Transform:
    """The transform for training: as the weights ask for, with random changes that keep the label true.

    Parameters
    ----------
    weights
        As for :func:`eval_transform`; size, interpolation, mean and standard deviation come from it.
    augment
        ``"none"``: exactly :func:`eval_transform`. ``"light"``: a random crop of 70 to 100 % of the area, and a
        mirror image every second time. ``"strong"``: crops from 35 %, mirror image, up to 15° of rotation, changed
        colours, and a random rectangle erased every fourth time.

    Returns
    -------
    Callable
        PIL RGB → float32 tensor ``(3, H, W)``. All randomness comes from torch's global generator, so
        ``torch.manual_seed`` repeats it.

    Raises
    ------
    CourseError
        If ``augment`` is unknown.
    """
    if augment not in AUGMENTATIONS:
        raise CourseError(f"augment={augment!r} is unknown: choose one of {', '.join(AUGMENTATIONS)}.")
    if augment == "none":
        return eval_transform(weights)
    preset, size = _preset(weights), image_size(weights)
    area = (0.7, 1.0) if augment == "light" else (0.35, 1.0)
    crop = v2.RandomResizedCrop(size, scale=area, interpolation=preset.interpolation, antialias=preset.antialias)
    to_tensor = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(preset.mean, preset.std)]
    if augment == "light":
        return v2.Compose([crop, v2.RandomHorizontalFlip(), *to_tensor])
    # The corners that a rotation uncovers get the mean colour, which normalising turns into zeros.
    corners = [round(255 * value) for value in preset.mean]
    return v2.Compose(
        [
            crop,
            v2.RandomHorizontalFlip(),
            v2.RandomRotation(15, interpolation=InterpolationMode.BILINEAR, fill=corners),
            v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05),
            *to_tensor,
            v2.RandomErasing(p=0.25, scale=(0.02, 0.2)),
        ]
    )


def denormalise(batch: Tensor, weights: Any) -> Tensor:
    """Undo the normalisation, to look at what the network was given.

    Parameters
    ----------
    batch
        ``(N, 3, H, W)`` or ``(3, H, W)``, as the transforms of these weights make it.
    weights
        As for :func:`eval_transform`.

    Returns
    -------
    torch.Tensor
        Same shape, in [0, 1].
    """
    if batch.ndim not in (3, 4) or batch.shape[-3] != 3:
        raise CourseError(f"denormalise wants (N, 3, H, W) or (3, H, W), it was given {tuple(batch.shape)}.")
    preset = _preset(weights)
    mean = torch.tensor(preset.mean, dtype=batch.dtype, device=batch.device).reshape(3, 1, 1)
    std = torch.tensor(preset.std, dtype=batch.dtype, device=batch.device).reshape(3, 1, 1)
    return (batch * std + mean).clamp(0, 1)


# --- does a transform fit the weights? ---------------------------------------------------------------------------


def check_transform(transform: Transform, weights: Any, training: bool = False) -> list[str]:
    """Name everything in which a transform differs from what the weights of a model were trained with.

    The transform is judged by what it does, not by what it is made of: it is given flat colours, gradients and
    noise, and what comes out is compared with what the weights ask for. A hand-written function is therefore checked
    like a ``v2.Compose``.

    Parameters
    ----------
    transform
        Any callable that takes a PIL RGB picture.
    weights
        As for :func:`eval_transform`.
    training
        True for a transform that is meant to be random, as :func:`train_transform` makes it. Where it cuts and how
        it resizes is then its own business; what it has to have right is the tensor's type and size, the
        normalisation, and the order of the channels.

    Returns
    -------
    list of str
        One entry per mismatch, each the rest of a sentence that begins with "The transform"; empty when it fits.
        The random generators of Python, NumPy and torch are left as they were.

    Raises
    ------
    CourseError
        If `transform` cannot be called, or the weights do not say how to prepare a picture.

    Examples
    --------
    >>> from torchvision.models import ResNet50_Weights
    >>> first, second = ResNet50_Weights.IMAGENET1K_V1, ResNet50_Weights.IMAGENET1K_V2
    >>> check_transform(eval_transform(first), second)
    ['resizes the shorter side to 256 pixels before it crops; 232 are wanted']
    """
    preset, side = _preset(weights), image_size(weights)
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


def require_matching_transform(transform: Transform, weights: Any, training: bool = False) -> None:
    """Stop here when a transform does not fit the weights; arguments as for :func:`check_transform`.

    Raises
    ------
    CourseError
        Naming every mismatch, and what to use instead.
    """
    found = check_transform(transform, weights, training)
    if not found:
        return
    listed = found[0] if len(found) == 1 else "; ".join(f"({i}) {text}" for i, text in enumerate(found, 1))
    instead = "train_transform(weights, augment)" if training else "eval_transform(weights)"
    name = f"the weights {weights}" if hasattr(weights, "transforms") else "these weights"
    raise CourseError(
        f"The transform does not fit {name}: it {listed}. Use {instead}, which reads all of it from them."
    )


class _Unusable(Exception):
    """What comes out of a transform is such that nothing more can be said about it."""


def _mismatches(transform: Transform, preset: Any, side: int, training: bool) -> list[str]:
    size = _probe_size(preset, 1.1)
    found = _form_mismatches(_call(transform, _noise(*size)))
    is_random = _draws(transform, _noise(*size))
    if is_random and not training:
        found.append("is random: the same picture comes out differently each time; only training may draw")
    view = _Viewer(transform, is_random, size)
    sizes = _size_mismatches(view, side)
    scale = _Scale.of(view)
    found += sizes + scale.mismatches(preset, SAME_SCALE_AT_RANDOM if is_random else SAME_SCALE)
    if not scale.usable:
        return found
    colours = _colour_mismatches(view, scale)
    found += colours
    if training or is_random or colours not in ([], [BLUE_FIRST]):
        return found
    if colours:  # with red and blue put back, the rest can still be seen
        view, scale = view.reversed(), scale.reversed()
    found += _brightness_mismatches(view, scale) or _geometry_mismatches(view, scale, preset, bool(sizes))
    return found


@dataclass(frozen=True)
class _Viewer:
    """Shows what a transform makes of a picture.

    Parameters
    ----------
    transform
        The one to look at.
    is_random
        Whether one look is not enough.
    size
        Width and height of the pictures of one colour.
    """

    transform: Transform
    is_random: bool
    size: tuple[int, int]

    def __call__(self, picture: Image.Image, times: int = 1) -> list[Tensor]:
        """Each view as ``(3, H, W)`` in the transform's own units; one if nothing is random."""
        times = times if self.is_random else 1
        return [_as_channels(_call(self.transform, picture)) for _ in range(times)]

    def flat(self, *rgb: int, times: int = 1) -> Tensor:
        """The typical value of each channel for a picture of one colour: ``(views, 3)``."""
        # The median does not see an erased rectangle, or the corners that a rotation uncovers.
        views = self(Image.new("RGB", self.size, rgb), times)
        return torch.stack([view[:, ::3, ::3].flatten(1).median(1).values for view in views])

    def reversed(self) -> _Viewer:
        """The same with the last channel first."""
        return replace(self, transform=lambda picture: _as_channels(_call(self.transform, picture)).flip(0))


@dataclass(frozen=True)
class _Scale:
    """What a transform makes of black and of white, each ``(3,)``: everything else lies in between, on a line."""

    black: Tensor
    white: Tensor

    @classmethod
    def of(cls, view: _Viewer) -> _Scale:
        # A random change of brightness or contrast moves black up and white down: the extremes are undisturbed.
        black, white = (view.flat(*[value] * 3, times=RANDOM_VIEWS) for value in (0, 255))
        return cls(black.min(0).values, white.max(0).values)

    @classmethod
    def wanted(cls, mean: Tensor, std: Tensor) -> _Scale:
        return cls(-mean / std, (1 - mean) / std)

    @property
    def usable(self) -> bool:
        """Whether white is brighter than black, in every channel."""
        return bool((self.white - self.black > 1e-6).all())

    def reversed(self) -> _Scale:
        """The same with the last channel first."""
        return _Scale(self.black.flip(0), self.white.flip(0))

    def brightness(self, values: Tensor) -> Tensor:
        """From the transform's units, channels last, to 0 (black) … 1 (white)."""
        return (values - self.black) / (self.white - self.black)

    def equals(self, other: _Scale, tolerance: float) -> bool:
        """Whether black and white are where `other` has them, to this part of the distance between them."""
        off = torch.stack([self.black - other.black, self.white - other.white]).abs()
        return bool((off <= tolerance * (other.white - other.black)).all())

    def mismatches(self, preset: Any, tolerance: float) -> list[str]:
        """What is wrong with the scale, if anything."""
        mean, std = _mean_and_std(preset)
        wanted = _Scale.wanted(mean, std)
        if self.equals(wanted, tolerance):
            return []
        goal = f"mean {_numbers(mean)} and standard deviation {_numbers(std)}"
        if (self.white < self.black).all():
            return [f"makes negatives: white comes out darker than black; {goal} are wanted"]
        if not self.usable:
            return [f"makes the same of black and of white, as if by each picture's own mean; {goal} are wanted"]
        for text, known in _known_scales(mean, std, wanted):
            if self.equals(known, tolerance):
                return [text.format(goal=goal)]
        own_std = 1 / (self.white - self.black)
        own = f"mean {_numbers(-self.black * own_std)} and standard deviation {_numbers(own_std)}"
        return [f"normalises with {own}; {goal} are wanted"]


def _known_scales(mean: Tensor, std: Tensor, wanted: _Scale) -> list[tuple[str, _Scale]]:
    """The usual ways to get the scale wrong, and what black and white are then."""
    zero, one = torch.zeros_like(mean), torch.ones_like(mean)
    return [
        ("leaves values from 0 to 255; they have to be divided by 255, then normalised with {goal}",
         _Scale(zero, 255 * one)),
        ("leaves values from 0 to 1; they have to be normalised with {goal}",
         _Scale(zero, one)),
        ("normalises values from 0 to 255; they have to be divided by 255 before that",
         _Scale(wanted.black, (255 - mean) / std)),
        ("divides by 255 twice before it normalises",
         _Scale(wanted.black, (1 / 255 - mean) / std)),
        ("normalises twice",
         _Scale((wanted.black - mean) / std, (wanted.white - mean) / std)),
        ("normalises with mean and standard deviation in the order blue, green, red; {goal} are wanted",
         wanted.reversed()),
    ]  # fmt: skip


def _form_mismatches(output: Any) -> list[str]:
    """What is wrong with type, dtype and layout. Raises _Unusable when the rest cannot be looked at."""
    found = []
    if not isinstance(output, Tensor):
        found.append(f"gives {type(output).__name__}; a tensor is wanted")
    if isinstance(output, Image.Image):
        return found
    if not isinstance(output, Tensor | np.ndarray) or (
        isinstance(output, np.ndarray) and output.dtype.kind not in "biuf"
    ):
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
    if dtype != "float32":
        found.append(f"gives {dtype}; float32 is wanted")
    return found


def _as_channels(output: Any) -> Tensor:
    """``(3, H, W)``, float64, from whatever _form_mismatches lets through."""
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
    """Pure red has to come out in the first channel alone, green in the second, blue in the third."""
    pure = [[255 * (i == j) for j in range(3)] for i in range(3)]
    seen = torch.stack([scale.brightness(view.flat(*rgb, times=RANDOM_VIEWS // 2)) for rgb in pure])
    typical = seen.median(1).values  # colour × channel
    if (typical[[0, 2], [2, 0]] > 0.6).all() and (typical[[0, 2], [0, 2]] < 0.4).all():
        return [BLUE_FIRST]
    if (seen.max(-1).values - seen.min(-1).values < 0.1).all():
        return ["takes the colour out: the three channels are equal"]
    if view.is_random or (typical - torch.eye(3)).abs().max() < 0.02:
        return []
    shares = ", ".join(f"{share:.2f}" for share in typical[0].tolist())
    return [f"changes colours: pure red comes out as {shares} of red, green and blue"]


def _brightness_mismatches(view: _Viewer, scale: _Scale) -> list[str]:
    """Mid-grey has to come out in the middle, or the gradients below would be misread."""
    middle = scale.brightness(view.flat(128, 128, 128)).mean().item()
    if abs(middle - 128 / 255) < 0.01:
        return []
    return [f"changes the brightness: mid-grey comes out at {middle:.2f} of the way from black to white, not at 0.50"]


def _geometry_mismatches(view: _Viewer, scale: _Scale, preset: Any, wrong_size: bool) -> list[str]:
    found = _place_mismatches(view, scale, preset)
    # Pixels can be compared only where both transforms show the same places.
    return found if found or wrong_size else _pixel_mismatches(view, scale, preset)


def _place_mismatches(view: _Viewer, scale: _Scale, preset: Any) -> list[str]:
    """What a transform cuts out, and at which size: read off two gradients, in which each brightness is a place."""
    width, height = view.size
    across, down = (_picture_of_brightness(view, scale, ramp).mean(-1) for ramp in _ramps(width, height))
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
    """From brightness along a line of output pixels: input pixels per output pixel, and how far off the middle is."""
    n = len(values)
    inner = slice(n // 5, n - n // 5)  # near the border, interpolation bends the gradient
    at = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2)[inner]
    place = ((values - 0.5) * (length - 1))[inner]
    step = ((at - at.mean()) * (place - place.mean())).sum() / ((at - at.mean()) ** 2).sum()
    return step.item(), (place.mean() - step * at.mean()).item()


def _pixel_mismatches(view: _Viewer, scale: _Scale, preset: Any) -> list[str]:
    """Compare with the weights' own transform; in noise, every interpolation leaves traces of its own."""
    noise = _noise(*_probe_size(preset, 1.5))
    wanted = _Viewer(preset, False, view.size)
    wanted_scale = _Scale.wanted(*_mean_and_std(preset))
    own = _picture_of_brightness(view, scale, noise)
    if _distance(own, _picture_of_brightness(wanted, wanted_scale, noise)) > SAME_PIXELS:
        for text, other in _other_ways_to_resize(preset, noise):
            if _distance(own, other) <= SAME_PIXELS:
                return [text]
    pictures = (noise, noise.transpose(Image.Transpose.ROTATE_90), noise.resize((60, 60)), *_ramps(90, 60))
    far = max(
        _distance(_picture_of_brightness(view, scale, each), _picture_of_brightness(wanted, wanted_scale, each))
        for each in pictures
    )
    if far <= SAME_PIXELS:
        return []
    return [
        "changes pictures in a way that this check has no name for: in a test picture, brightness differs from what "
        f"the weights' own transform gives by {100 * far:.0f} % of the range on average"
    ]


def _other_ways_to_resize(preset: Any, picture: Image.Image) -> Iterator[tuple[str, Tensor]]:
    """Brightness ``(H, W, 3)`` with other interpolations, and without antialiasing."""
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


def _picture_of_brightness(view: _Viewer, scale: _Scale, picture: Image.Image) -> Tensor:
    """``(H, W, 3)`` from 0 (black) to 1 (white), whatever the transform's own units are."""
    return scale.brightness(view(picture)[0].permute(1, 2, 0))


def _distance(first: Tensor, second: Tensor) -> float:
    return (first - second).abs().mean().item() if first.shape == second.shape else 1.0


def _call(transform: Transform, picture: Image.Image) -> Any:
    try:
        return transform(picture)
    except Exception as error:  # whatever somebody's code stumbles over, it means the same here
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise _Unusable(f"fails on an RGB picture of {picture.width} × {picture.height} pixels ({what})") from error


def _draws(transform: Transform, picture: Image.Image) -> bool:
    """Whether anything is left to chance: a global generator moves, or two views differ."""
    before = generator_marks()
    first = _as_channels(_call(transform, picture))
    if generator_marks() != before:
        return True
    others = (_as_channels(_call(transform, picture)) for _ in range(RANDOM_VIEWS // 2))
    return any(other.shape != first.shape or not torch.equal(other, first) for other in others)


def _probe_size(preset: Any, times: float) -> tuple[int, int]:
    """Width and height, 3 : 2, of a picture this many times as large as the weights want it before they crop."""
    half = round(times * min(preset.resize_size) / 2)
    return 3 * half, 2 * half


def _noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _ramps(width: int, height: int) -> list[Image.Image]:
    """Black to white from left to right, and from top to bottom."""
    # Without some noise, rounding to whole steps of brightness makes small stairs of the slope, in one place or other.
    noise = np.random.default_rng(0).uniform(-8, 8, (height, width, 3))
    ramps = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return [Image.fromarray((ramp[..., None] + noise).round().clip(0, 255).astype(np.uint8)) for ramp in ramps]


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{value:.3g}" for value in values.tolist())


def _mean_and_std(preset: Any) -> tuple[Tensor, Tensor]:
    return torch.tensor(preset.mean, dtype=torch.float64), torch.tensor(preset.std, dtype=torch.float64)


# --- the details of reading --------------------------------------------------------------------------------------


def _preset(weights: Any) -> Any:
    """The weights' own transform; it knows crop_size, resize_size, interpolation, mean and std."""
    preset = weights.transforms() if hasattr(weights, "transforms") else weights
    if not all(hasattr(preset, name) for name in ("crop_size", "interpolation", "mean", "std")):
        raise CourseError(
            f"{weights!r} does not say how pictures are prepared. Give a torchvision weights entry, such as "
            "torchvision.models.ResNet18_Weights.DEFAULT, or what its transforms() returns."
        )
    return preset


def _to_8_bit_grey(image: Image.Image) -> Image.Image:
    """Scale 16-bit (or wider, or floating-point) grey to 8 bits; Pillow's own convert("L") would clip at 255."""
    values = np.asarray(image).astype(np.float64)
    low, high = values.min(), values.max()
    if image.mode != "F" and low >= 0 and high <= 65535:
        low, high = 0, 65535  # the range that 16 bits have; anything else says nothing about its range
    scaled = (values - low) / max(high - low, 1e-12) * 255
    return Image.fromarray(scaled.round().astype(np.uint8))


def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in PICTURE_FORMATS if name in Image.OPEN)  # AVIF depends on how Pillow was built


def _too_large(what: str) -> str:
    return f"too large: {what}, at most {MAX_PIXELS // 1_000_000} million are read; save it smaller"


def _why_unknown(file: IO[bytes]) -> str:
    file.seek(0)
    start = file.read(12)
    if not start:
        return "empty file (0 bytes)"
    if start[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc"):
        return "HEIC, the iPhone's format, which is not read here; export it as JPEG"
    return "not a picture in a format that is read here (JPEG, PNG, GIF, BMP, TIFF, WebP)"
