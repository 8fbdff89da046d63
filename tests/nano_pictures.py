"""Pictures of the nano model's world that lie in the repository, with their scenes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from tbac_uniimage.training.nano.domain.scene import Item, Scene, Word

FOLDER = Path(__file__).parent / "data" / "nano"


def stored_scenes() -> dict[str, Scene]:
    """Every scene by its name."""
    stored = json.loads((FOLDER / "scenes.json").read_text())
    return {name: read(told) for name, told in stored.items()}


def read(told: dict) -> Scene:
    """A scene from JSON."""
    items = tuple(Item(**item) for item in told["items"])
    word = Word(**told["word"]) if told["word"] else None
    return Scene(told["style"], told["background"], items, word)


def stored_picture(name: str) -> np.ndarray:
    """The picture of a name, [64, 64, 3] uint8."""
    return np.asarray(Image.open(FOLDER / f"{name}.png").convert("RGB"))
