"""CLIP ViT-L/14 of transformers names the colours of objects, as GenEval asks it to."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from .colours import colour_texts, crop
from .verdict import Seen


def check(folder: Path) -> None:
    """Raise ValueError unless a folder is that of a CLIP."""
    from transformers import AutoConfig

    try:
        kind = AutoConfig.from_pretrained(folder).model_type
    except (OSError, ValueError):
        kind = "folder without a model"
    if kind != "clip":
        raise ValueError(f"{folder} is a {kind}; give that of CLIP, such as openai/clip-vit-large-patch14.")


class ColourClassifier:
    """The colour of a cut-out object: that whose three texts are nearest to it.

    Args:
        folder: CLIP with its tokenizer and image processor.
        device: where it runs.

    Raises:
        ValueError: it is another model.
    """

    def __init__(self, folder: Path, device: str) -> None:
        from transformers import CLIPModel, CLIPTokenizer
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        try:
            self.model = CLIPModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
            self.tokenizer = CLIPTokenizer.from_pretrained(folder)
            self.processor = CLIPImageProcessorPil.from_pretrained(folder)
        except (OSError, ValueError, TypeError) as error:
            said = str(error).partition("\n")[0]
            raise ValueError(f"{folder} holds no CLIP that can be read whole ({said}).") from error
        self.model.eval().to(device)
        self.of_class = cache(self.embed_colours)

    @torch.no_grad()
    def embed_colours(self, name: str) -> tuple[list[str], Tensor]:
        """Colours, and a direction ``[colours, dim]`` for each."""
        texts = colour_texts(name)
        asked = [text for three in texts.values() for text in three]
        tokens = self.tokenizer(asked, padding=True, return_tensors="pt").to(self.model.device)
        features = normalize(pooled(self.model.get_text_features(**tokens)), dim=-1)
        return list(texts), normalize(features.unflatten(0, (len(texts), -1)).mean(1), dim=-1)

    @torch.no_grad()
    def __call__(self, picture: Image.Image, objects: Sequence[Seen], name: str) -> list[str]:
        """A colour for each of some objects of a class."""
        if not objects:
            return []
        colours, directions = self.of_class(name)
        crops = [crop(picture, seen.box, seen.mask) for seen in objects]
        pixels = self.processor(crops, return_tensors="pt")["pixel_values"].to(self.model.device)
        features = normalize(pooled(self.model.get_image_features(pixel_values=pixels)), dim=-1)
        return [colours[best] for best in (features @ directions.T).argmax(-1).tolist()]


def pooled(output: object) -> Tensor:
    """Projected features; before transformers 5 they are returned bare."""
    return getattr(output, "pooler_output", output)
