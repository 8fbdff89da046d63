"""A model to train: frozen Qwen2.5-VL and pretrained SANA, joined by a new connector and new queries."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.configuration_utils import FrozenDict
from transformers import Qwen2_5_VLConfig

from ..connector import LadderConnector
from ..prompts import MAX_TEXT_TOKENS, SYSTEM_PROMPT
from ..schedulers import recipe_scheduler
from .folders import match_folder
from .parts import (
    LadderParts,
    check_device,
    check_dtype,
    fill,
    freeze,
    mllm_on_meta,
    place,
    read_part_config,
    transformer_on_meta,
    vae_on_meta,
)
from .placing import Placement
from .released import NUM_RESERVED, RELEASED_QUERIES
from .tokenizers import IMAGE_PIXELS, find_tokenizer, make_image_processor


def assemble(
    qwen_dir: str | Path,
    sana_dir: str | Path,
    *,
    num_queries: int = RELEASED_QUERIES,
    seed: int = 0,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device = "cpu",
    tokenizer_dir: str | Path | None = None,
    image_pixels: int = IMAGE_PIXELS,
    system_prompt: str = SYSTEM_PROMPT,
    max_text_tokens: int = MAX_TEXT_TOKENS,
) -> LadderParts:
    """Join pretrained models to the model that the first stage of training starts from.

    Args:
        qwen_dir: Qwen2.5-VL folder in the layout of its hub repository.
        sana_dir: SANA folder in diffusers' layout (``transformer`` and ``vae`` are read).
        num_queries: how many queries end every prompt.
        seed: of the first values of the connector and the queries.
        dtype: type of all weights; None keeps that of each folder, and gives the new ones the MLLM's.
        device: where the weights go.
        tokenizer_dir: tokenizer to use if ``qwen_dir`` has none.
        image_pixels: area to which input images are resized.
        system_prompt: text of the system turn.
        max_text_tokens: where the user's text is cut.

    Raises:
        ValueError: a folder that is not there, incomplete or of another kind, an MLLM of fewer layers than
            the transformer has blocks, an autoencoder of other latents, or less than one query.
    """
    dtype, device = check_dtype(dtype), check_device(device)
    if num_queries < 1:
        raise ValueError(f"num_queries is {num_queries}; give at least 1, the released model has 64.")
    sana_dir = Path(sana_dir)
    folders = {"mllm": Path(qwen_dir), "transformer": sana_dir / "transformer", "vae": sana_dir / "vae"}
    configs = {part: read_part_config(folder, part) for part, folder in folders.items()}
    skeleton = {
        "mllm": mllm_on_meta(configs["mllm"]),
        "transformer": transformer_on_meta(configs["transformer"]),
        "vae": vae_on_meta(configs["vae"]),
    }
    check_fit(**{part: module.config for part, module in skeleton.items()})
    headers = {part: match_folder(folder, skeleton[part]) for part, folder in folders.items()}
    tokenizer = find_tokenizer(skeleton["mllm"].config, [folders["mllm"]], tokenizer_dir)
    placement = Placement(device, dtype)
    parts = {p: fill(m, placement.read(p, m, headers[p]), device) for p, m in skeleton.items()}
    rows = parts["mllm"].get_input_embeddings().weight[: len(tokenizer)]
    return freeze(
        LadderParts(
            **parts,
            connector=new_connector(rows, num_queries, configs["transformer"]["caption_channels"], seed),
            tokenizer=tokenizer,
            image_processor=make_image_processor(parts["mllm"].config, folders["mllm"], image_pixels),
            scheduler=recipe_scheduler(),
            system_prompt=system_prompt,
            max_text_tokens=max_text_tokens,
        )
    )


def check_fit(mllm: Qwen2_5_VLConfig, transformer: FrozenDict, vae: FrozenDict) -> None:
    """Raise ValueError unless parts of these configurations make one model."""
    layers, blocks = mllm.text_config.num_hidden_layers, transformer.num_layers
    if layers < blocks:
        raise ValueError(
            f"The MLLM has {layers} layers and SANA {blocks} blocks; every block needs a layer of its own, "
            "take a deeper MLLM or a shallower SANA."
        )
    if vae.latent_channels != transformer.in_channels:
        raise ValueError(
            f"The autoencoder makes latents of {vae.latent_channels} channels and SANA takes "
            f"{transformer.in_channels}; take both from one folder."
        )


def new_connector(rows: torch.Tensor, num_queries: int, caption_dim: int, seed: int) -> LadderConnector:
    """Connector and queries with first values.

    Queries are drawn from the normal distribution that has, in every dimension, the mean and the deviation
    of the vocabulary: to the frozen MLLM they then look like tokens, where vectors of unit scale would drown
    its own, and each starts at another point.

    Args:
        rows: embedding rows of the tokens in use ``[tokens, mllm_dim]``.
        num_queries: how many queries.
        caption_dim: width that the diffusion transformer expects.
        seed: same seed, same values.

    Returns:
        LadderConnector: of the type and on the device of ``rows``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        connector = LadderConnector(num_queries, rows.shape[1], caption_dim, NUM_RESERVED)
        deviation, mean = torch.std_mean(rows.float().cpu(), dim=0)
        with torch.no_grad():
            connector.queries.copy_(mean + deviation * torch.randn(num_queries, rows.shape[1]))
            connector.reserved_rows.copy_(mean.expand(NUM_RESERVED, -1))
    return place(connector, rows.device, rows.dtype).eval()
