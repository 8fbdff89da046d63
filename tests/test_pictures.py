"""What a picture means: upright sRGB on white, from whatever file or object, the same to all who read it."""

from __future__ import annotations

import io
import sys
from types import ModuleType

import numpy as np
import profiles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin
from tbac_uniimage.core import pictures
from tbac_uniimage.core.inputs import prepare_images
from tbac_uniimage.core.pictures import open_picture, read_picture
from tbac_uniimage.core.requests import check_request
from tbac_uniimage.core.rgb import BadPicture, conversions, to_rgb
from tbac_uniimage.training.data.pictures import decode, examine

GOLD, RED, BLUE = (249, 215, 65), (200, 40, 40), (20, 30, 200)
P3 = profiles.rgb()
PROFILE = "colour profile to sRGB"


def file_of(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def framed(border=GOLD, inner=RED, mode="RGB") -> Image.Image:
    image = Image.new(mode, (64, 48), border)
    image.paste(inner, (16, 16, 48, 32))
    return image


def in_space(image: Image.Image, profile: bytes) -> Image.Image:
    """An sRGB picture in the numbers of another profile."""
    other = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), other)


def gap(image: Image.Image, other: Image.Image) -> int:
    assert image.mode == other.mode and image.size == other.size
    return int(np.abs(np.asarray(image).astype(int) - np.asarray(other)).max())


def every_way(data: bytes, tmp_path) -> list[Image.Image]:
    """A file as shell, training and pipeline see it."""
    path = tmp_path / "picture"
    path.write_bytes(data)
    ((opened,),) = check_request("a", Image.open(io.BytesIO(data))).images
    return [read_picture(path), decode(data), opened]


LOSSLESS = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_wide_colours(kind, tmp_path):
    wide = in_space(framed(), P3)
    assert gap(wide, framed()) > 20
    data = file_of(wide, kind, icc_profile=P3, **LOSSLESS.get(kind, {}))
    for image in every_way(data, tmp_path):
        assert gap(image, framed()) <= 3
        assert to_rgb(image) is image  # not applied twice
    assert examine(io.BytesIO(data), full=False).conversions == (PROFILE,)


@pytest.mark.parametrize("padding", [2_000_000, 20_000_000])
def test_a_large_profile(padding, tmp_path):
    data = file_of(in_space(framed(), P3), icc_profile=profiles.rgb(padding=padding))
    for image in every_way(data, tmp_path):
        assert gap(image, framed()) <= 3


def test_a_profile_that_unpacks_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 100_000)
    with pytest.raises(BadPicture, match="too large"):
        decode(file_of(framed(), icc_profile=profiles.rgb(padding=200_000)))


@pytest.mark.parametrize(
    "profile",
    [
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        b"no profile at all",
        P3[:300],
        profiles.grey(1.0),  # of another kind of picture
        profiles.cmyk((128, 128, 128)),
    ],
    ids=["sRGB", "garbage", "torn", "grey", "CMYK"],
)
def test_profiles_that_change_nothing(profile, tmp_path):
    data = file_of(framed(), icc_profile=profile)
    for image in every_way(data, tmp_path):
        assert gap(image, framed()) == 0
    assert examine(io.BytesIO(data), full=True).conversions == ()


def test_profiles_of_grey_pictures(tmp_path):
    linear = file_of(Image.new("L", (32, 32), 55), icc_profile=profiles.grey(1.0))
    for image in every_way(linear, tmp_path):
        assert image.getpixel((3, 3)) == (128,) * 3  # 55 / 255 of the light
    assert examine(io.BytesIO(linear), full=False).conversions == ("L to RGB", PROFILE)
    deep = Image.fromarray(np.full((32, 32), 55 * 257, np.uint16))
    assert decode(file_of(deep, icc_profile=profiles.grey(1.0))).getpixel((3, 3)) == (128,) * 3
    in_p3 = file_of(Image.new("L", (32, 32), 55), icc_profile=P3)  # whose greys are those of sRGB
    assert decode(in_p3).getpixel((3, 3)) == (55,) * 3
    assert examine(io.BytesIO(in_p3), full=False).conversions == ("L to RGB",)
    linear_rgb = profiles.rgb(curve=profiles.gamma(1.0))
    assert (
        decode(file_of(Image.new("L", (32, 32), 55), icc_profile=linear_rgb)).getpixel((3, 3)) == (128,) * 3
    )


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind, tmp_path):
    sheet = Image.new("CMYK", (32, 32), (255, 0, 0, 0))
    sheet.paste((0, 0, 0, 0), (0, 0, 16, 32))
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    plain, printed = (
        file_of(sheet, kind, **options),
        file_of(sheet, kind, icc_profile=profiles.cmyk((128, 128, 128)), **options),
    )
    for image in every_way(plain, tmp_path):
        assert np.abs(np.array(image.getpixel((28, 9))) - (0, 255, 255)).max() <= 3
    for image in every_way(printed, tmp_path):
        assert np.abs(np.array(image.getpixel((28, 9))) - (119, 119, 119)).max() <= 4  # L* = 50
        assert min(image.getpixel((3, 9))) >= 252
    assert examine(io.BytesIO(printed), full=False).conversions == ("CMYK to RGB", PROFILE)


def test_profile_and_transparency_together(tmp_path):
    wide = in_space(framed(), P3)
    wide.putalpha(128)
    image = read_all_alike(file_of(wide, icc_profile=P3), tmp_path)
    expected = [(128 * colour + 127 * 255) / 255 for colour in GOLD]
    assert np.abs(np.array(image.getpixel((2, 2))) - expected).max() <= 2
    palette = read_all_alike(file_of(in_space(framed(), P3).quantize(4), icc_profile=P3), tmp_path)
    assert gap(palette, framed()) <= 3


def read_all_alike(data: bytes, tmp_path) -> Image.Image:
    first, *others = every_way(data, tmp_path)
    assert all(gap(first, other) == 0 for other in others)
    return first


def halves(mode: str, above, below) -> Image.Image:
    image = Image.new(mode, (20, 20), above)
    image.paste(below, (0, 10, 20, 20))
    if mode == "P":
        image.putpalette([level for value in range(256) for level in (value,) * 3])
    return image


CLEAR = Image.fromarray(np.where(np.arange(400).reshape(20, 20) < 200, 500, 40000).astype(np.uint16))
TRANSPARENT = {  # file, what the transparent upper half and the opaque lower half look like
    "RGBA": (file_of(halves("RGBA", (9, 9, 9, 0), (9, 99, 9, 255))), (9, 99, 9)),
    "LA": (file_of(halves("LA", (9, 0), (99, 255))), (99,) * 3),
    "palette": (file_of(halves("P", 3, 7), transparency=3), (7,) * 3),
    "1 bit": (file_of(halves("1", 0, 1), transparency=0), (255,) * 3),
    "grey of 16 bits": (file_of(CLEAR, transparency=500), (156,) * 3),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparent_is_white(name, tmp_path):
    data, below = TRANSPARENT[name]
    image = read_all_alike(data, tmp_path)
    assert image.getpixel((10, 2)) == (255, 255, 255) and image.getpixel((10, 17)) == below
    assert "transparency on white" in examine(io.BytesIO(data), full=False).conversions


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_pictures_in_memory_with_alpha(mode):
    image = to_rgb(Image.new(mode, (8, 8)))
    assert (image.mode, image.getpixel((4, 4))) == ("RGB", (255, 255, 255))


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled(dtype, kind, tmp_path):
    values = np.linspace(0, 65535, 1024).reshape(32, 32).astype(dtype)
    image = read_all_alike(file_of(Image.fromarray(values), kind), tmp_path)
    assert np.abs(np.asarray(image)[..., 1] - values / 257).max() <= 0.5


@pytest.mark.parametrize("white", [1, 255, 65535])
def test_floating_point_is_scaled(white, tmp_path):
    values = np.linspace(0, white, 1024, dtype=np.float32).reshape(32, 32)
    image = read_all_alike(file_of(Image.fromarray(values), "TIFF"), tmp_path)
    assert np.abs(np.asarray(image)[..., 1] - values / white * 255).max() <= 0.501


@pytest.mark.parametrize("values", [(0, 1.5), (-0.1, 1), (0, 4000), (0, 1e6), (0, np.nan), (0, np.inf)])
def test_floating_point_without_a_white_is_refused(values):
    pixels = np.full((32, 32), values[0], np.float32)
    pixels[5, 5] = values[1]
    with pytest.raises(BadPicture, match="floating-point pixels"):
        decode(file_of(Image.fromarray(pixels), "TIFF"))


@pytest.mark.parametrize("turn", range(1, 9))
def test_cameras_turn_pictures(turn, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = turn
    data = file_of(framed().resize((96, 48)), "JPEG", exif=exif)
    image = read_all_alike(data, tmp_path)
    assert image.size == ((96, 48) if turn < 5 else (48, 96))
    assert to_rgb(image) is image


@pytest.mark.parametrize(
    "mode", ["RGB", "L", "P", "1", "CMYK", "YCbCr", "HSV", "LAB", "RGBX", "I", "I;16", "F"]
)
def test_every_mode_becomes_rgb_once(mode):
    image = to_rgb(Image.new(mode, (8, 8)))
    assert (image.mode, image.size, to_rgb(image)) == ("RGB", (8, 8), image)


@settings(max_examples=25)
@given(st.binary(min_size=3 * 36, max_size=3 * 36))
def test_a_plain_picture_stays_itself(values):
    image = Image.frombytes("RGB", (6, 6), values)
    assert to_rgb(image) is image and conversions(image) == ()
    assert decode(file_of(image.resize((18, 18), 0))).resize((6, 6), 0).tobytes() == values


HEADS = {
    "pillow-heif": b"\0\0\0\x18ftypheic" + bytes(64),
    "pillow-jxl-plugin": b"\xff\x0a" + bytes(64),
}


@pytest.mark.parametrize("package", HEADS)
def test_formats_of_plugins_name_their_package(package, tmp_path, monkeypatch):
    for module, _, _ in pictures.PLUGINS.values():
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(Image, "OPEN", {k: v for k, v in Image.OPEN.items() if k not in ("HEIF", "JXL")})
    path = tmp_path / "photo"
    path.write_bytes(HEADS[package])
    with pytest.raises(
        ValueError, match=f"photo is not a readable picture .*the package {package} reads; it is not"
    ):
        read_picture(path)
    with pytest.raises(BadPicture):
        decode(HEADS[package])


def test_a_plugin_that_is_installed_is_used(monkeypatch):
    def register():
        Image.register_open("HEIF", lambda file, name: framed(), lambda head: head[4:8] == b"ftyp")

    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    Image.OPEN.pop("HEIF", None)
    plugin = ModuleType("pillow_heif")
    plugin.register_heif_opener = register
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    assert gap(decode(HEADS["pillow-heif"]), framed()) == 0


def animation(kind: str) -> bytes:
    frames = [framed(), framed(BLUE), framed(RED, BLUE)]
    return file_of(frames[0], kind, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_a_file_holds_one_picture(kind, tmp_path):
    path = tmp_path / "moving"
    path.write_bytes(animation(kind))
    with pytest.raises(ValueError, match=r"moving is not a readable picture \(animated \(3 frames\)\)"):
        read_picture(path)
    with pytest.raises(BadPicture, match="animated"):
        decode(animation(kind))


def test_an_opened_animation_gives_the_frame_that_it_stands_at():
    opened = Image.open(io.BytesIO(animation("PNG")))
    opened.seek(1)
    assert gap(prepare_images([[opened]], ["a"])[0][0], framed(BLUE)) == 0


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a picture"),
        (b"\x89PNG\r\n\x1a\n torn", "broken or of an unknown kind (PNG)"),
        (file_of(framed().resize((512, 512)), "JPEG")[:-900], "truncated"),
        (file_of(Image.new("RGB", (4020, 20))), "more than 200 times as long as wide (4020x20)"),
        (b"GIF89a\0\0\0\0\0\0\0;", "broken or of an unknown kind (GIF)"),
    ],
)
def test_what_cannot_be_read_says_so(data, says, tmp_path):
    path = tmp_path / "odd.png"
    path.write_bytes(data)
    with pytest.raises(ValueError) as caught:
        read_picture(path)
    assert str(caught.value).startswith(f"{path} is not a readable picture ({says}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(0, 0), (0, 9), (9, 0)])
def test_pictures_without_pixels(size):
    with pytest.raises(ValueError, match=f"image of {size[0]}x{size[1]} is without pixels"):
        check_request("a", Image.new("RGB", size))
    with pytest.raises(ValueError, match="without pixels"):
        check_request("a", np.zeros((*size, 3), np.uint8))


def test_arrays_and_tensors_are_pictures():
    values = np.array(framed())
    as_tensor = torch.from_numpy(values).permute(2, 0, 1)
    for form in (
        values,
        values / 255,
        (values / 255).astype(np.float16).astype(np.float32),
        values.astype(np.uint16) * 257,
        as_tensor,
        as_tensor / 255,
        as_tensor[None],
        values[None],
    ):
        ((image,),) = check_request("a", form).images
        assert gap(image, framed()) == 0
    grey = np.full((20, 30, 1), 0.2)
    assert check_request("a", grey).images[0][0].getpixel((2, 2)) == (51,) * 3
    clear = np.zeros((20, 30, 4))
    assert check_request("a", clear).images[0][0].getpixel((2, 2)) == (255,) * 3
    two = check_request(["a", "b"], np.stack([values, values[::-1]])).images
    assert gap(two[1][0], Image.fromarray(values[::-1].copy())) == 0


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.full((20, 20, 3), -0.5), "floating-point pixels .-0.5 to -0.5, where 0 to 1 are possible"),
        (np.full((20, 20, 3), np.nan), "floating-point pixels"),
        (np.zeros((20, 20, 7)), "an array of another shape"),
        (np.zeros((20, 20, 3), np.int64), "pixels of an unknown type .int64"),
        (torch.zeros(20, 20, 3), "an array of another shape"),
    ],
)
def test_arrays_that_are_no_pictures(array, says):
    with pytest.raises(ValueError, match=f"An input image cannot be used: {says}"):
        check_request("a", array)


def test_only_what_pillow_reads_by_itself_is_opened():
    """Its other decoders start programs, or are not needed."""
    with pytest.raises(BadPicture, match="not a picture"):
        open_picture(io.BytesIO(file_of(framed(), "EPS")))
