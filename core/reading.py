"""What a pipeline does with its language model: conditions of prompts and pictures, and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from .components import LadderComponents
from .conditions import LadderCondition
from .encoder import LadderEncoder
from .guidance import Guidance, branch_inputs
from .requests import ImageInput, Request, check_request, group_images
from .understanding import Answer, ask

ENCODING = ("mllm", "tokenizer", "image_processor", "connector", "transformer")


class LadderReading(LadderComponents):
    """A pipeline that reads prompts and pictures, with the components of the moment."""

    @property
    def encoder(self) -> LadderEncoder:
        """Makes conditions of prompts and pictures, with the components and settings of this moment."""
        self.require("encode a prompt", *ENCODING)
        return LadderEncoder(
            self.mllm,
            self.connector,
            self.tokenizer,
            self.image_processor,
            num_layers=self.transformer.config.num_layers,
            system_prompt=self.config.system_prompt,
            max_text_tokens=self.config.max_text_tokens,
            text_states=self.transformer.config.text_states,
        )

    def encode_prompt(
        self,
        prompt: str | Sequence[str],
        image: ImageInput = None,
        negative_prompt: str | Sequence[str] = "",
        guidance_scale: float = 4.5,
        image_guidance_scale: float = 1.0,
    ) -> LadderCondition:
        """Conditions of every branch of the guidance, for use as ``condition`` of several calls.

        Returns:
            LadderCondition: states ``[layers, branches * prompts, tokens, dim]``, branch by branch.
        """
        request = check_request(prompt, image, negative_prompt)
        guidance = Guidance(guidance_scale, image_guidance_scale)
        with self.undisturbed():
            return self._encode(request, guidance.num_branches(request.images is not None))

    @torch.no_grad()
    def _encode(self, request: Request, branches: int) -> LadderCondition:
        prompts, images = branch_inputs(request.prompts, request.negatives, request.images, branches)
        return replace(self.encoder(prompts, images), branches=branches, canvases=request.canvases)

    def ask(
        self,
        image: ImageInput,
        question: str,
        max_new_tokens: int = 128,
        vocabulary_rows: torch.Tensor | None = None,
    ) -> Answer:
        """Answer a question about a picture (or up to four) with the frozen MLLM (see :func:`.ask`)."""
        self.require("answer", "mllm", "tokenizer", "image_processor")
        none = image is None or isinstance(image, Sequence) and not image
        images = [] if none else group_images(image, None)[0]
        with self.undisturbed():
            hook = getattr(self.mllm, "_hf_hook", None)
            if hook is not None:
                hook.pre_forward(self.mllm)
            return ask(
                self.mllm,
                self.tokenizer,
                self.image_processor,
                images,
                question,
                max_new_tokens,
                vocabulary_rows,
            )
