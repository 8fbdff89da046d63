"""Inputs of sampling that several nodes have."""

from __future__ import annotations

from comfy_api.latest import io

from .compat import ADVANCED
from .ladders import GAINS

MAX_GUIDANCE = 100.0
RECIPE, OFF = "recipe", "off"
FEW_STEPS = (OFF, "1", "2", "4", "8")
FEW_SOLVER = ("euler", "simple")  # simple steps along core's step_levels


def seed_input(tooltip: str) -> io.Int.Input:
    """A seed that the page may count up or draw anew."""
    return io.Int.Input(
        "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip=tooltip
    )


def guidance_input(name: str, default: float, tooltip: str) -> io.Float.Input:
    """A guidance scale."""
    return io.Float.Input(name, default=default, min=0.0, max=MAX_GUIDANCE, step=0.1, tooltip=tooltip)


def image_only_input() -> io.Conditioning.Input:
    """The branch with the picture and without the prompt."""
    return io.Conditioning.Input(
        "image_only",
        optional=True,
        tooltip="From Edit Conditions, or Multi-Layer MLLM Encode with pictures: adds guidance towards "
        "them, at one more evaluation a step. Without it, guidance alone steers prompt and pictures "
        "together.",
    )


def interval_inputs() -> list[io.Input]:
    """The part of the steps that is guided."""
    ends = (
        ("guidance_start", 0.0, "Steps before this part of them run without guidance, which is faster."),
        ("guidance_end", 1.0, "Steps from this part on run without guidance, which is faster; 1 = never."),
    )
    return [
        io.Float.Input(
            name, default=default, min=0.0, max=1.0, step=0.01, optional=True, tooltip=tooltip, **ADVANCED
        )
        for name, default, tooltip in ends
    ]


def interval_problem(start: float | None, end: float | None) -> str | None:
    """What is wrong with a guidance interval, in one sentence; None if nothing is, or an end is unknown."""
    if start is None or end is None or start < end:
        return None
    return f"guidance_start is {start} and guidance_end {end}; let it start before it ends."


def few_steps_input() -> io.Combo.Input:
    """Steps of a model with a LoRA for few, in place of those and of the guidance that stand above."""
    return io.Combo.Input(
        "few_steps",
        options=list(FEW_STEPS),
        default=OFF,
        optional=True,
        tooltip="For a model with a LoRA for few steps: so many steps of euler along the noise levels it was "
        "distilled to, without guidance, whatever stands above.",
    )


def gains_input() -> io.Input:
    """Gains made by Rung Gains."""
    return GAINS.Input(
        "gains",
        optional=True,
        tooltip="From Rung Gains: how loud every rung is. They take the place of the gains that the model "
        "brings along.",
    )
