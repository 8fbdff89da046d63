"""Pictures of all kinds become upright RGB or are refused with a reason; crops and aspect-ratio buckets."""

from __future__ import annotations

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from data_files import BLUE, GREEN, RED, picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tbac_uniimage.training.data.pictures import (
    BadPicture,
    aspect_buckets,
    decode,
    examine,
    fit,
    nearest_buckets,
)


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def two_colors(width=40, height=20) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
FRAMES = [Image.new("RGB", (20, 20), color) for color in (RED, BLUE)]
REFUSED = {
    "not a picture": b"<html>404</html>",
    "empty": b"",
    "truncated": saved(NOISE, "JPEG")[:-600],
    "bomb": png_header(30_000, 30_000),
    "single pixel": picture(size=(1, 1)),
    "long": picture(size=(16 * 201, 16)),
    "gif": saved(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
    "webp": saved(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]),
    "apng": saved(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]),
    "float": saved(Image.new("F", (20, 20), -0.5), "TIFF"),
    "32 bits": saved(Image.new("I", (20, 20), 1_000_000), "TIFF"),
    "postscript": saved(Image.new("RGB", (20, 20)), "EPS"),
}
REASONS = {
    "empty": "not a picture",
    "postscript": "not a picture",
    "bomb": "more than 89,478,485 pixels",
    "single pixel": "smaller than 16 pixels",
    "long": "more than 200 times as long as wide",
    "gif": "animated",
    "webp": "animated",
    "apng": "animated",
    "float": "floating-point pixels",
    "32 bits": "32-bit pixels",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_decoding_and_by_checking(name):
    reason = REASONS.get(name, name)
    with pytest.raises(BadPicture) as caught:
        decode(REFUSED[name])
    assert caught.value.reason == reason
    with pytest.raises(BadPicture) as caught:
        examine(io.BytesIO(REFUSED[name]), full=True)
    assert caught.value.reason == reason


@pytest.mark.parametrize("name", ["truncated", "32 bits"])
def test_the_header_check_does_not_see_pixels(name):
    assert examine(io.BytesIO(REFUSED[name]), full=False).width in (20, 64)


def test_a_png_without_its_end_is_refused():
    with pytest.raises(BadPicture):
        decode(saved(NOISE)[:-2000])


def test_a_refusal_crosses_processes():
    error = pickle.loads(pickle.dumps(BadPicture("animated", "2 frames")))
    assert (error.reason, error.detail, str(error)) == ("animated", "2 frames", "animated (2 frames)")


GREY16 = Image.fromarray(np.full((20, 20), 51 * 257, dtype=np.uint16))
CONVERTED = {
    "grey": (saved(Image.new("L", (20, 20), 77)), (77, 77, 77), ("L to RGB",)),
    "1 bit": (saved(Image.new("1", (20, 20), 1)), (255, 255, 255), ("1 to RGB",)),
    "16 bit": (saved(GREY16), (51, 51, 51), ("I;16 to RGB",)),
    "16-bit TIFF": (saved(GREY16, "TIFF"), (51, 51, 51), ("I;16 to RGB",)),
    "palette": (saved(Image.new("RGB", (20, 20), GREEN).quantize(4)), GREEN, ("P to RGB",)),
    "CMYK": (saved(Image.new("CMYK", (20, 20), (255, 0, 0, 0)), "TIFF"), (0, 255, 255), ("CMYK to RGB",)),
    "transparent": (saved(Image.new("RGBA", (20, 20), (0, 0, 0, 0))), (255,) * 3, ("transparency on white",)),
    "half": (saved(Image.new("RGBA", (20, 20), (0, 0, 0, 51))), (204,) * 3, ("transparency on white",)),
    "colour key": (
        saved(Image.new("RGB", (20, 20), RED), transparency=RED),
        (255,) * 3,
        ("transparency on white",),
    ),
    "plain": (picture(GREEN, (20, 20)), GREEN, ()),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_converted(name):
    data, color, conversions = CONVERTED[name]
    image = decode(data)
    assert (image.mode, image.size, image.getpixel((10, 10))) == ("RGB", (20, 20), color)
    for full in (True, False):
        facts = examine(io.BytesIO(data), full)
        assert (facts.width, facts.height, facts.conversions) == (20, 20, conversions)


def test_cmyk_jpeg():
    image = decode(saved(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(np.array(image.getpixel((9, 9))) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize(
    ("tag", "size", "left"),
    [(1, (40, 20), RED), (3, (40, 20), BLUE), (6, (20, 40), RED), (8, (20, 40), BLUE)],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_rotation(kind, tag, size, left):
    """At the top left of the upright picture lies what its camera saw there."""
    exif = Image.Exif()
    exif[0x0112] = tag
    data = saved(two_colors(), kind, exif=exif, quality=95)
    image = decode(data)
    assert image.size == size
    assert np.abs(np.array(image.getpixel((2, 2))) - left).max() < 12
    facts = examine(io.BytesIO(data), full=False)
    assert (facts.width, facts.height) == size
    assert facts.conversions == (() if tag == 1 else ("turned by EXIF",))


def test_the_first_picture_of_a_camera_file():
    data = saved(FRAMES[0], "MPO", save_all=True, append_images=FRAMES[1:])
    assert np.abs(np.array(decode(data).getpixel((5, 5))) - RED).max() < 8


def test_fit_covers_and_cuts():
    image = two_colors(40, 20)
    assert fit(image, 20, 20, (0, 0.5)).getpixel((10, 10)) == RED
    assert fit(image, 20, 20, (1, 0.5)).getpixel((10, 10)) == BLUE
    centre = fit(image, 20, 20)
    assert centre.getpixel((0, 10)) == RED and centre.getpixel((19, 10)) == BLUE
    assert np.array_equal(np.asarray(fit(image, 40, 20)), np.asarray(image))


@given(st.integers(16, 300), st.integers(16, 300), st.integers(1, 80), st.integers(1, 80), st.floats(0, 1))
def test_fit_has_the_size_asked_for(width, height, to_width, to_height, crop):
    image = fit(Image.new("RGB", (width, height), GREEN), to_width, to_height, (crop, 1 - crop))
    assert image.size == (to_width, to_height)
    assert image.getextrema() == tuple((c, c) for c in GREEN)


def test_buckets_of_512():
    buckets = aspect_buckets(512, 32)
    assert buckets[0] == (256, 1024) and buckets[-1] == (1024, 256) and buckets[8] == (512, 512)
    assert len(buckets) == 17


@given(st.integers(1, 40), st.sampled_from([8, 16, 32, 64]))
def test_buckets(multiples, multiple):
    resolution = multiples * multiple
    buckets = aspect_buckets(resolution, multiple)
    assert len(set(buckets)) == len(buckets)
    assert (resolution, resolution) in buckets
    assert set(buckets) == {(height, width) for width, height in buckets}
    ratios = [width / height for width, height in buckets]
    assert ratios == sorted(ratios) and ratios[-1] <= 4
    for width, height in buckets:
        assert width % multiple == height % multiple == 0
        smaller = min(width, height)
        assert resolution**2 - smaller * multiple < width * height <= resolution**2


def test_buckets_need_a_multiple():
    with pytest.raises(ValueError, match="Resolution 500 is no multiple of 32"):
        aspect_buckets(500, 32)


def test_nearest_buckets_of_known_sizes():
    buckets = aspect_buckets(512, 32)
    numbers = nearest_buckets(np.array([(1000, 1000), (1920, 1080), (100, 4000)]), buckets)
    assert [buckets[number] for number in numbers] == [(512, 512), (672, 384), (256, 1024)]
    assert nearest_buckets(np.array([(10, 20)]), [(2, 2), (1, 1)]) == [0]  # of two the first


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), min_size=1, max_size=20))
def test_nearest_buckets_is_nearest(sizes):
    buckets = aspect_buckets(256, 32)
    for (width, height), number in zip(sizes, nearest_buckets(np.array(sizes), buckets), strict=True):
        distances = [abs(np.log(width / height) - np.log(w / h)) for w, h in buckets]
        assert distances[number] == pytest.approx(min(distances), abs=1e-12)
