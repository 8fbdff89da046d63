"""Memory of an edit in a small part of a large photograph: drawn in a crop, and drawn as a whole.

    python benchmarks/large_photograph.py [--model DIR]

Prints by how much the process grows at most while the pipeline edits, each way in a process of its own that
has loaded the model and edited once. The result and what is computed of picture and mask are in it: 12
megapixels are 36 MB in 8 bits, a mask of them 48 MB. Linux only, which tells a process its peak.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from process_costs import memory, reset_peak  # noqa: E402

NANO = ROOT / "assets" / "nano"
PART = 300  # pixels of the mask's sides in the photograph
MB = 1000**2


@dataclass(frozen=True)
class Way:
    """One way to edit.

    Attributes:
        size: width and height of the picture; None = the model's own.
        context: how much is drawn around the mask, None = the whole picture at the model's size.
        whole: the whole picture is drawn at its own size.
    """

    name: str
    size: tuple[int, int] | None
    context: float | None = None
    whole: bool = False


WAYS = [
    Way("4,000 x 3,000, crops", (4000, 3000), context=0.5),
    Way("4,000 x 3,000, whole at the model's size", (4000, 3000)),
    Way("the model's own size", None),
    Way("512 x 384, whole at its own size", (512, 384), whole=True),
    Way("1,024 x 768, whole at its own size", (1024, 768), whole=True),
]


def measure(way: Way, model: Path, steps: int) -> tuple[int, float]:
    """Bytes by which the process grows at most, and its CPU seconds."""
    import numpy as np
    import torch
    from PIL import Image
    from tbac_uniimage.core import LadderPipeline

    torch.set_num_threads(1)
    pipe = LadderPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    native = pipe.transformer.config.sample_size * pipe.vae_scale_factor
    size = way.size or (native, native)
    tile = Image.open(NANO.parent / "samples" / "tbac_uniimage_scene.png").convert("RGB")
    picture = Image.new("RGB", size)
    for left in range(0, size[0], tile.width):
        for top in range(0, size[1], tile.height):
            picture.paste(tile, (left, top))
    side = min(PART, native // 2) if way.size is None else min(PART, size[1] // 3)
    mask = np.zeros(size[::-1], bool)
    mask[size[1] // 2 :, size[0] // 2 :][:side, :side] = True
    options = {"width": size[0], "height": size[1]} if way.whole else {"context": way.context}

    def edit(picture: Image.Image, mask: np.ndarray, **options: object) -> Image.Image:
        return pipe("remove the cactus", picture, mask=mask, num_inference_steps=steps, **options).images[0]

    edit(tile, np.ones((tile.height, tile.width), bool))  # what libraries load once
    reset_peak()
    before, start = memory("VmRSS"), time.process_time()
    result = edit(picture, mask, **options)
    grown, seconds = memory("VmHWM") - before, time.process_time() - start
    assert (np.asarray(result)[~mask] == np.asarray(picture)[~mask]).all()
    return grown, seconds


def main() -> None:
    """Every way in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=NANO, metavar="DIR", help="default: the embedded model")
    parser.add_argument("--steps", type=int, default=2, metavar="N", help="default %(default)s")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    crops = None
    for way in WAYS:
        with context.Pool(1) as pool:
            grown, seconds = pool.apply(measure, (way, options.model, options.steps))
        crops = crops or grown
        print(f"{way.name:44} {grown / MB:8.0f} MB {grown / crops:7.2f} x {seconds:7.1f} s", flush=True)


if __name__ == "__main__":
    main()
