"""The score's eye: a small dense detector of sprites and letters, trained on composed scenes only.

For every cell of a 16 x 16 grid it says how likely a centre lies there, of which object or letter, how large
it is, which paint it has and in which style it is drawn; for the picture it says the background.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..domain import letters
from ..domain.scene import SIZE, Item, Scene, Word, in_reading_order
from ..domain.words import BACKGROUNDS, OBJECTS, PAINTS, STYLES
from ..files import replace_file

GRID = 16
CELL = SIZE // GRID
WIDTH = 64
THINGS = (*OBJECTS, *letters.LETTERS)
COLOURS = ("", *PAINTS)
GROUNDS = tuple(BACKGROUNDS)
PARTS = {"heat": 1, "side": 1, "thing": len(THINGS), "paint": len(COLOURS), "style": len(STYLES)}
HEAT, CERTAIN = 0.4, 0.25  # least heat of a centre; least heat times the probability of what it is
APART = 0.45  # of two things nearer than this share of the smaller one's side the surer one stays


class Residual(nn.Module):
    """Two dilated convolutions around which the input passes."""

    def __init__(self, width: int, dilation: int) -> None:
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
    """Pictures [B, 3, 64, 64] in -1..1 to `PARTS` of every cell [B, n, 16, 16] and to backgrounds [B, 8]."""

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
        self.cells = nn.Conv2d(WIDTH, sum(PARTS.values()), 1)
        nn.init.constant_(self.cells.bias[:1], -3.0)  # hardly any cell is a centre
        self.background = nn.Linear(WIDTH, len(GROUNDS))

    def forward(self, pictures: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        features = self.trunk(pictures)
        parts = self.cells(features).float().split(list(PARTS.values()), 1)
        return dict(zip(PARTS, parts, strict=True)), self.background(features.mean((2, 3))).float()


@torch.no_grad()
def detect(detector: Detector, pictures: Tensor) -> list[Scene]:
    """What is in pictures [B, 3, 64, 64] in -1..1, items in reading order.

    A cell counts when its heat is the largest around and high enough. The style is what all items together
    show.
    """
    parts, backgrounds = detector(pictures.float())
    heat = parts["heat"][:, 0].sigmoid()
    chance = {part: parts[part].softmax(1) for part in ("thing", "paint", "style")}
    peaks = (F.max_pool2d(heat[:, None], 3, 1, 1)[:, 0] == heat) & (heat > HEAT)
    sure, thing = chance["thing"].max(1)
    peaks &= heat * sure >= CERTAIN
    found = []
    for i in range(len(pictures)):
        places = sorted(peaks[i].nonzero().tolist(), key=lambda place: -heat[i, place[0], place[1]].item())
        items: list[Item] = []
        written: list[Item] = []
        style = torch.zeros(len(STYLES))
        for row, column in places:
            name = THINGS[thing[i, row, column]]
            side = round(SIZE * min(0.75, max(0.2, parts["side"][i, 0, row, column].item())))
            paint = COLOURS[chance["paint"][i, :, row, column].argmax()]
            item = Item(name, round((column + 0.5) * CELL), round((row + 0.5) * CELL), side, paint)
            if any(touches(item, other) for other in (*items, *written)):
                continue
            if name in OBJECTS:
                items.append(item)
                style += chance["style"][i, :, row, column].clamp(min=1e-6).log()
            else:
                written.append(item)
        shown = STYLES[style.argmax()] if items else ""
        ground = GROUNDS[backgrounds[i].argmax()]
        found.append(Scene(shown, ground, in_reading_order(items), read(written)))
    return found


def touches(item: Item, other: Item) -> bool:
    """Whether two findings are one and the same thing."""
    return max(abs(item.x - other.x), abs(item.y - other.y)) <= APART * min(item.size, other.size)


def read(written: list[Item]) -> Word | None:
    """The word that letters make: those of the line with the most of them, from the left to the right."""
    lines: dict[int, list[Item]] = defaultdict(list)
    for letter in written:
        near = next((y for y in lines if abs(y - letter.y) <= letters.HEIGHT // 2), letter.y)
        lines[near].append(letter)
    if not lines:
        return None
    line = max(lines.values(), key=len)
    word = "".join(letter.name for letter in sorted(line, key=lambda letter: letter.x))
    return Word(word, round(sum(letter.y for letter in line) / len(line)))


def save(detector: Detector, path: Path) -> None:
    """Write the weights in float16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        n: t.half().contiguous() if t.is_floating_point() else t for n, t in detector.state_dict().items()
    }
    replace_file(lambda partial: save_file(tensors, partial, metadata={"objects": " ".join(OBJECTS)}), path)


def load(path: Path) -> Detector:
    """Read what `save` wrote.

    Raises:
        FileNotFoundError: there are no weights at `path`.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"the score's detector is not at {path}: train it with "
            "`python -m tbac_uniimage.training.nano.judge.train FOLDER`"
        )
    detector = Detector()
    detector.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()}, strict=True)
    return detector.eval()
