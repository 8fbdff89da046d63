"""Empty Ladder Latent, Ladder Sampler and Ladder Scheduler."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from comfy_api.latest import io

if TYPE_CHECKING:
    import torch
    from comfy.model_patcher import ModelPatcher

    from .mllm import LatentSize

MAX_GUIDANCE = 100.0


def latent_size(model: ModelPatcher) -> LatentSize:
    """How pixels and latents of one of our models relate. Raises ValueError for another kind of MODEL."""
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
                step=8,
                tooltip=f"{name.capitalize()} in pixels, a multiple of the model's factor (8 for nano, 32 "
                "for the released model). 0 = the size that the model was trained at.",
            )
            for name in ("width", "height")
        ]
        batch = io.Int.Input("batch_size", default=1, min=1, max=256, tooltip="How many pictures to draw.")
        return io.Schema(
            node_id="TBACUniImageEmptyLatent",
            display_name="Empty Ladder Latent",
            category="TBAC-UniImage",
            description="An empty latent with the channels and the compression of the connected model.",
            inputs=[io.Model.Input("model", tooltip="From Load Model (TBAC-UniImage)."), *sides, batch],
            outputs=[io.Latent.Output(display_name="latent", tooltip="For any sampler.")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, width: int, height: int, batch_size: int) -> io.NodeOutput:
        """Zeros of the right shape."""
        size = latent_size(model)
        return io.NodeOutput(size.empty_latent(width or size.native, height or size.native, batch_size))


class LadderSampler(io.ComfyNode):
    """The published sampling recipe in one node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's face."""
        return io.Schema(
            node_id="TBACUniImageSampler",
            display_name="Ladder Sampler",
            category="TBAC-UniImage",
            description="Samples with the published recipe (DPM-Solver++ 2M, flow sigmas, shift 3). Connect "
            "image_only for an edit with image guidance.",
            inputs=[
                io.Model.Input("model", tooltip="From Load Model (TBAC-UniImage), with or without LoRA."),
                io.Conditioning.Input("positive", tooltip="The prompt, with its picture when editing."),
                io.Conditioning.Input("negative", tooltip="What guidance steers away from."),
                io.Latent.Input(
                    "latent", tooltip="Sets size and batch: Empty Ladder Latent, or Image Edit's."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The same seed gives the same picture.",
                ),
                io.Int.Input(
                    "steps", default=30, min=1, max=1000, tooltip="Denoising steps; 30 is the recipe."
                ),
                io.Float.Input(
                    "guidance",
                    default=4.5,
                    min=0.0,
                    max=MAX_GUIDANCE,
                    step=0.1,
                    tooltip="How strongly the prompt steers; 1 = no guidance.",
                ),
                io.Float.Input(
                    "image_guidance",
                    default=1.5,
                    min=0.0,
                    max=MAX_GUIDANCE,
                    step=0.1,
                    tooltip="How strongly the input picture steers; only with image_only connected.",
                ),
                io.Conditioning.Input(
                    "image_only",
                    optional=True,
                    tooltip="From Image Edit: adds guidance towards the input picture, at three evaluations "
                    "a step.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="For VAE Decode.")],
        )

    @classmethod
    def validate_inputs(cls, guidance: float, image_guidance: float) -> bool | str:
        """ComfyUI's own range check lets NaN pass."""
        for name, value in (("guidance", guidance), ("image_guidance", image_guidance)):
            if value is not None and not (math.isfinite(value) and 0 <= value <= MAX_GUIDANCE):
                return f"{name} is {value}; give a number from 0 to {MAX_GUIDANCE:g}, 1 for no guidance."
        return True

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
    ) -> io.NodeOutput:
        """Sample with ComfyUI's guiders, previews, progress and interrupts."""
        import comfy.model_management
        import comfy.sample
        import comfy.utils
        import latent_preview
        from comfy.samplers import CFGGuider
        from comfy_extras.nodes_custom_sampler import Guider_DualCFG

        from .solver import recipe_sampler, recipe_sigmas

        samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
        check_batch(samples, positive, negative, image_only or [])
        if image_only is None:
            guider = CFGGuider(model)
            guider.set_conds(positive, negative)
            guider.set_cfg(guidance)
        else:
            guider = Guider_DualCFG(model)
            guider.set_conds(positive, image_only, negative)
            guider.set_cfg(guidance, image_guidance)
        noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
        result = guider.sample(
            noise,
            samples,
            recipe_sampler(),
            recipe_sigmas(steps),
            denoise_mask=latent.get("noise_mask"),
            callback=latent_preview.prepare_callback(model, steps),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )
        result = result.to(comfy.model_management.intermediate_device())
        return io.NodeOutput({**latent, "samples": result})


def check_batch(samples: torch.Tensor, *conditionings: list) -> None:
    """Raise ValueError unless every conditioning has one row, or one for each latent."""
    for conditioning in conditionings:
        for states, _ in conditioning:
            if len(states) not in (1, len(samples)):
                raise ValueError(
                    f"A conditioning has {len(states)} rows for a batch of {len(samples)} latents; give one "
                    "row, or one for each latent."
                )


class LadderScheduler(io.ComfyNode):
    """The recipe's noise levels and solver for stock samplers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's face."""
        return io.Schema(
            node_id="TBACUniImageScheduler",
            display_name="Ladder Scheduler",
            category="TBAC-UniImage",
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

        return io.NodeOutput(recipe_sigmas(steps), recipe_sampler())
