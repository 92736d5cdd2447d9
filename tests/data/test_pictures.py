"""From files of every kind to RGB."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from course_utils.common.errors import CourseError
from course_utils.data import pictures
from course_utils.data.pictures import decode_picture, load_picture
from course_utils.pretrained_models import available_models, weights_entry
from course_utils.transforms import preset_of


def photo(width: int = 160, height: int = 120) -> Image.Image:
    """A smooth picture with a colour gradient, so that every direction looks different."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


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


@pytest.mark.parametrize("value", [7.0, 0.0, -1e-20])
def test_a_constant_floating_point_picture_is_no_division_by_zero(tmp_path, value):
    path = saved(Image.fromarray(np.full((4, 4), value, np.float32)), tmp_path / "a.tiff")
    assert set(np.unique(np.asarray(load_picture(path)))) == {0}


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf, -3.4e38, 1e35])
def test_a_pixel_without_a_value_does_not_change_the_others(tmp_path, hole):
    values = np.linspace(1e-15, 3e-15, 64, dtype=np.float32).reshape(8, 8)
    whole = np.asarray(load_picture(saved(Image.fromarray(values), tmp_path / "a.tiff")))[..., 0]
    values[3, 4] = hole
    found = np.asarray(load_picture(saved(Image.fromarray(values), tmp_path / "b.tiff")))[..., 0]
    assert (whole.min(), whole.max(), found[3, 4]) == (0, 255, 0)
    assert (np.delete(found, 28) == np.delete(whole, 28)).all()


@pytest.mark.parametrize(
    ("dtype", "hole", "told"), [(np.float32, -9999.0, "-9999"), (np.float32, 0.1, "0.1"), (np.uint16, 65535, "65535 ")]
)
def test_no_data_of_a_tiff_does_not_change_the_others(tmp_path, dtype, hole, told):
    values = np.linspace(100, 255, 64).round().astype(dtype).reshape(8, 8)
    whole = np.asarray(load_picture(saved(Image.fromarray(values), tmp_path / "a.tiff")))[..., 0]
    values[3, 4] = hole
    path = saved(Image.fromarray(values), tmp_path / "b.tiff", tiffinfo={pictures.NO_DATA_TAG: told})
    found = np.asarray(load_picture(path))[..., 0]
    assert found[3, 4] == 0
    assert (np.delete(found, 28) == np.delete(whole, 28)).all()


def test_a_picture_without_a_single_value_is_refused(tmp_path):
    path = saved(Image.fromarray(np.full((4, 4), np.nan, np.float32)), tmp_path / "a.tiff")
    with pytest.raises(CourseError, match="no pixel holds a number"):
        load_picture(path)


@pytest.mark.parametrize(("brightest", "bits"), [(200, 8), (255, 8), (1000, 10), (4095, 12), (4096, 14), (65535, 16)])
@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_16_bit_grey_is_scaled_by_the_bits_that_it_uses(tmp_path, name, brightest, bits):
    values = np.linspace(0, brightest, 256 * 16).round().reshape(16, 256).astype(np.uint16)
    found = np.asarray(load_picture(saved(Image.fromarray(values), tmp_path / name)))[..., 0]
    assert np.abs(found - values / (2**bits - 1) * 255).max() <= 0.5


@pytest.mark.parametrize("size", [(65_000, 1), (1, 65_000), (630, 30)])
def test_a_strip_is_refused_before_anything_resizes_it(tmp_path, size):
    with pytest.raises(CourseError, match=f"too thin: {size[0]} × {size[1]} pixels, .* 20 times the shorter"):
        load_picture(saved(Image.new("RGB", size), tmp_path / "a.png"))


def test_what_resizing_makes_of_the_thinnest_picture_fits_into_memory(tmp_path):
    assert load_picture(saved(Image.new("RGB", (600, 30)), tmp_path / "a.png")).size == (600, 30)
    largest = max(max(preset_of(weights_entry(name)).resize_size) for name in available_models())
    assert 3 * 4 * largest**2 * pictures.MAX_ASPECT < 100e6  # bytes in float32; a network sees a square of it


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
    monkeypatch.setattr(pictures, "MAX_PIXELS", 160 * 120 - 1)
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
