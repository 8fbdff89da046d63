"""From prompts and pictures to tensors: what the MLLM reads. Nothing here needs the model's weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from .prompts import (
    MAX_IMAGES,
    MAX_TEXT_TOKENS,
    SYSTEM_PROMPT,
    behind_text,
    build_prompt,
    count_text,
    cut_text,
    pad_left,
)
from .rgb import BadPicture, check_shape, from_array, to_rgb

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedTokenizerBase


@dataclass
class LadderInputs:
    """Tokenised prompts of a batch.

    Attributes:
        input_ids: ``[batch, length]`` int64, padded on the left.
        attention_mask: ``[batch, length]`` int64, 1 = token.
        pixel_values: ``[patches, channels * 2 * patch * patch]`` float32 of all images in order, or None.
        image_grid_thw: ``[images, 3]`` int64, patches along time, height and width, or None.
        features: ``[vision tokens, mllm_dim]``, what the vision tower made of all images in order, where it
            is known already; ``pixel_values`` is None then.
        text_spans: ``[batch, 2]`` int64, the columns at which the user's text begins and ends; None for
            models that do not attend to its tokens.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    pixel_values: torch.Tensor | None = None
    image_grid_thw: torch.Tensor | None = None
    features: torch.Tensor | None = None
    text_spans: torch.Tensor | None = None


def prepare_images(batch: Sequence[Sequence[Image.Image]], prompts: Sequence[str]) -> list[list[Image.Image]]:
    """Images as upright sRGB on white, whatever they were opened from; those that are so stay themselves.

    Raises:
        ValueError: other than one list of at most four usable images per prompt.
    """
    if len(batch) != len(prompts):
        raise ValueError(
            f"{len(prompts)} prompts but {len(batch)} lists of images were given; give one list per prompt."
        )
    for images in batch:
        if len(images) > MAX_IMAGES:
            raise ValueError(
                f"A prompt takes at most {MAX_IMAGES} images, {len(images)} were given; leave some out."
            )
    return [[prepare_image(image) for image in images] for images in batch]


def prepare_image(image: object) -> Image.Image:
    """One image for the MLLM, see :func:`prepare_images`; a tensor is ``[channels, height, width]``."""
    if isinstance(image, torch.Tensor):
        image = array_of(image.movedim(0, -1))
    try:
        if isinstance(image, np.ndarray):
            image = from_array(image)
        if not isinstance(image, Image.Image):
            raise ValueError(f"An input image is a {type(image).__name__}; give PIL images.")
        check_proportions(image)
        return to_rgb(image)
    except BadPicture as error:
        raise ValueError(f"An input image cannot be used: {error}; give another.") from error


def array_of(tensor: torch.Tensor) -> np.ndarray:
    """Its values, those of types that numpy lacks as float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def check_proportions(image: Image.Image) -> None:
    """Raise ValueError for an image without pixels, or one too long."""
    try:
        check_shape(image.size)
    except BadPicture as error:
        raise ValueError(f"An input image of {error.detail} is {error.reason}; crop it first.") from error


@dataclass
class LadderProcessor:
    """Turns prompts and images into :class:`LadderInputs`. Can be sent to other processes.

    Attributes:
        tokenizer: the MLLM's tokenizer.
        image_processor: the PIL image processor, which holds patch size and pixel budget.
        num_queries: queries that follow every prompt.
        first_query_id: id of the first; the queries follow the vocabulary, as they do in a released
            embedding matrix.
        system_prompt: text of the system turn.
        max_text_tokens: where the user's text is cut.
        text_states: whether the model attends to the text's tokens, so that it is told where they are.
    """

    tokenizer: PreTrainedTokenizerBase
    image_processor: BaseImageProcessor
    num_queries: int
    first_query_id: int
    system_prompt: str = SYSTEM_PROMPT
    max_text_tokens: int = MAX_TEXT_TOKENS
    text_states: bool = False

    def __call__(
        self, prompts: Sequence[str], images: Sequence[Sequence[Image.Image]] | None = None
    ) -> LadderInputs:
        """Tokenise prompts and cut images into patches.

        Raises:
            ValueError: no prompts, lists of different lengths, too many or unusable images.
        """
        if not prompts:
            raise ValueError("No prompt was given; give at least one, the empty string if need be.")
        images = [[] for _ in prompts] if images is None else images
        images = prepare_images(images, prompts)
        flat = [image for group in images for image in group]
        pixels = grid = None
        if flat:
            patches = self.image_processor(images=flat, return_tensors="pt")
            pixels, grid = patches["pixel_values"], patches["image_grid_thw"]
        counts = [len(group) for group in images]
        ids, mask = self.tokenize(prompts, counts, grid)
        return LadderInputs(ids, mask, pixels, grid, text_spans=self.text_spans(prompts, counts, ids))

    def tokenize(
        self, prompts: Sequence[str], num_images: Sequence[int], grid: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask, both int64 ``[batch, length]``, of prompts whose images have these grids.

        Args:
            prompts: one text per prompt.
            num_images: how many images each has.
            grid: ``[images, 3]`` of all images in order, None if there are none.
        """
        merged = self.image_processor.merge_size**2
        counts = iter([] if grid is None else (grid.prod(-1) // merged).tolist())
        sequences = [
            build_prompt(
                self.tokenizer,
                prompt,
                [next(counts) for _ in range(number)],
                num_queries=self.num_queries,
                first_query_id=self.first_query_id,
                system_prompt=self.system_prompt,
                max_text_tokens=self.max_text_tokens,
            )
            for prompt, number in zip(prompts, num_images, strict=True)
        ]
        return pad_left(sequences, self.tokenizer.pad_token_id)

    def text_spans(
        self, prompts: Sequence[str], num_images: Sequence[int], ids: torch.Tensor
    ) -> torch.Tensor | None:
        """Where the texts are in the ``ids`` of :meth:`tokenize`, see :class:`LadderInputs`."""
        if not self.text_states:
            return None
        opening, closing = 1, 2  # <|vision_start|> before the queries, <|vision_end|><|im_end|> behind them
        behind = len(behind_text(self.tokenizer)) + opening + self.num_queries + closing
        end = ids.shape[1] - behind
        texts = (cut_text(self.tokenizer, prompt, self.max_text_tokens) for prompt in prompts)
        lengths = [count_text(self.tokenizer, *row) for row in zip(texts, num_images, strict=True)]
        return torch.tensor([(end - length, end) for length in lengths])
