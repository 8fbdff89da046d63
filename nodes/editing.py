"""Image Edit: pictures and an instruction become edited pictures, in one node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from . import limits
from .compat import Schema
from .conditioning import further_pictures
from .edit_inputs import as_mapped, check_requests, check_same_model, further_groups, picture_groups
from .inputs import FEW_SOLVER, OFF, RECIPE, few_steps_input, guidance_input, seed_input
from .loading import MLLM

if TYPE_CHECKING:
    import torch
    from comfy.model_patcher import ModelPatcher

    from .autoencoder import LadderVAE
    from .mllm import LadderMLLM

MAX_FEATHER = 128
CONTEXT, MAX_CONTEXT = 0.5, 100.0  # the first is that of core.crops, which would import torch
CONNECTED, AUTOMATIC, NONE = "as connected", "automatic", "none"


class LadderEdit(io.ComfyNode):
    """Edits pictures by an instruction, whole or inside a mask."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's face."""
        return Schema(
            node_id="TBACUniImageEditPicture",
            display_name="Image Edit (TBAC-UniImage)",
            category="TBAC-UniImage",
            description="Edits a picture by an instruction. The result has the picture's size and lies "
            "exactly over it; with a mask, every pixel outside the mask stays bit for bit. A batch is edited "
            "picture by picture.",
            search_aliases=["image edit", "instruct edit", "inpaint", "edit by instruction", "uniimage edit"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Model (TBAC-UniImage), with or without LoRA."),
                MLLM.Input("mllm", tooltip="From the same Load Model."),
                io.Vae.Input("vae", tooltip="From the same Load Model."),
                io.Image.Input(
                    "image",
                    tooltip="What to edit. Each picture of a batch is edited by itself and comes out as if "
                    "it were alone. Alpha is kept.",
                ),
                io.String.Input(
                    "instruction",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What to change, as a sentence: 'make the cat blue'. Plain text: weights and "
                    "control tokens have no meaning.",
                ),
                seed_input("The same seed gives the same result; the pictures of a batch share its noise."),
                io.Int.Input(
                    "steps", default=30, min=1, max=1000, tooltip="Denoising steps; 30 is the recipe."
                ),
                guidance_input("guidance", 4.5, "How strongly the instruction steers; 1 = no text guidance."),
                guidance_input(
                    "image_guidance",
                    1.5,
                    "How strongly the input picture steers. 1 = no image guidance, and two evaluations a "
                    "step instead of three.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="1 = drawn anew from noise. Less starts from the picture itself, so that more of "
                    "it stays where it is. 0 = no edit, only through the autoencoder and back.",
                ),
                io.Int.Input(
                    "feather",
                    default=8,
                    min=0,
                    max=MAX_FEATHER,
                    tooltip="Width in pixels of the seam. It lies inside the mask; outside nothing changes. "
                    "0 = hard edge.",
                ),
                io.Int.Input(
                    "side",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="Pixel budget. 0 = drawn at about as many pixels as the model was trained at. "
                    "Otherwise drawn at the picture's own size, or with side x side pixels if it is larger. "
                    "The result has the picture's size in any case.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the picture may change (1) and where not (0): one for all pictures, or "
                    "one for each.",
                ),
                *further_pictures(),
                io.String.Input(
                    "negative_prompt",
                    default="",
                    multiline=True,
                    dynamic_prompts=True,
                    optional=True,
                    tooltip="What to steer away from; usually empty.",
                ),
                io.Combo.Input(
                    "mask_from",
                    options=[CONNECTED, AUTOMATIC, NONE],
                    default=CONNECTED,
                    optional=True,
                    tooltip="As connected: the mask that is connected, if there is one. Automatic: the model "
                    "finds where the instruction changes the picture, as Change Map shows it, and what it "
                    "only drew again stays. None: the whole picture may change.",
                ),
                io.Float.Input(
                    "context",
                    default=CONTEXT,
                    min=0.0,
                    max=MAX_CONTEXT,
                    step=0.1,
                    optional=True,
                    tooltip="With a mask: how much around it is cut out, drawn at the model's size and laid "
                    "in, on every side as a share of the mask's longer side. Parts of a mask that lie apart "
                    "are drawn one by one. Much draws the whole picture.",
                ),
                few_steps_input(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image", tooltip="Of the size and number of the input pictures."
                ),
                io.Mask.Output(
                    display_name="mask", tooltip="Where each picture could change, for another attempt."
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        seed: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        image_guidance: float | None = None,
        strength: float | None = None,
        feather: int | None = None,
        side: int | None = None,
        context: float | None = None,
        few_steps: str | None = None,
    ) -> bool | str:
        """ComfyUI's own range check lets NaN pass."""
        found = limits.problem(
            cls,
            seed=seed,
            steps=steps,
            guidance=guidance,
            image_guidance=image_guidance,
            strength=strength,
            feather=feather,
            side=side,
            context=context,
            few_steps=few_steps,
        )
        return found or True

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        mllm: LadderMLLM,
        vae: LadderVAE,
        image: torch.Tensor,
        instruction: str,
        seed: int,
        steps: int,
        guidance: float,
        image_guidance: float,
        strength: float = 1.0,
        feather: int = 8,
        side: int = 0,
        mask: torch.Tensor | None = None,
        image_2: torch.Tensor | None = None,
        image_3: torch.Tensor | None = None,
        image_4: torch.Tensor | None = None,
        negative_prompt: str = "",
        mask_from: str = CONNECTED,
        context: float = CONTEXT,
        few_steps: str = OFF,
    ) -> io.NodeOutput:
        """Check everything; then encode, sample and decode, each part of the model loaded once."""
        import comfy.model_management as management
        import torch

        from ..core.crops import lengths, plan_crops, stitch, whole
        from ..core.editing import (
            as_rgb,
            check_pictures,
            drawing_size,
            fit_mask,
            latent_mask,
            resize,
        )
        from ..core.guidance import Guidance
        from .edit_sampling import edit_sources, encode_edits, find_masks, narrow_masks, sample_edits
        from .guidance import choose_sampler, choose_sigmas

        limits.check(
            cls,
            seed=seed,
            steps=steps,
            guidance=guidance,
            image_guidance=image_guidance,
            strength=strength,
            feather=feather,
            side=side,
            context=context,
            few_steps=few_steps,
        )
        solver = RECIPE, RECIPE
        if few_steps != OFF:
            steps, guidance, image_guidance, solver = int(few_steps), 1.0, 1.0, FEW_SOLVER
        size = check_same_model(model, mllm, vae)
        guidances = Guidance(guidance, image_guidance)
        check_pictures("image", image)
        count, height, width = image.shape[:3]
        further = further_groups(count, image_2, image_3, image_4)
        masks = None
        if mask is not None and mask_from == CONNECTED:
            masks = fit_mask(mask, count, height, width).to(image.device)

        automatic = mask_from == AUTOMATIC
        branches = max(guidances.num_branches(has_images=True), 2 if automatic else 1)
        conditions = []  # of whole pictures
        if automatic:
            groups = as_mapped(picture_groups(image, further), size)
            check_requests(instruction, groups, negative_prompt)
            conditions = encode_edits(mllm, instruction, groups, negative_prompt, branches)
            masks, _ = find_masks(model, vae, image, groups, conditions, size)
        if masks is None:
            crops = [(i, whole(height, width)) for i in range(count)]
        else:
            plans = [plan_crops(one, context, side or size.native, size.factor) for one in masks]
            crops = [(i, crop) for i, plan in enumerate(plans) for crop in plan]
        seen = [picture_groups(image[i][crop.box][None], further[i : i + 1])[0] for i, crop in crops]
        if not automatic:
            check_requests(instruction, seen, negative_prompt)

        from_noise = strength == 1 and masks is None
        device = management.intermediate_device()
        latents, changeable = [], []
        for i, crop in crops:
            across, down = drawing_size(lengths(crop.box)[::-1], side, size.native, size.factor)
            cells = down // size.factor, across // size.factor
            if from_noise:
                latents.append(torch.zeros(1, size.channels, *cells, device=device))
            else:
                latents.append(vae.encode(resize(as_rgb(image[i][crop.box][None]).float(), across, down)))
            changeable.append(None if masks is None else latent_mask(masks[i][crop.box][None], *cells))
        originals = latents
        if strength > 0:
            as_found = automatic and groups[0][0].size == (width, height)
            if as_found and all(crop.box == whole(height, width).box for _, crop in crops):
                conditions = [conditions[i] for i, _ in crops]
            else:
                conditions = encode_edits(mllm, instruction, seen, negative_prompt, branches)
            sources = None
            if mllm.reads_source:
                of_each = zip(seen, latents, strict=True)
                sources = [edit_sources(vae, group, guidances, latent) for group, latent in of_each]
            sampling = choose_sampler(solver[0]), choose_sigmas(model, *solver, steps, strength)
            latents = sample_edits(
                model, conditions, guidances, latents, changeable, seed, *sampling, sources
            )
        masks = image.new_ones(image.shape[:3]) if masks is None else masks
        result = image.clone() if image.shape[-1] == 4 else as_rgb(image).clone()
        drawn = [vae.decode(latent).float().to(image.device) for latent in latents]
        inside = narrow_masks(vae, masks, crops, drawn, originals) if automatic else masks
        for (i, crop), pixels in zip(crops, drawn, strict=True):
            stitch(result[i : i + 1], pixels, crop, inside[i], feather)
        return io.NodeOutput(result, masks)
