"""Compose the templates' input pictures into ``assets/samples`` from the drawings that nano learned from.

Needs the drawings: ``python -m tbac_uniimage.training.nano.sprites`` fetches them.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw
from tbac_uniimage.training.nano.scenes import COLUMN, LARGE, MIDDLE, ROW, SMALL, Item, Scene, render

SAMPLES = Path(__file__).resolve().parent.parent / "assets" / "samples"
SIDE = 256  # four times the model's size: Load Image shows pictures no larger than they are


def compose(background: str, *names: str, column: bool = False) -> Image.Image:
    """One or two objects on a background, as the model would draw them, enlarged."""
    places = ((MIDDLE, MIDDLE),) if len(names) == 1 else COLUMN if column else ROW
    size = LARGE if len(names) == 1 else SMALL
    items = tuple(Item(name, *place, size) for name, place in zip(names, places, strict=True))
    picture = Image.fromarray(render(Scene(background, items, "single" if len(names) == 1 else "two")))
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


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
        "tbac_uniimage_dog_and_rocket": scene,
        "tbac_uniimage_masked": with_mask(scene, (132, 60, 248, 196)),
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
