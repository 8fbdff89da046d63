"""Make the templates' thumbnails from the demo's pictures in ``out/``; run it after the model has changed."""

from __future__ import annotations

import demo
from PIL import Image

SIDE = 512
WORKFLOWS = demo.ROOT / "workflows"


def tile(path, side: int) -> Image.Image:
    """A picture as a square of ``side`` pixels."""
    return Image.open(path).convert("RGB").resize((side, side), Image.Resampling.LANCZOS)


def main() -> None:
    """Text to image: the first result. Edit: its source and its result, side by side."""
    tile(demo.OUT / "1_text_to_image.png", SIDE).save(WORKFLOWS / "text_to_image.jpg", quality=85)
    first_edit = demo.OUT / f"{len(demo.PROMPTS) + 1}_image_edit.png"
    pair = Image.new("RGB", (SIDE, SIDE), (32, 32, 32))
    for i, path in enumerate((demo.SAMPLE, first_edit)):
        pair.paste(tile(path, SIDE // 2), (i * SIDE // 2, SIDE // 4))
    pair.save(WORKFLOWS / "image_edit.jpg", quality=85)
    print(f"Thumbnails written to {WORKFLOWS}.")


if __name__ == "__main__":
    main()
