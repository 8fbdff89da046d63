"""Empty Ladder Latent, Ladder Sampler and Ladder Scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from .compat import Schema
from .inputs import (
    FEW_SOLVER,
    OFF,
    RECIPE,
    few_steps_input,
    gains_input,
    guidance_input,
    image_only_input,
    interval_inputs,
    interval_problem,
    seed_input,
)
from .limits import check, problem

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

    from .mllm import LatentSize


def latent_size(model: ModelPatcher) -> LatentSize:
    """How pixels and latents of one of our models relate. Raises ValueError for another kind of MODEL."""
    if not hasattr(model, "get_model_object"):
        raise ValueError(f"model is of the type {type(model).__name__}; connect Load Model (TBAC-UniImage).")
    size = getattr(model.get_model_object("latent_format"), "size", None)
    if size is None:
        raise ValueError("The model is not a TBAC-UniImage model; connect Load Model (TBAC-UniImage).")
    return size


class LadderEmptyLatent(io.ComfyNode):
    """An empty latent that fits the model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's face."""
        sides = [
            io.Int.Input(
                name,
                default=0,
                min=0,
                max=8192,
                step=32,  # fits the released model and nano, which would also take multiples of 16
                tooltip=f"{name.capitalize()} in pixels, a multiple of the model's factor (16 for nano, 32 "
                "for the released model). 0 = the size that the model was trained at.",
            )
            for name in ("width", "height")
        ]
        batch = io.Int.Input("batch_size", default=1, min=1, max=256, tooltip="How many pictures to draw.")
        return Schema(
            node_id="TBACUniImageEmptyLatent",
            display_name="Empty Ladder Latent",
            category="TBAC-UniImage",
            search_aliases=["empty latent image", "size", "resolution", "uniimage"],
            description="An empty latent with the channels and the compression of the connected model.",
            inputs=[io.Model.Input("model", tooltip="From Load Model (TBAC-UniImage)."), *sides, batch],
            outputs=[io.Latent.Output(display_name="latent", tooltip="For any sampler.")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, width: int, height: int, batch_size: int) -> io.NodeOutput:
        """Zeros of the right shape."""
        check(cls, width=width, height=height, batch_size=batch_size)
        size = latent_size(model)
        return io.NodeOutput(size.empty_latent(width or size.native, height or size.native, batch_size))


class LadderSampler(io.ComfyNode):
    """The published sampling recipe in one node, and everything that may be changed about it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's face."""
        from comfy.samplers import KSampler

        return Schema(
            node_id="TBACUniImageSampler",
            display_name="Ladder Sampler",
            category="TBAC-UniImage",
            description="Samples with the published recipe (DPM-Solver++ 2M, flow sigmas, shift 3) or any "
            "sampler of ComfyUI. Connect image_only for an edit with image guidance.",
            search_aliases=["ksampler", "sampler", "cfg", "dual cfg", "guidance interval", "uniimage"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Model (TBAC-UniImage), with or without LoRA."),
                io.Conditioning.Input("positive", tooltip="The prompt, with its picture when editing."),
                io.Conditioning.Input("negative", tooltip="What guidance steers away from."),
                io.Latent.Input(
                    "latent", tooltip="Sets size and batch: Empty Ladder Latent, or VAE Encode with denoise."
                ),
                seed_input("The same seed gives the same picture."),
                io.Int.Input(
                    "steps", default=30, min=1, max=1000, tooltip="Denoising steps; 30 is the recipe."
                ),
                guidance_input("guidance", 4.5, "How strongly the prompt steers; 1 = no guidance."),
                guidance_input(
                    "image_guidance",
                    1.5,
                    "How strongly the input picture steers; only with image_only connected.",
                ),
                image_only_input(),
                io.Combo.Input(
                    "sampler",
                    options=[RECIPE, *KSampler.SAMPLERS],
                    default=RECIPE,
                    optional=True,
                    tooltip="recipe: DPM-Solver++ 2M exactly as in the Python pipeline. The others are those "
                    "of KSampler.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=[RECIPE, *KSampler.SCHEDULERS],
                    default=RECIPE,
                    optional=True,
                    tooltip="recipe: flow sigmas of shift 3, as in the Python pipeline. The others are those "
                    "of KSampler.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Below 1, sampling starts from the latent's own picture with so much noise on "
                    "it; 0 returns it as it is.",
                ),
                *interval_inputs(),
                gains_input(),
                few_steps_input(),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="For VAE Decode.")],
        )

    @classmethod
    def validate_inputs(
        cls,
        guidance: float | None = None,
        image_guidance: float | None = None,
        sampler: str | None = None,
        scheduler: str | None = None,
        denoise: float | None = None,
        guidance_start: float | None = None,
        guidance_end: float | None = None,
        few_steps: str | None = None,
    ) -> bool | str:
        """ComfyUI's own range check lets NaN pass."""
        found = problem(
            cls,
            guidance=guidance,
            image_guidance=image_guidance,
            sampler=sampler,
            scheduler=scheduler,
            denoise=denoise,
            guidance_start=guidance_start,
            guidance_end=guidance_end,
            few_steps=few_steps,
        )
        return found or interval_problem(guidance_start, guidance_end) or True

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        positive: list,
        negative: list,
        latent: dict,
        seed: int,
        steps: int,
        guidance: float,
        image_guidance: float,
        image_only: list | None = None,
        sampler: str = RECIPE,
        scheduler: str = RECIPE,
        denoise: float = 1.0,
        guidance_start: float = 0.0,
        guidance_end: float = 1.0,
        gains: tuple[float, ...] | None = None,
        few_steps: str = OFF,
    ) -> io.NodeOutput:
        """Sample with ComfyUI's guiders, previews, progress and interrupts."""
        from .guidance import LadderGuidance, choose_sampler, choose_sigmas, sample_latent
        from .ladders import ladder_of, with_gains

        found = cls.validate_inputs(
            guidance, image_guidance, sampler, scheduler, denoise, guidance_start, guidance_end, few_steps
        )
        if found is not True:
            raise ValueError(found)
        check(cls, steps=steps)
        if few_steps != OFF:
            steps, guidance, image_only = int(few_steps), 1.0, None
            sampler, scheduler = FEW_SOLVER
        ladder = ladder_of(model)
        guider = LadderGuidance(model if gains is None else with_gains(model, gains))
        interval = (guidance_start, guidance_end)
        text = [guidance] * ladder.rungs
        guider.set_ladder(positive, negative, image_only, text, image_guidance, interval)
        check_batch(latent, positive, negative, image_only or [])
        sigmas = choose_sigmas(model, sampler, scheduler, steps, denoise)
        return io.NodeOutput(sample_latent(guider, latent, seed, choose_sampler(sampler), sigmas))


def check_batch(latent: dict, *conditionings: list) -> None:
    """Raise ValueError for what is no LATENT, and unless each conditioning has one row, or one a latent."""
    if not isinstance(latent, dict) or "samples" not in latent:
        raise ValueError(
            f"latent is of the type {type(latent).__name__}; connect Empty Ladder Latent or VAE Encode."
        )
    count = latent["samples"].shape[0]
    for conditioning in conditionings:
        for states, _ in conditioning:
            if len(states) not in (1, count):
                raise ValueError(
                    f"A conditioning has {len(states)} rows for a batch of {count} latents; give one row, or "
                    "one for each latent."
                )


class LadderScheduler(io.ComfyNode):
    """The recipe's noise levels and solver for stock samplers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's face."""
        return Schema(
            node_id="TBACUniImageScheduler",
            display_name="Ladder Scheduler",
            category="TBAC-UniImage",
            search_aliases=["sigmas", "scheduler", "dpm++", "flow shift", "uniimage"],
            description="The published recipe for SamplerCustomAdvanced: its noise levels and its solver.",
            inputs=[
                io.Int.Input(
                    "steps", default=30, min=1, max=1000, tooltip="Denoising steps; 30 is the recipe."
                )
            ],
            outputs=[
                io.Sigmas.Output(display_name="sigmas", tooltip="For SamplerCustomAdvanced."),
                io.Sampler.Output(display_name="sampler", tooltip="For SamplerCustomAdvanced."),
            ],
        )

    @classmethod
    def execute(cls, steps: int) -> io.NodeOutput:
        """Sigmas and sampler."""
        from .solver import recipe_sampler, recipe_sigmas

        check(cls, steps=steps)
        return io.NodeOutput(recipe_sigmas(steps), recipe_sampler())
