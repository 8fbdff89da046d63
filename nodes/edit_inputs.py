"""What an edit is given: parts of one model, pictures with their further ones, an instruction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .conditioning import to_pil
from .sampling import latent_size

if TYPE_CHECKING:
    import torch
    from comfy.model_patcher import ModelPatcher
    from PIL import Image

    from .autoencoder import LadderVAE
    from .mllm import LadderMLLM, LatentSize


def check_same_model(model: ModelPatcher, mllm: LadderMLLM, vae: LadderVAE) -> LatentSize:
    """How pixels and latents relate. Raises ValueError unless the three parts fit each other."""
    from .source import check_vae

    size = latent_size(model)
    if getattr(mllm, "size", None) != size:
        raise ValueError("mllm is that of another model; connect model, mllm and vae of one Load Model.")
    check_vae(size, vae)
    return size


def picture_groups(image: torch.Tensor, further: list[list[Image.Image]]) -> list[list[Image.Image]]:
    """For every picture of a batch: itself and its further pictures."""
    return [[picture, *more] for picture, more in zip(to_pil(image), further, strict=True)]


def as_mapped(groups: list[list[Image.Image]], size: LatentSize) -> list[list[Image.Image]]:
    """What the language model reads for change maps, see :func:`..core.repainting.as_mapped`."""
    from ..core.requests import in_trained_proportions

    return [[in_trained_proportions(first, size.native, size.factor), *further] for first, *further in groups]


def further_groups(count: int, *batches: torch.Tensor | None) -> list[list[Image.Image]]:
    """The further pictures of ``count`` edits, from the second on. Raises ValueError for bad ones."""
    from ..core.editing import check_pictures

    groups = [[] for _ in range(count)]
    for number, batch in enumerate(batches, 2):
        if batch is None:
            continue
        name = f"image_{number}"
        check_pictures(name, batch)
        if len(batch) not in (1, count):
            raise ValueError(
                f"{name} holds {len(batch)} pictures for {count} edits; give one for all, or one for each."
            )
        pictures = to_pil(batch)
        for i, group in enumerate(groups):
            group.append(pictures[i % len(pictures)])
    return groups


def check_requests(instruction: str, groups: list[list[Image.Image]], negative_prompt: str) -> None:
    """Raise ValueError for whatever the language model would refuse, and for an empty instruction."""
    from ..core.requests import check_request

    if not instruction.strip():
        raise ValueError("The instruction is empty; say what to change, as in 'make the sky pink'.")
    check_request([instruction] * len(groups), groups, negative_prompt)
