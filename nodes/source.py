"""The latents of what is edited in a CONDITIONING, for models that read them.

They stand where InstructPixToPixConditioning puts them; ReferenceLatent's are read too. Both are as LATENT
wires carry them, unscaled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..core.canvas import encode_canvases

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from .autoencoder import LadderVAE
    from .mllm import LatentSize

SOURCE = "concat_latent_image"
REFERENCES = "reference_latents"


def check_vae(size: LatentSize, vae: LadderVAE) -> None:
    """Raise ValueError unless a VAE is that of the model."""
    found = getattr(vae, "latent_channels", 0), getattr(vae, "downscale_ratio", 0)
    if found != (size.channels, size.factor):
        raise ValueError("vae is that of another model; connect model, mllm and vae of one Load Model.")


def encode_sources(
    vae: LadderVAE, groups: Sequence[Sequence[Image.Image]], width: int, height: int
) -> list[dict[str, torch.Tensor]]:
    """What the conditioning of every group of pictures carries: latents of its first.

    ``[1, channels, h, w]`` each.

    Args:
        vae: of the model.
        groups: input pictures of edits, of all branches of guidance.
        width, height: in pixels, of what is drawn.
    """

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        return vae.encode(pixels.movedim(1, -1) / 2 + 0.5)

    latents = encode_canvases(encode, [group[0] for group in groups], width, height)
    return [{SOURCE: row[None]} for row in latents]


def read_source(given: Mapping[str, Any], reads: bool) -> torch.Tensor | None:
    """The latents of what is edited that a conditioning carries, unscaled; None if it carries none.

    Args:
        given: what the conditioning carries, and the ``noise`` that is sampled.
        reads: whether the model reads them.

    Raises:
        ValueError: a model that reads none, more than one, or latents that do not lie over what is drawn.
    """
    references = list(given.get(REFERENCES) or ())
    blanked = given.get("concat_mask") is not None  # of InpaintModelConditioning, which masks the noise too
    found = references if given.get(SOURCE) is None or blanked else [given[SOURCE], *references]
    if not found:
        if reads and blanked:
            raise ValueError(
                "The conditioning comes from InpaintModelConditioning, which greys out what the mask covers, "
                "and this model reads what it edits; use VAE Encode, ReferenceLatent and Set Latent Noise "
                "Mask."
            )
        return None
    if not reads:
        kind = "reference latents" if references else "latents of InstructPixToPixConditioning"
        raise ValueError(
            f"The conditioning holds {kind}, which this model does not read; connect the picture to Edit "
            "Conditions or Multi-Layer MLLM Encode instead."
        )
    if len(found) > 1:
        raise ValueError(
            f"The conditioning holds {len(found)} latents to edit and this model reads one; leave out all "
            "but one of ReferenceLatent, InstructPixToPixConditioning, and the picture at Edit Conditions or "
            "Encode."
        )
    [source], noise = found, given["noise"]
    if source.shape[1:] != noise.shape[1:] or len(source) not in (1, len(noise)):
        raise ValueError(
            f"The picture to edit has latents of shape {list(source.shape)} and what is drawn "
            f"{list(noise.shape)}, but one lies over the other; draw in the latent of Edit Conditions, or "
            "scale the picture first."
        )
    return source
