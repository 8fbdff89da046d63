"""Change Map: where an instruction changes a picture, as a mask, as a map and as a picture to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from .compat import Schema
from .conditioning import further_pictures
from .edit_inputs import as_mapped, check_requests, check_same_model, further_groups, picture_groups
from .loading import MLLM

if TYPE_CHECKING:
    import torch
    from comfy.model_patcher import ModelPatcher

    from .autoencoder import LadderVAE
    from .mllm import LadderMLLM


class LadderChangeMap(io.ComfyNode):
    """What an edit would change, before it is drawn."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's face."""
        return Schema(
            node_id="TBACUniImageChangeMap",
            display_name="Change Map (TBAC-UniImage)",
            category="TBAC-UniImage",
            description="Shows where an instruction changes a picture, before anything is drawn. Image Edit "
            "with its mask automatic uses the same mask.",
            is_output_node=True,
            search_aliases=["auto mask", "change mask", "edit mask", "diffedit", "segment", "heatmap"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Model (TBAC-UniImage), with or without LoRA."),
                MLLM.Input("mllm", tooltip="From the same Load Model."),
                io.Vae.Input("vae", tooltip="From the same Load Model."),
                io.Image.Input("image", tooltip="What would be edited, one picture or a batch."),
                io.String.Input(
                    "instruction",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What to change, as a sentence: 'make the cat blue'.",
                ),
                *further_pictures(),
                io.String.Input(
                    "negative_prompt",
                    default="",
                    multiline=True,
                    dynamic_prompts=True,
                    optional=True,
                    tooltip="What Image Edit would steer away from; usually empty.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="mask",
                    tooltip="Where the picture may change (1), of its size. For Image Edit, as it is or "
                    "after stock mask nodes.",
                ),
                io.Mask.Output(
                    display_name="map",
                    tooltip="How much each part changes, 1 = most, for a threshold of your own "
                    "(ThresholdMask).",
                ),
                io.Image.Output(
                    display_name="picture", tooltip="The map over the picture, with the mask's outline."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        mllm: LadderMLLM,
        vae: LadderVAE,
        image: torch.Tensor,
        instruction: str,
        image_2: torch.Tensor | None = None,
        image_3: torch.Tensor | None = None,
        image_4: torch.Tensor | None = None,
        negative_prompt: str = "",
    ) -> io.NodeOutput:
        """Check everything; then encode, compare, and show."""
        from torch.nn.functional import interpolate

        from ..core.editing import check_pictures
        from ..core.sheets import change_overlay
        from .display import from_pil
        from .edit_sampling import encode_edits, find_masks

        size = check_same_model(model, mllm, vae)
        check_pictures("image", image)
        groups = picture_groups(image, further_groups(len(image), image_2, image_3, image_4))
        check_requests(instruction, groups, negative_prompt)
        seen = as_mapped(groups, size)
        conditions = encode_edits(mllm, instruction, seen, negative_prompt, branches=2)
        masks, maps = find_masks(model, vae, image, seen, conditions, size)
        of_each = zip(groups, maps, masks, strict=True)
        pictures = from_pil([change_overlay(group[0], change, mask) for group, change, mask in of_each])
        large = interpolate(maps[:, None], image.shape[1:3], mode="bilinear")[:, 0].to(image.device)
        return io.NodeOutput(masks, large, pictures, ui=ui.PreviewImage(pictures, cls=cls))
