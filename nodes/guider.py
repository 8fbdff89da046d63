"""Ladder Guider: separate guidance for the lower, middle and upper rungs, for SamplerCustomAdvanced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from .compat import ADVANCED, Schema
from .inputs import gains_input, guidance_input, image_only_input, interval_inputs, interval_problem
from .limits import problem

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


def bound_input(name: str, default: float, tooltip: str) -> io.Float.Input:
    """A place on the ladder."""
    return io.Float.Input(
        name, default=default, min=0.0, max=1.0, step=0.01, optional=True, tooltip=tooltip, **ADVANCED
    )


class LadderGuider(io.ComfyNode):
    """Guidance of rung groups."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's face."""
        return Schema(
            node_id="TBACUniImageGuider",
            display_name="Ladder Guider",
            category="TBAC-UniImage",
            description="Guidance for SamplerCustomAdvanced that may be strong where the layout is decided "
            "and gentle in the details, or the other way round. Equal guidance everywhere is CFGGuider, "
            "or DualCFGGuider with image_only.",
            search_aliases=["guider", "cfg", "dual cfg", "per layer guidance", "cfg rescale", "ladder"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Model (TBAC-UniImage)."),
                io.Conditioning.Input("positive", tooltip="The prompt, with its picture when editing."),
                io.Conditioning.Input("negative", tooltip="What guidance steers away from."),
                guidance_input("layout", 4.5, "Guidance of the prompt on the first rungs; 1 = none."),
                guidance_input("subject", 4.5, "Guidance of the prompt on the middle rungs; 1 = none."),
                guidance_input("detail", 4.5, "Guidance of the prompt on the last rungs; 1 = none."),
                guidance_input(
                    "image_guidance",
                    1.5,
                    "How strongly the input picture steers; only with image_only connected.",
                ),
                image_only_input(),
                bound_input("layout_until", 0.33, "Part of the ladder at which subject begins."),
                bound_input(
                    "subject_until",
                    0.67,
                    "Part of the ladder at which detail begins; not below layout_until.",
                ),
                *interval_inputs(),
                gains_input(),
            ],
            outputs=[
                io.Guider.Output(
                    display_name="guider",
                    tooltip="For SamplerCustomAdvanced. One more evaluation a step for every difference "
                    "between neighbouring groups.",
                )
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        layout: float | None = None,
        subject: float | None = None,
        detail: float | None = None,
        image_guidance: float | None = None,
        layout_until: float | None = None,
        subject_until: float | None = None,
        guidance_start: float | None = None,
        guidance_end: float | None = None,
    ) -> bool | str:
        """ComfyUI's own range check lets NaN pass."""
        found = problem(
            cls,
            layout=layout,
            subject=subject,
            detail=detail,
            image_guidance=image_guidance,
            layout_until=layout_until,
            subject_until=subject_until,
            guidance_start=guidance_start,
            guidance_end=guidance_end,
        )
        if found is None and None not in (layout_until, subject_until) and layout_until > subject_until:
            found = f"layout_until is {layout_until} and subject_until {subject_until}; let them rise."
        return found or interval_problem(guidance_start, guidance_end) or True

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        positive: list,
        negative: list,
        layout: float,
        subject: float,
        detail: float,
        image_guidance: float,
        image_only: list | None = None,
        layout_until: float = 0.33,
        subject_until: float = 0.67,
        guidance_start: float = 0.0,
        guidance_end: float = 1.0,
        gains: tuple[float, ...] | None = None,
    ) -> io.NodeOutput:
        """Set up the guider."""
        from ..core.rungs import group_rungs
        from .guidance import LadderGuidance
        from .ladders import ladder_of, with_gains

        bounds, interval = (layout_until, subject_until), (guidance_start, guidance_end)
        found = cls.validate_inputs(layout, subject, detail, image_guidance, *bounds, *interval)
        if found is not True:
            raise ValueError(found)
        groups = group_rungs(ladder_of(model).rungs, bounds)
        text = [(layout, subject, detail)[group] for group in groups]
        guider = LadderGuidance(model if gains is None else with_gains(model, gains))
        guider.set_ladder(positive, negative, image_only, text, image_guidance, interval)
        return io.NodeOutput(guider)
