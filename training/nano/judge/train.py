"""Training of the score's detector: `python -m tbac_uniimage.training.nano.judge.train FOLDER --minutes 15`.

Half of its scenes are those of captions and edits, held-out ones too; half have any number of things of any
size anywhere. Noise, blur and changes of brightness keep it from leaning on crisp pixels. Writes
`detector.safetensors`, from which a later call goes on, and `model.safetensors`, the weights alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..domain import edits, letters, prompts
from ..domain.render import render
from ..domain.scene import MIDDLE, MOST_ITEMS, SIZE, Item, Scene, Word
from ..domain.words import BACKGROUNDS, OBJECTS, PAINTS, STYLES, told_apart
from . import loop
from .detector import CELL, COLOURS, GRID, GROUNDS, THINGS, Detector, save
from .pictures import pixels, see
from .verdicts import follows

BATCH = 32
IGNORED = -100
FREE, PAINTED, WRITTEN = 0.5, 0.4, 0.25  # shares: free scenes; painted items and words in these


def free_scene(random: Random) -> Scene:
    """Up to six sprites of any size anywhere, hardly overlapping, or a word of any letters and a sprite."""
    background = random.choice(list(BACKGROUNDS))
    word = None
    if random.random() < WRITTEN:
        length = random.randint(1, letters.LONGEST)
        line = random.randint(letters.HEIGHT // 2 + 1, SIZE - letters.HEIGHT // 2 - 1)
        word = Word("".join(random.choices(letters.LETTERS, k=length)), line)
    items: list[Item] = []
    number = random.randint(0, 1 if word else MOST_ITEMS)
    for _ in range(4 * number):
        if len(items) == number:
            break
        size = random.randint(17, 44 if number == 1 else 29 if number < 5 else 23)
        low, high = size // 2, SIZE - (size + 1) // 2
        paint = random.choice(list(PAINTS)) if random.random() < PAINTED else ""
        name = random.choice(list(OBJECTS))
        item = Item(name, random.randint(low, high), random.randint(low, high), size, paint)
        clear = told_apart(name, paint, background) and all(
            max(abs(item.x - o.x), abs(item.y - o.y)) > 0.42 * (item.size + o.size) for o in items
        )
        if clear and (word is None or abs(item.y - word.y) > 0.45 * size + letters.HEIGHT / 2):
            items.append(item)
    return Scene(random.choice(STYLES), background, tuple(items), word)


def told_scene(random: Random) -> Scene:
    """The scene of a caption or of an edit, whether held out or not."""
    training = random.random() < 0.9
    if random.random() < 0.7:
        return prompts.sample(random, None, training).scene
    return edits.sample(random, None, training).target


def things(scene: Scene) -> list[tuple[Item, bool]]:
    """Everything that has a centre, and whether it is a letter."""
    found = [(item, False) for item in scene.items]
    if scene.word:
        at = letters.centres(scene.word.letters, MIDDLE)
        found += [
            (Item(letter, x, scene.word.y, letters.HEIGHT), True)
            for letter, x in zip(scene.word.letters, at, strict=True)
        ]
    return found


def targets(scene: Scene) -> dict[str, np.ndarray]:
    """Heat, thing, side, paint and style of every cell, each [16, 16]; `IGNORED` away from centres."""
    heat, side = np.zeros((GRID, GRID), np.float32), np.zeros((GRID, GRID), np.float32)
    thing, paint, style = (np.full((GRID, GRID), IGNORED) for _ in range(3))
    rows, columns = np.mgrid[:GRID, :GRID]
    for item, is_letter in things(scene):
        column, row = item.x // CELL, item.y // CELL
        away = (columns - item.x / CELL + 0.5) ** 2 + (rows - item.y / CELL + 0.5) ** 2
        heat = np.maximum(heat, np.exp(-away / 2, dtype=np.float32))
        heat[row, column] = 1
        around = (slice(max(row - 1, 0), row + 2), slice(max(column - 1, 0), column + 2))
        thing[around], side[around] = THINGS.index(item.name), item.size / SIZE
        if not is_letter:
            paint[around], style[around] = COLOURS.index(item.paint), STYLES.index(scene.style)
    return {"heat": heat, "side": side, "thing": thing, "paint": paint, "style": style}


def augment(pictures: Tensor, random: Random) -> Tensor:
    """Noise, blur by down-sampling, and brightness, each on some batches."""
    if random.random() < 0.5:
        pictures = pictures + torch.randn_like(pictures) * random.uniform(0, 0.12)
    if random.random() < 0.4:
        scale = random.choice((0.5, 0.6, 0.75))
        small = F.interpolate(pictures, scale_factor=scale, mode="bilinear", antialias=True)
        pictures = F.interpolate(small, size=(SIZE, SIZE), mode="bilinear")
    if random.random() < 0.4:
        pictures = pictures * random.uniform(0.9, 1.1) + random.uniform(-0.06, 0.06)
    return pictures.clamp(-1, 1)


def heat_loss(heat: Tensor, wanted: Tensor) -> Tensor:
    """Focal loss of CenterNet (Zhou et al. 2019, equation 1)."""
    likely = heat.sigmoid().clamp(1e-4, 1 - 1e-4)
    centre = wanted == 1
    at_centres = ((1 - likely) ** 2 * likely.log())[centre].sum()
    elsewhere = ((1 - wanted) ** 4 * likely**2 * (1 - likely).log())[~centre].sum()
    return -(at_centres + elsewhere) / centre.sum().clamp(min=1)


def loss(detector: Detector, scenes: list[Scene], random: Random) -> Tensor:
    """Loss of a batch of scenes."""
    pictures = augment(pixels([render(scene) for scene in scenes]), random)
    each = [targets(scene) for scene in scenes]
    wanted = {part: torch.from_numpy(np.stack([t[part] for t in each])) for part in each[0]}
    backgrounds = torch.tensor([GROUNDS.index(scene.background) for scene in scenes])
    with loop.autocast():
        seen, seen_backgrounds = detector(pictures.contiguous(memory_format=torch.channels_last))
    there = wanted["thing"] != IGNORED
    total = heat_loss(seen["heat"][:, 0], wanted["heat"]) + 0.3 * F.cross_entropy(
        seen_backgrounds, backgrounds
    )
    for part, weight in (("thing", 1.0), ("paint", 1.0), ("style", 0.5)):
        if (wanted[part] != IGNORED).any():
            total = total + weight * F.cross_entropy(seen[part], wanted[part])
    return total + 3 * (seen["side"][:, 0] - wanted["side"])[there].abs().sum() / there.sum().clamp(min=1)


def train(folder: Path, minutes: float, threads: int = 1, seed: int = 0) -> None:
    """Train the detector, going on from what is in `folder`, for a budget that counts earlier calls."""
    detector = Detector().to(memory_format=torch.channels_last)

    def step(position: int) -> Tensor:
        random = Random(f"{seed}/detector/{position}")
        scenes = [(free_scene if random.random() < FREE else told_scene)(random) for _ in range(BATCH)]
        return loss(detector, scenes, random)

    asked = [prompts.draw(92, "held out", i, kind) for kind in prompts.KINDS for i in range(24)]
    pictures = [render(prompt.scene) for prompt in asked]

    def evaluate() -> str:
        detector.eval()
        found = see(detector, pictures)
        detector.train()
        right = [follows(f, p) for f, p in zip(found, asked, strict=True)]
        kinds = [f"{kind} {sum(right[24 * i :][:24]) / 24:.2f}" for i, kind in enumerate(prompts.KINDS)]
        styles = [f.style == p.scene.style for f, p in zip(found, asked, strict=True)]
        return f"held-out scenes right: {', '.join(kinds)}; style {sum(styles) / len(styles):.2f}"

    stage = loop.Stage("detector", folder, minutes, BATCH, 2.5e-3, 1e-2, threads=threads, seed=seed)
    loop.train(stage, {"detector": detector}, step, evaluate)
    save(detector.eval(), folder / "model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the detector of the sprite-scene score.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=15, help="budget, earlier calls included")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    train(options.folder, options.minutes, options.threads, options.seed)


if __name__ == "__main__":
    main()
