"""Multi-Layer MLLM Encode and Edit Conditions: prompts and pictures become CONDITIONING."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from .compat import Schema
from .limits import check, problem
from .loading import MLLM

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from .autoencoder import LadderVAE
    from .mllm import LadderMLLM

IMAGE_TIP = "A batch counts as several pictures of one prompt; four in all is the most."


def image_inputs(first_optional: bool) -> list[io.Input]:
    """Sockets for up to four pictures."""
    names = ["image", "image_2", "image_3", "image_4"]
    return [
        io.Image.Input(name, optional=first_optional or i > 0, tooltip=IMAGE_TIP)
        for i, name in enumerate(names)
    ]


def to_pil(pixels: torch.Tensor) -> list[Image.Image]:
    """ComfyUI pictures ``[batch, height, width, 1, 3 or 4]`` in 0 … 1 as RGB; transparent parts are white."""
    from ..core.rgb import from_array, to_rgb

    # in place: a photograph is large
    arrays = [picture.clamp(0, 1).mul_(255).round_().byte().cpu().numpy() for picture in pixels]
    return [to_rgb(from_array(array)) for array in arrays]


def input_pictures(*batches: torch.Tensor | None) -> list[Image.Image]:
    """What is connected to the sockets of :func:`image_inputs`.

    Raises:
        ValueError: no picture, or one without pixels or with values that are no finite numbers.
    """
    from ..core.editing import check_pictures

    pictures = []
    for number, batch in enumerate(batches, 1):
        if batch is not None:
            check_pictures("image" if number == 1 else f"image_{number}", batch)
            pictures += to_pil(batch)
    return pictures


def check_mllm(mllm: object) -> None:
    """Raise ValueError for what is no MLLM of ours."""
    if not hasattr(mllm, "ask"):
        raise ValueError(f"mllm is of the type {type(mllm).__name__}; connect Load Model (TBAC-UniImage).")


def vae_input() -> io.Vae.Input:
    """The autoencoder, for models that read what they edit; graphs from before these have none connected."""
    return io.Vae.Input(
        "vae",
        optional=True,
        tooltip="Encodes the picture for models that also read its latents (trained with "
        "model.source_latents). Without it that of mllm's Load Model does.",
    )


def encode_branches(
    mllm: LadderMLLM,
    prompt: str,
    negative_prompt: str,
    pictures: list[Image.Image],
    vae: LadderVAE | None = None,
    side: int = 0,
) -> tuple[list, list, list]:
    """CONDITIONINGs of the branches of guidance: negative, image_only, positive.

    What was encoded lately is not encoded again; each distinct picture passes the vision tower once. For a
    model that reads what it edits they carry its latents, at ``side``² pixels, 0 for the trained size.

    Args:
        vae: what encodes them; None takes that of the model.

    Raises:
        ValueError: the autoencoder of another model.
    """
    from ..core.guidance import branch_inputs
    from ..core.requests import fit_size
    from .source import check_vae, encode_sources

    if vae is not None:
        check_vae(mllm.size, vae)
    prompts, groups = branch_inputs([prompt], [negative_prompt], [pictures], branches=3)
    rows, carried = mllm.encode(prompts, groups), [{}] * len(groups)
    if pictures and mllm.reads_source:
        size = fit_size(pictures[0].size, side or mllm.size.native, mllm.size.factor)
        carried = encode_sources(vae or mllm.vae, groups, *size)
    negative, image_only, positive = ([[row, options]] for row, options in zip(rows, carried, strict=True))
    return negative, image_only, positive


def further_pictures() -> list[io.Image.Input]:
    """Inputs of an edit beside the picture that it changes."""
    return [
        io.Image.Input(
            name,
            optional=True,
            tooltip="A further picture that the instruction may speak of: one for all edits, or one for "
            "each picture of the batch.",
        )
        for name in ("image_2", "image_3", "image_4")
    ]


class LadderEncode(io.ComfyNode):
    """A prompt, with or without pictures, and what guidance compares it with."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's face."""
        return Schema(
            node_id="TBACUniImageEncode",
            display_name="Multi-Layer MLLM Encode",
            category="TBAC-UniImage",
            description="Reads the prompt (and up to four pictures) with the multimodal language model and "
            "keeps what its last layers think: one condition for every block of the diffusion model.",
            search_aliases=["prompt", "text encode", "clip text encode", "conditioning", "uniimage"],
            inputs=[
                MLLM.Input("mllm", tooltip="From Load Model (TBAC-UniImage)."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What to draw. Plain text: weights and control tokens have no meaning. 256 "
                    "tokens are read.",
                ),
                *image_inputs(first_optional=True),
                io.String.Input(
                    "negative_prompt",
                    default="",
                    multiline=True,
                    dynamic_prompts=True,
                    optional=True,
                    tooltip="What to steer away from; usually empty.",
                ),
                vae_input(),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="positive", tooltip="Prompt and pictures. For any sampler or guider."
                ),
                io.Conditioning.Output(
                    display_name="negative",
                    tooltip="The negative prompt; with pictures, beside black ones of the same sizes.",
                ),
                io.Conditioning.Output(
                    display_name="image_only",
                    tooltip="Image-negative: the pictures with the negative prompt. For image_only of Ladder "
                    "Sampler, cond2 of DualCFGGuider, or the negative of KSampler for text guidance alone. "
                    "Without pictures the same as negative.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        mllm: LadderMLLM,
        prompt: str,
        image: torch.Tensor | None = None,
        image_2: torch.Tensor | None = None,
        image_3: torch.Tensor | None = None,
        image_4: torch.Tensor | None = None,
        negative_prompt: str = "",
        vae: LadderVAE | None = None,
    ) -> io.NodeOutput:
        """Encode the branches of guidance."""
        check_mllm(mllm)
        pictures = input_pictures(image, image_2, image_3, image_4)
        negative, image_only, positive = encode_branches(mllm, prompt, negative_prompt, pictures, vae)
        return io.NodeOutput(positive, negative, image_only)


class LadderImageEdit(io.ComfyNode):
    """An instruction and the picture that it changes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's face."""
        return Schema(
            node_id="TBACUniImageEdit",
            display_name="Edit Conditions (TBAC-UniImage)",
            category="TBAC-UniImage",
            description="Prepares an edit: the three conditions of image and text guidance, and an empty "
            "latent in the proportions of the picture.",
            search_aliases=["image edit", "instruct edit", "edit encode", "kontext", "uniimage edit"],
            inputs=[
                MLLM.Input("mllm", tooltip="From Load Model (TBAC-UniImage)."),
                io.String.Input(
                    "instruction",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What to change, as a sentence: 'make the cat blue'.",
                ),
                *image_inputs(first_optional=False),
                io.String.Input(
                    "negative_prompt",
                    default="",
                    multiline=True,
                    dynamic_prompts=True,
                    optional=True,
                    tooltip="What to steer away from; usually empty.",
                ),
                io.Int.Input(
                    "side",
                    default=0,
                    min=0,
                    max=4096,
                    optional=True,
                    tooltip="Size of the result: it has side x side pixels in all, in the proportions of the "
                    "first picture. 0 = the size that the model was trained at.",
                ),
                vae_input(),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="Picture and instruction."),
                io.Conditioning.Output(
                    display_name="image_only",
                    tooltip="Picture without instruction: image_only of Ladder Sampler, cond2 of "
                    "DualCFGGuider, or the negative of KSampler for text guidance alone.",
                ),
                io.Conditioning.Output(display_name="negative", tooltip="Neither: a black picture."),
                io.Latent.Output(display_name="latent", tooltip="Empty, of the size of the result."),
            ],
        )

    @classmethod
    def validate_inputs(cls, side: int | None = None) -> bool | str:
        """The same limits as for a number that comes over a link."""
        return problem(cls, side=side) or True

    @classmethod
    def execute(
        cls,
        mllm: LadderMLLM,
        instruction: str,
        image: torch.Tensor,
        image_2: torch.Tensor | None = None,
        image_3: torch.Tensor | None = None,
        image_4: torch.Tensor | None = None,
        negative_prompt: str = "",
        side: int = 0,
        vae: LadderVAE | None = None,
    ) -> io.NodeOutput:
        """Encode the branches and size the latent."""
        from ..core.requests import check_request, fit_size

        check(cls, side=side)
        check_mllm(mllm)
        pictures = input_pictures(image, image_2, image_3, image_4)
        check_request(instruction, pictures, negative_prompt)
        negative, image_only, positive = encode_branches(
            mllm, instruction, negative_prompt, pictures, vae, side
        )
        width, height = fit_size(pictures[0].size, side or mllm.size.native, mllm.size.factor)
        return io.NodeOutput(positive, image_only, negative, mllm.size.empty_latent(width, height, 1))
