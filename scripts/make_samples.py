"""Compose the templates' input pictures into ``assets/samples`` from the drawings that nano learned from.

Needs the drawings: ``python -m tbac_uniimage.training.nano.domain.art`` fetches them.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw
from tbac_uniimage.training.nano.domain.art import load
from tbac_uniimage.training.nano.domain.layouts import ALONE, ROW, side
from tbac_uniimage.training.nano.domain.render import render
from tbac_uniimage.training.nano.domain.scene import Item, Scene
from tbac_uniimage.training.nano.domain.words import BACKGROUNDS

SAMPLES = Path(__file__).resolve().parent.parent / "assets" / "samples"
DRAWN = 128  # by the model
SIDE = 256  # Load Image shows pictures no larger than they are
LARGE = 1536, 1024
SCATTERED = {  # in the large picture: centre and side in pixels
    "house": (330, 620, 260),
    "car": (640, 760, 150),
    "cactus": (1180, 700, 210),
    "sunflower": (900, 850, 120),
    "balloon": (1260, 190, 110),
    "butterfly": (560, 330, 90),
}


def compose(background: str, *names: str, large: bool = True) -> Image.Image:
    """One object, or two side by side, on a background, as the model would draw them."""
    centres = ALONE if len(names) == 1 else ROW
    items = tuple(Item(name, *at, side(centres)) for name, at in zip(names, centres, strict=True))
    picture = Image.fromarray(render(Scene("3D", background, items), DRAWN))
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS) if large else picture


def scatter(background: str) -> Image.Image:
    """A large picture of small things."""
    picture = Image.new("RGB", LARGE, BACKGROUNDS[background])
    for name, (x, y, size) in SCATTERED.items():
        sprite = Image.fromarray(load()["3D", name]).resize((size, size), Image.Resampling.LANCZOS)
        picture.paste(sprite, (x - size // 2, y - size // 2), sprite)
    return picture


def with_mask(picture: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """The picture with a mask where ComfyUI's mask editor leaves it: transparent inside the box."""
    alpha = Image.new("L", picture.size, 255)
    ImageDraw.Draw(alpha).rounded_rectangle(box, radius=24, fill=0)
    masked = picture.convert("RGBA")
    masked.putalpha(alpha)
    return masked


def main() -> None:
    """Write all of them."""
    scene = compose("blue", "dog", "rocket")
    pictures = {
        "tbac_uniimage_scene": compose("pink", "rocket", "cactus", large=False),
        "tbac_uniimage_dog_and_rocket": scene,
        "tbac_uniimage_masked": with_mask(scene, (132, 60, 248, 196)),
        "tbac_uniimage_small_thing": with_mask(scatter("blue"), (1190, 120, 1330, 260)),
        "tbac_uniimage_cat": compose("pink", "cat"),
        "tbac_uniimage_car": compose("green", "car"),
        "tbac_uniimage/1_panda": compose("yellow", "panda"),
        "tbac_uniimage/2_rocket": compose("blue", "rocket"),
        "tbac_uniimage/3_butterfly": compose("white", "butterfly"),
        "tbac_uniimage/4_turtle": compose("orange", "turtle"),
    }
    for name, picture in pictures.items():
        path = SAMPLES / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        picture.save(path, optimize=True)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
