"""Draw ``docs/images/edits_auto_mask.jpg``: edits with the change map between source and result.

The first edits of every kind of a held-out seed, none picked, as ``tbac-uniimage score --only auto`` draws
them; a green frame means that the judge counts it. Needs the drawings that `make score` fetches.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tbac_uniimage.core import LadderPipeline
from tbac_uniimage.core.change_map import changed_cells, mask_of_cells
from tbac_uniimage.core.sheets import change_overlay
from tbac_uniimage.training.nano.domain.render import render
from tbac_uniimage.training.nano.judge import detector
from tbac_uniimage.training.nano.judge.pictures import see
from tbac_uniimage.training.nano.judge.verdicts import follows_edit
from tbac_uniimage.training.nano.score import cases, drawing
from tbac_uniimage.training.nano.score.command import EMBEDDED, JUDGE
from tbac_uniimage.training.nano.score.sheet import TALL, Tile, beside, sheet

FILE = Path(__file__).resolve().parent.parent / "docs" / "images" / "edits_auto_mask.jpg"
SEED, EACH, STEPS, GUIDANCE = 3, 4, 20, 2.0


def tile(pipe: LadderPipeline, case: cases.Case, eye: torch.nn.Module) -> Tile:
    """Source, its change map and the result of one edit."""
    edit = case.asked
    source = Image.fromarray(render(edit.source, pipe.transformer.config.sample_size * pipe.vae_scale_factor))
    seed = drawing.Job(case, 0).noise_seed
    result = pipe(
        edit.text,
        source,
        guidance_scale=GUIDANCE,
        image_guidance_scale=GUIDANCE,
        num_inference_steps=STEPS,
        mask="auto",
        generator=torch.Generator().manual_seed(seed),
    ).images[0]
    change = pipe.change_map(edit.text, source).maps[0]
    large = source.resize((TALL, TALL), Image.Resampling.LANCZOS)
    overlay = change_overlay(large, change, mask_of_cells(changed_cells(change), TALL, TALL))
    shown = (
        np.asarray(each.resize((TALL, TALL), Image.Resampling.BICUBIC)) for each in (large, overlay, result)
    )
    return Tile(beside(*shown), edit.text, "", follows_edit(see(eye, [np.asarray(result)])[0], edit))


def main() -> None:
    """Draw them and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FILE)
    options = parser.parse_args()
    pipe = LadderPipeline.from_pretrained(EMBEDDED)
    pipe.set_progress_bar_config(disable=True)
    eye = detector.load(JUDGE)
    sections = []
    for kind in cases.GROUPS["edit"]:
        tiles = [tile(pipe, case, eye) for case in cases.collect(kind, [SEED], EACH)]
        sections.append((kind.removeprefix("edit-"), tiles))
        print(kind, [each.passed for each in tiles], flush=True)
    sheet(sections).save(options.out, quality=85, optimize=True)
    print(options.out)


if __name__ == "__main__":
    main()
