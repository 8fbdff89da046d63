"""The score's eye: a small dense detector of sprites, trained on composed scenes only.

For every cell of a 16 x 16 grid it says how likely a sprite's centre lies there, which object it is and
how large; for the picture it says the background. It is trained with noise, blur and brightness changes
on scenes with any number of objects anywhere, so that it leans neither on crisp pixels nor on the layouts
of the captions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import autoencoder, loop, scenes
from .scenes import SIZE, Item, Scene
from .sprites import OBJECTS

GRID = 16
CELL = SIZE // GRID
WIDTH = 64
NAMES, BACKGROUNDS = list(OBJECTS), list(scenes.BACKGROUNDS)
BATCH = 32
WEIGHTS = Path("scorer") / "model.safetensors"  # below the model's folder


@dataclass(frozen=True)
class Found:
    """What the detector saw in a picture: the background and items with their confidence, best first."""

    background: str
    items: tuple[tuple[Item, float], ...]


class Residual(nn.Module):
    def __init__(self, width: int, dilation: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.layers(x))


class Detector(nn.Module):
    """Pictures [B, 3, 64, 64] in -1..1 to heat [B, 16, 16], names [B, N, 16, 16], sides [B, 16, 16],
    backgrounds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, WIDTH, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(WIDTH),
            nn.ReLU(),
            *(Residual(WIDTH, dilation) for dilation in (1, 1, 2, 2, 4, 1)),
        )
        self.cells = nn.Conv2d(WIDTH, 2 + len(NAMES), 1)
        nn.init.constant_(self.cells.bias[:1], -3.0)  # hardly any cell is a centre
        self.background = nn.Linear(WIDTH, len(BACKGROUNDS))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        features = self.trunk(pictures)
        cells = self.cells(features)
        return cells[:, 0], cells[:, 2:], cells[:, 1], self.background(features.mean((2, 3)))


def free_scene(random: Random) -> Scene:
    """Up to four objects of any size anywhere, hardly overlapping."""
    items: list[Item] = []
    for _ in range(random.randint(0, 4)):
        size = random.randint(20, 44 if not items else 30)
        low, high = size // 2 + 1, SIZE - size // 2 - 2
        item = Item(random.choice(NAMES), random.randint(low, high), random.randint(low, high), size)
        if all(max(abs(item.x - o.x), abs(item.y - o.y)) > 0.42 * (item.size + o.size) for o in items):
            items.append(item)
    return Scene(random.choice(BACKGROUNDS), tuple(items), "free")


def targets(scene: Scene) -> tuple[Tensor, Tensor, Tensor, int]:
    """Heat [16, 16], name of the cells around a centre [16, 16] (-100 elsewhere), side there, background."""
    heat, names, sides = torch.zeros(GRID, GRID), torch.full((GRID, GRID), -100), torch.zeros(GRID, GRID)
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    for item in scene.items:
        column, row = item.x // CELL, item.y // CELL
        distance = (columns - item.x / CELL + 0.5) ** 2 + (rows - item.y / CELL + 0.5) ** 2
        heat = torch.maximum(heat, torch.exp(-distance / 2))
        heat[row, column] = 1
        around = (slice(max(row - 1, 0), row + 2), slice(max(column - 1, 0), column + 2))
        names[around], sides[around] = NAMES.index(item.name), item.size / SIZE
    return heat, names, sides, BACKGROUNDS.index(scene.background)


def augment(pictures: Tensor, random: Random) -> Tensor:
    """Noise, blur by down-sampling, and brightness, each on some batches."""
    if random.random() < 0.5:
        pictures = pictures + torch.randn_like(pictures) * random.uniform(0, 0.12)
    if random.random() < 0.4:
        scale = random.choice((0.5, 0.6, 0.75))
        small = F.interpolate(pictures, scale_factor=scale, mode="bilinear", antialias=True)
        pictures = F.interpolate(small, size=(SIZE, SIZE), mode="bilinear")
    if random.random() < 0.4:
        pictures = pictures * random.uniform(0.88, 1.12) + random.uniform(-0.07, 0.07)
    return pictures.clamp(-1, 1)


def heat_loss(heat: Tensor, wanted: Tensor) -> Tensor:
    """Focal loss of CenterNet (Zhou et al. 2019, equation 1)."""
    likely = heat.sigmoid().clamp(1e-4, 1 - 1e-4)
    centre = wanted == 1
    at_centres = ((1 - likely) ** 2 * likely.log())[centre].sum()
    elsewhere = ((1 - wanted) ** 4 * likely**2 * (1 - likely).log())[~centre].sum()
    return -(at_centres + elsewhere) / centre.sum().clamp(min=1)


def train(folder: Path, minutes: float, threads: int = 1, seed: int = 0) -> None:
    """Train the detector."""
    detector = Detector().to(memory_format=torch.channels_last)

    def step(position: int) -> Tensor:
        random = Random(f"{seed}/detector/{position}")
        drawn = [
            free_scene(random)
            if random.random() < 0.5
            else scenes.draw_any(random, random.choice(list(scenes.KINDS)))
            for _ in range(BATCH)
        ]
        pictures = augment(autoencoder.pixels([scenes.render(scene) for scene in drawn]), random)
        wanted = [targets(scene) for scene in drawn]
        heat, names, sides = (torch.stack([w[i] for w in wanted]) for i in range(3))
        backgrounds = torch.tensor([w[3] for w in wanted])
        with loop.autocast():
            outputs = detector(pictures.contiguous(memory_format=torch.channels_last))
        saw_heat, saw_names, saw_sides, saw_backgrounds = (output.float() for output in outputs)
        there = names >= 0
        return (
            heat_loss(saw_heat, heat)
            + F.cross_entropy(saw_names, names)
            + 0.3 * F.cross_entropy(saw_backgrounds, backgrounds)
            + 3 * (saw_sides - sides)[there].abs().mean()
        )

    held_out = Random(92)
    kinds = list(scenes.KINDS) * 24
    examples = [scenes.draw(held_out, kind, held_out=True) for kind in kinds]
    pictures = autoencoder.pixels([scenes.render(scene) for scene in examples])

    def evaluate() -> str:
        from .checks import follows_caption

        detector.eval()
        right = [follows_caption(f, s) for f, s in zip(detect(detector, pictures), examples, strict=True)]
        detector.train()
        return f"held-out scenes right {sum(right) / len(right):.3f}"

    stage = loop.Stage("detector", folder, minutes, BATCH, 2.5e-3, 1e-2, threads=threads, seed=seed)
    loop.train(stage, {"detector": detector}, step, evaluate)


@torch.no_grad()
def detect(
    detector: Detector, pictures: Tensor, threshold: float = 0.4, certain: float = 0.25
) -> list[Found]:
    """What is in pictures [B, 3, 64, 64] in -1..1.

    A cell counts when its heat is a local maximum above `threshold` and heat times the name's probability
    is at least `certain`; of two that overlap by more than half a sprite the better one stays.
    """
    heat, names, sides, backgrounds = detector(pictures.float())
    heat, probability = heat.sigmoid(), names.softmax(1)
    peaks = (F.max_pool2d(heat[:, None], 3, 1, 1)[:, 0] == heat) & (heat > threshold)
    found = []
    for i in range(len(pictures)):
        places = peaks[i].nonzero().tolist()
        places.sort(key=lambda place: -heat[i, place[0], place[1]].item())
        items: list[tuple[Item, float]] = []
        for row, column in places:
            best, name = probability[i, :, row, column].max(0)
            confidence = best.item() * heat[i, row, column].item()
            size = round(SIZE * min(0.75, max(0.25, sides[i, row, column].item())))
            item = Item(NAMES[name], round((column + 0.5) * CELL), round((row + 0.5) * CELL), size)
            apart = all(
                max(abs(item.x - o.x), abs(item.y - o.y)) > 0.45 * min(item.size, o.size) for o, _ in items
            )
            if apart and confidence >= certain:
                items.append((item, confidence))
        found.append(Found(BACKGROUNDS[backgrounds[i].argmax()], tuple(items)))
    return found


def save(detector: Detector, path: Path) -> None:
    """Write the weights in float16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        n: t.half().contiguous() if t.is_floating_point() else t for n, t in detector.state_dict().items()
    }
    loop.replace_file(
        lambda partial: save_file(tensors, partial, metadata={"objects": " ".join(NAMES)}), path
    )


def load(path: Path) -> Detector:
    """Read what `save` wrote.

    Raises:
        FileNotFoundError: there are no weights at `path`.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"the score's detector is not at {path}: train it with "
            "`python -m tbac_uniimage.training.nano.train --stage detector` and export the model again"
        )
    detector = Detector()
    detector.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()}, strict=True)
    return detector.eval()
