"""Rung Gains and Rung Mix: louder and quieter rungs, and the rungs of two prompts in one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from .compat import Schema
from .display import from_pil
from .ladders import GAINS, gains_of, ladder_of, mix_conditioning, with_gains
from .limits import check, problem

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


class LadderRungGains(io.ComfyNode):
    """How much every block of the model listens to the prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's face."""
        return Schema(
            node_id="TBACUniImageRungGains",
            display_name="Rung Gains",
            category="TBAC-UniImage",
            description="An equaliser for the ladder: how loud each rung, that is what one layer of the "
            "language model tells one block of the diffusion model, is heard. The chart shows what is in "
            "force.",
            search_aliases=["layer weights", "block weights", "equalizer", "attention strength", "ladder"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Model (TBAC-UniImage), or another Rung Gains."),
                io.Combo.Input(
                    "preset",
                    options=["even", "layout", "subject", "detail"],
                    default="even",
                    tooltip="Which part of the ladder amount changes: layout the first third of the rungs, "
                    "subject the middle, detail the last; even none. Ladder Probe shows what they do.",
                ),
                io.Float.Input(
                    "amount",
                    default=0.5,
                    min=-1.0,
                    max=4.0,
                    step=0.05,
                    tooltip="Added to the gains of that part: -1 mutes it, 0 changes nothing, 1 doubles it.",
                ),
                io.String.Input(
                    "curve",
                    default="",
                    multiline=True,
                    placeholder="1, 1.2, 0.8   or   3: 0, 5-8: 1.3",
                    optional=True,
                    tooltip="Multiplies the preset. Numbers from 0 (mute) to 10, drawn as a curve from the "
                    "first rung to the last, as many as you like: '1.2, 1, 0.8'. Or single rungs, the "
                    "others stay 1: '3: 0, 5-8: 1.3'. Empty: 1 everywhere.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The same model with these gains, for any sampler or guider.",
                ),
                GAINS.Output(
                    display_name="gains", tooltip="For the gains input of Ladder Sampler or Ladder Guider."
                ),
                io.Image.Output(display_name="chart", tooltip="The gains as a picture."),
            ],
        )

    @classmethod
    def validate_inputs(cls, preset: str | None = None, amount: float | None = None) -> bool | str:
        """ComfyUI's own range check lets NaN pass."""
        return problem(cls, preset=preset, amount=amount) or True

    @classmethod
    def execute(cls, model: ModelPatcher, preset: str, amount: float, curve: str = "") -> io.NodeOutput:
        """Preset times curve times what the model had before."""
        from ..core.rungs import check_gains, parse_curve, preset_gains
        from ..core.sheets import draw_gains

        check(cls, preset=preset, amount=amount)
        rungs = ladder_of(model).rungs
        factors = preset_gains(preset, amount, rungs), parse_curve(curve, rungs), gains_of(model)
        gains = tuple(a * b * c for a, b, c in zip(*factors, strict=True))
        check_gains(gains, rungs)
        chart = from_pil([draw_gains(gains, f"gain of each of {rungs} rungs")])
        return io.NodeOutput(with_gains(model, gains), gains, chart, ui=ui.PreviewImage(chart, cls=cls))


class LadderRungMix(io.ComfyNode):
    """Structure of this, style of that."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's face."""
        return Schema(
            node_id="TBACUniImageRungMix",
            display_name="Rung Mix",
            category="TBAC-UniImage",
            description="Takes the first rungs from one conditioning and the rest from another: the "
            "structure of this, the style of that.",
            search_aliases=["prompt mixing", "style transfer", "blend", "layer mix", "crossover", "ladder"],
            inputs=[
                io.Model.Input("model", tooltip="Says how many rungs there are; it is not changed."),
                io.Conditioning.Input("structure", tooltip="A: the first rungs are taken from here."),
                io.Conditioning.Input(
                    "style", tooltip="B: the other rungs. Its mask and timestep range are kept."
                ),
                io.Float.Input(
                    "crossover",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Part of the ladder that structure has: 1 = structure alone, 0 = style alone.",
                ),
                io.Float.Input(
                    "softness",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="Part of the ladder over which the two are blended; 0 = a clean cut.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="conditioning", tooltip="For any sampler or guider.")
            ],
        )

    @classmethod
    def validate_inputs(cls, crossover: float | None = None, softness: float | None = None) -> bool | str:
        """ComfyUI's own range check lets NaN pass."""
        return problem(cls, crossover=crossover, softness=softness) or True

    @classmethod
    def execute(
        cls, model: ModelPatcher, structure: list, style: list, crossover: float, softness: float = 0.0
    ) -> io.NodeOutput:
        """Mix rung by rung."""
        from ..core.rungs import crossover_weights

        check(cls, crossover=crossover, softness=softness)
        ladder = ladder_of(model)
        weights = crossover_weights(ladder.rungs, crossover, softness)
        return io.NodeOutput(mix_conditioning(ladder, structure, style, weights))
