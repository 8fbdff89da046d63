"""ComfyUI nodes. Only this package imports comfy; what needs diffusers or transformers loads on first use."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import folder_paths
from comfy_api.latest import ComfyExtension, io

from .asking import LadderAsk
from .conditioning import LadderEncode, LadderImageEdit
from .editing import LadderEdit
from .guider import LadderGuider
from .loading import LadderLoadModel
from .probe import LadderProbe
from .rungs import LadderRungGains, LadderRungMix
from .sampling import LadderEmptyLatent, LadderSampler, LadderScheduler
from .storing import LadderLoadConditioning, LadderSaveConditioning


class LadderExtension(ComfyExtension):
    """The pack, as ComfyUI's V3 protocol wants it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of the pack."""
        place_sample_picture()
        return [
            LadderLoadModel,
            LadderEncode,
            LadderAsk,
            LadderEdit,
            LadderImageEdit,
            LadderEmptyLatent,
            LadderSampler,
            LadderScheduler,
            LadderGuider,
            LadderRungGains,
            LadderRungMix,
            LadderProbe,
            LadderSaveConditioning,
            LadderLoadConditioning,
        ]


def place_sample_picture() -> None:
    """Put the edit template's picture among ComfyUI's input pictures, so that the template runs as it is."""
    name = "tbac_uniimage_scene.png"
    source = Path(__file__).resolve().parent.parent / "assets" / "samples" / name
    target = Path(folder_paths.get_input_directory()) / name
    try:
        if target.exists() and target.read_bytes() == source.read_bytes():
            return
        partial = target.with_suffix(".partial")
        shutil.copyfile(source, partial)
        partial.replace(target)
    except OSError as error:  # a read-only input folder must not keep the nodes from loading
        logging.warning("TBAC-UniImage: the sample picture was not placed: %s", error)
