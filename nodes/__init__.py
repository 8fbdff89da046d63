"""ComfyUI nodes. Only this package imports comfy; what needs diffusers or transformers loads on first use."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .conditioning import LadderEncode, LadderImageEdit
from .loading import LadderLoadModel
from .sampling import LadderEmptyLatent, LadderSampler, LadderScheduler


class LadderExtension(ComfyExtension):
    """The pack, as ComfyUI's V3 protocol wants it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of the pack."""
        return [
            LadderLoadModel,
            LadderEncode,
            LadderImageEdit,
            LadderEmptyLatent,
            LadderSampler,
            LadderScheduler,
        ]
