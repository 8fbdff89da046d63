"""Ladder Probe: what every rung carries, and where it looks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from .compat import Schema
from .inputs import guidance_input, image_only_input, seed_input
from .limits import check, problem

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

    from .autoencoder import LadderVAE

MOMENTS = {
    "whole run": (0.9, 0.7, 0.5, 0.3, 0.1),
    "early": (0.9,),
    "middle": (0.5,),
    "late": (0.1,),
}  # noise levels at which attention is read


class LadderProbe(io.ComfyNode):
    """The same picture with every rung muted in turn, and maps of attention."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's face."""
        return Schema(
            node_id="TBACUniImageProbe",
            display_name="Ladder Probe",
            category="TBAC-UniImage",
            description="Draws the picture once as it is and once with each rung muted, and shows where "
            "every rung looks. Takes as long as one picture more than there are rungs.",
            is_output_node=True,
            search_aliases=["attention map", "heatmap", "layer probe", "contact sheet", "xy plot", "ladder"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Model (TBAC-UniImage), or Rung Gains."),
                io.Vae.Input("vae", tooltip="From Load Model (TBAC-UniImage)."),
                io.Conditioning.Input("positive", tooltip="The prompt, with its picture when editing."),
                io.Conditioning.Input("negative", tooltip="What guidance steers away from."),
                io.Latent.Input("latent", tooltip="Sets the size; of a batch the first is probed."),
                seed_input("The same for all pictures, so that only the rung makes the difference."),
                io.Int.Input(
                    "steps", default=15, min=1, max=1000, tooltip="Steps per picture; few are enough to see."
                ),
                guidance_input("guidance", 4.5, "How strongly the prompt steers; 1 = no guidance."),
                guidance_input(
                    "image_guidance",
                    1.5,
                    "How strongly the input picture steers; only with image_only connected.",
                ),
                image_only_input(),
                io.Int.Input(
                    "query",
                    default=0,
                    min=0,
                    max=4096,
                    optional=True,
                    tooltip="Which query's attention to show. 0: where each rung looks elsewhere than on "
                    "average, and below it the two queries that tell places apart best.",
                ),
                io.Combo.Input(
                    "moment",
                    options=list(MOMENTS),
                    default="whole run",
                    optional=True,
                    tooltip="When attention is read: early steps decide the layout, late ones the details.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="muted", tooltip="Contact sheet: all rungs, then each one muted."
                ),
                io.Image.Output(
                    display_name="attention", tooltip="Contact sheet: where each rung, or the query, looks."
                ),
                io.Image.Output(
                    display_name="pictures", tooltip="The pictures of the first sheet, whole, as a batch."
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        guidance: float | None = None,
        image_guidance: float | None = None,
        query: int | None = None,
        moment: str | None = None,
    ) -> bool | str:
        """ComfyUI's own range check lets NaN pass."""
        return (
            problem(cls, guidance=guidance, image_guidance=image_guidance, query=query, moment=moment) or True
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        vae: LadderVAE,
        positive: list,
        negative: list,
        latent: dict,
        seed: int,
        steps: int,
        guidance: float,
        image_guidance: float,
        image_only: list | None = None,
        query: int = 0,
        moment: str = "whole run",
    ) -> io.NodeOutput:
        """Draw, read attention, lay both out."""
        import torch

        from . import probing
        from .display import from_pil

        check(
            cls,
            steps=steps,
            guidance=guidance,
            image_guidance=image_guidance,
            query=query,
            moment=moment,
        )
        probing.check_query(model, positive, query)
        latent = probing.first_of(latent)
        branches = (positive, negative, image_only)
        drawn = probing.draw_muted(model, branches, latent, seed, steps, (guidance, image_guidance))
        maps = probing.read_attention(model, positive, drawn[0], seed, MOMENTS[moment])
        pictures = torch.cat([vae.decode(result["samples"]) for result in drawn])
        muted = from_pil([probing.muted_sheet(pictures)])
        attention = from_pil([probing.attention_sheet(pictures[:1], maps, query, moment)])
        shown = ui.PreviewImage(torch.cat([muted, attention]), cls=cls)
        return io.NodeOutput(muted, attention, pictures, ui=shown)
