"""ComfyUI nodes. Only this package imports comfy; what needs diffusers or transformers loads on first use."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .asking import LadderAsk
from .changes import LadderChangeMap
from .conditioning import LadderEncode, LadderImageEdit
from .editing import LadderEdit
from .guider import LadderGuider
from .loading import LadderLoadModel
from .lora import LadderLoadLora
from .probe import LadderProbe
from .rungs import LadderRungGains, LadderRungMix
from .samples import place_samples
from .sampling import LadderEmptyLatent, LadderSampler, LadderScheduler
from .storing import LadderLoadConditioning, LadderSaveConditioning


class LadderExtension(ComfyExtension):
    """The pack, as ComfyUI's V3 protocol wants it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of the pack."""
        place_samples()
        return [
            LadderLoadModel,
            LadderLoadLora,
            LadderEncode,
            LadderAsk,
            LadderEdit,
            LadderChangeMap,
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
