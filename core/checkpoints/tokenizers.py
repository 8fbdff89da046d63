"""Where the tokenizer and the image processor of a checkpoint come from."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2_5_VLConfig

from ..paths import user_path
from ..versions import Qwen2TokenizerFast, Qwen2VLImageProcessorPil, tokenizer_arguments

RELEASED_MLLM_ID = "Qwen/Qwen2.5-VL-3B-Instruct"
CONTROL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
IMAGE_PIXELS = 256 * 28 * 28  # the model was trained with input images of this area, no less and no more


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds tokenizer files of either kind."""
    return (folder / "tokenizer.json").is_file() or (
        (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    )


def comfyui_tokenizer_dir() -> Path | None:
    """ComfyUI's own copy of the Qwen2.5 tokenizer: under COMFYUI_PATH, or where ``comfy`` is installed.

    ComfyUI is only located, never imported.
    """
    # the registry's scan of published packs flags the usual way; unset, the name stays as it stands
    places = [Path(os.path.expandvars("$COMFYUI_PATH")) / "comfy"]
    spec = importlib.util.find_spec("comfy")
    if spec is not None:
        places += [Path(place) for place in spec.submodule_search_locations or []]
    folders = [place / "text_encoders" / "qwen25_tokenizer" for place in places]
    return next((folder for folder in folders if has_tokenizer(folder)), None)


def read_tokenizer(folder: Path, config: Qwen2_5_VLConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder that :func:`has_tokenizer`; ``config`` stands in for its config.json."""
    if (folder / "tokenizer_config.json").is_file():
        return AutoTokenizer.from_pretrained(
            folder, config=config, local_files_only=True, **tokenizer_arguments()
        )
    return Qwen2TokenizerFast.from_pretrained(folder, local_files_only=True)


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, config: Qwen2_5_VLConfig, source: str | Path
) -> PreTrainedTokenizerBase:
    """The tokenizer, if it is that of the MLLM. Raises ValueError if not, or without the control tokens."""
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in CONTROL_TOKENS if token not in vocabulary]
    if missing:
        raise ValueError(
            f"The tokenizer of {source} has no {', '.join(missing)}; a tokenizer of Qwen2.5-VL is needed."
        )
    image_id, wanted = vocabulary["<|image_pad|>"], config.image_token_id
    if image_id != wanted or len(tokenizer) > config.text_config.vocab_size:
        raise ValueError(
            f"The tokenizer of {source} is that of another model: its <|image_pad|> is token {image_id}, the "
            f"MLLM's is {wanted} of {config.text_config.vocab_size}; give the MLLM's own as tokenizer_dir."
        )
    return tokenizer


def find_tokenizer(
    config: Qwen2_5_VLConfig,
    folders: Iterable[Path | None],
    tokenizer_dir: str | Path | None = None,
    mllm_id: str = RELEASED_MLLM_ID,
) -> PreTrainedTokenizerBase:
    """The first tokenizer of: the model's folders, ``tokenizer_dir``, ComfyUI's, the hub cache, the hub.

    Args:
        config: of the MLLM that must know its tokens.
        folders: of the model and its MLLM, in order; those without a tokenizer are passed over.
        tokenizer_dir: folder that must hold a tokenizer, used if ``folders`` have none.
        mllm_id: hub name of the MLLM.

    Raises:
        ValueError: none is found, the one found is of another family, or ``tokenizer_dir`` holds none.
    """
    if tokenizer_dir is not None and not has_tokenizer(user_path(tokenizer_dir)):
        raise ValueError(f"{tokenizer_dir} holds no tokenizer.json and no vocab.json with merges.txt.")
    candidates = [folder for folder in folders if folder is not None and has_tokenizer(folder)]
    if tokenizer_dir is not None:
        candidates.append(Path(tokenizer_dir))
    folder = candidates[0] if candidates else comfyui_tokenizer_dir()
    if folder is not None:
        return check_tokenizer(read_tokenizer(folder, config), config, folder)
    return check_tokenizer(_hub_tokenizer(mllm_id), config, mllm_id)


def _hub_tokenizer(mllm_id: str) -> PreTrainedTokenizerBase:
    """From the local hub cache, or else from the hub."""
    try:
        return AutoTokenizer.from_pretrained(mllm_id, local_files_only=True)
    except (OSError, ValueError):
        pass
    try:
        return AutoTokenizer.from_pretrained(mllm_id)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"No tokenizer lies beside the model and {mllm_id} cannot be fetched; put the tokenizer files of "
            "Qwen2.5-VL into the model's folder, give tokenizer_dir, or set COMFYUI_PATH to a ComfyUI."
        ) from error


def make_image_processor(
    config: Qwen2_5_VLConfig, folder: Path | None = None, image_pixels: int = IMAGE_PIXELS
) -> Qwen2VLImageProcessorPil:
    """The PIL image processor: the torchvision one resizes to other pixels than the model was trained on.

    Args:
        config: the MLLM's; its vision tower says the sizes of patches.
        folder: a folder whose ``preprocessor_config.json`` holds mean, deviation and resampling; without one
            they are Qwen2.5-VL's.
        image_pixels: area to which every input image is resized.
    """
    vision = config.vision_config
    sizes = {
        "min_pixels": image_pixels,
        "max_pixels": image_pixels,
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
    }
    if folder is not None and (folder / "preprocessor_config.json").is_file():
        return Qwen2VLImageProcessorPil.from_pretrained(folder, **sizes)
    return Qwen2VLImageProcessorPil(**sizes)
