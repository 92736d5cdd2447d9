"""Reading a picture file of any ordinary format as upright 8-bit RGB."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from course_utils.common.errors import CourseError

# Pillow can read far more, some of it by starting another program (EPS). A list of ordinary photo formats is safer.
PICTURE_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
MAX_PIXELS = 80_000_000
# A network sees a square of the middle, after the shorter side was resized to some hundred pixels: of a strip it sees
# next to nothing, and 65,000 × 1 pixels (a file of 270 bytes) would become gigabytes.
MAX_ASPECT = 20
SMALLEST_SIDE = 640
BIT_DEPTHS = (8, 10, 12, 14, 16)  # of cameras, microscopes and scanners
# In a TIFF: the value of pixels that were not measured (https://gdal.org/drivers/raster/gtiff.html).
NO_DATA_TAG = 42113
LARGEST_VALUE = 1e30  # what is further from 0 stands for "no data": such pictures use the ends of float32


class PictureError(CourseError):
    """A file that cannot be read as a picture; the message is the reason alone, in plain words."""


def load_picture(path: str | Path, smallest_side: int | None = SMALLEST_SIDE) -> Image.Image:
    """Return any ordinary picture file as upright 8-bit RGB.

    Parameters
    ----------
    path
        JPEG, PNG, GIF (its first frame), BMP, TIFF, WebP, PPM, JPEG 2000 or AVIF.
    smallest_side
        A JPEG may be decoded faster at 1/2, 1/4 or 1/8 of its size, as long as its shorter side keeps this many pixels
        (no network of the course sees more). None decodes every pixel.

    Returns
    -------
    PIL.Image.Image
        Mode ``"RGB"``, turned as its EXIF tag says. Transparent pixels are laid on white, grey becomes three equal
        channels. Grey of up to 16 bits is scaled by the range of the bits that it uses (8, 10, 12, 14 or 16: 4095 is
        white where no pixel is brighter). Wider, negative or floating-point grey says nothing about its range: its
        darkest pixel becomes black, its brightest white. Pixels without a value (not a number, infinite, beyond 1e30,
        or the "no data" of a TIFF) do not count, and become black.

    Raises
    ------
    CourseError
        If the file is missing, empty, damaged, too large, more than 20 times as long as wide, without a single value,
        or no picture. Nothing is put in its place.
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
    """Return the picture in an open file, as :func:`load_picture` does.

    Raises
    ------
    PictureError
        If these bytes are no usable picture; the message is the reason.
    """
    try:
        Image.init()
        # AVIF depends on how Pillow was built.
        formats = [name for name in PICTURE_FORMATS if name in Image.OPEN]
        with Image.open(file, formats=formats) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise PictureError(_too_large(f"{width} × {height} pixels"))
            if max(width, height) > MAX_ASPECT * min(width, height):
                raise PictureError(
                    f"too thin: {width} × {height} pixels, the longer side may be {MAX_ASPECT} times the shorter; cut "
                    "out what matters"
                )
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
        # Damaged bytes make a decoder raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
        raise PictureError(f"truncated or damaged ({error or type(error).__name__})") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a picture of any mode as upright 8-bit RGB; transparency is laid on white."""
    no_data = getattr(image, "tag_v2", {}).get(NO_DATA_TAG)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit_grey(image, no_data)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def _to_8_bit_grey(image: Image.Image, no_data: str | None = None) -> Image.Image:
    """Return 16-bit (or wider, or floating-point) grey in 8 bits; Pillow's own convert("L") would clip at 255.

    `no_data` is the text of a TIFF's tag: the value of pixels that have none.
    """
    values = np.asarray(image).astype(np.float64)
    known = np.abs(values) <= LARGEST_VALUE  # False for NaN
    with contextlib.suppress(TypeError, ValueError):  # the text is no number, or there is none
        known &= ~np.isclose(values, float(no_data), rtol=1e-6, atol=0)  # the text has more digits than float32
    if not known.any():
        raise PictureError("no pixel holds a number")
    low, high = values[known].min(), values[known].max()
    if image.mode != "F" and low >= 0 and high <= 65535:
        bits = next(bits for bits in BIT_DEPTHS if high < 2**bits)
        low, high = 0, 2**bits - 1
    scaled = (np.where(known, values, low) - low) / ((high - low) or 1) * 255
    return Image.fromarray(scaled.round().astype(np.uint8))


def _too_large(found: str) -> str:
    return f"too large: {found}, at most {MAX_PIXELS // 1_000_000} million are read; save it smaller"


def _why_unknown(file: IO[bytes]) -> str:
    file.seek(0)
    start = file.read(12)
    if not start:
        return "empty file (0 bytes)"
    if start[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc"):
        return "HEIC, the iPhone's format, which is not read here; export it as JPEG"
    return "not a picture in a format that is read here (JPEG, PNG, GIF, BMP, TIFF, WebP)"
