"""From a picture file to the tensor that a network wants.

A pre-trained network expects its pictures prepared as they were when it was trained: the same size, the same
interpolation, the same mean and standard deviation. torchvision keeps these numbers in the weights entry, so every
function here reads them from there. Typing ``224`` or ``0.485`` into a notebook works until the day the weights
change: ResNet-50's first weights resize to 256 pixels, its second to 232, and EfficientNet interpolates differently.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import v2

from course_utils.errors import CourseError

AUGMENTATIONS = ("none", "light", "strong")

# Pillow can read far more, some of it by starting another program (EPS). A list of ordinary photo formats is safer.
PICTURE_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
MAX_PIXELS = 80_000_000
SMALLEST_SIDE = 640

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
            v2.RandomRotation(15, interpolation=v2.InterpolationMode.BILINEAR, fill=corners),
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
