"""The model as a diffusers pipeline: text-to-image, editing by instruction, and answers about pictures."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from diffusers import AutoencoderDC, DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.schedulers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from transformers import BaseImageProcessor, PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from .components import LadderComponents
from .conditions import LadderCondition, LadderEncoder, check_condition
from .connector import LadderConnector
from .guidance import Guidance, branch_inputs
from .lora import LadderLoraMixin
from .prompts import MAX_TEXT_TOKENS, SYSTEM_PROMPT
from .requests import (
    ImageInput,
    Request,
    check_generator,
    check_options,
    check_request,
    check_size,
    fit_size,
)
from .rungs import check_gains, scale_rungs
from .schedulers import scheduler_for_call, step_options
from .transformer import LadderTransformer2DModel, RungKV, Rungs
from .understanding import Answer, ask

Generators: TypeAlias = torch.Generator | Sequence[torch.Generator] | None
ENCODING = ("mllm", "tokenizer", "image_processor", "connector", "transformer")


class LadderPipeline(LadderComponents, LadderLoraMixin):
    """TBAC-UniImage: a frozen MLLM and a diffusion transformer joined rung by rung.

    Calls read the components and settings of their moment, and may run at the same time in several threads:
    each has a scheduler of its own.

    Args:
        mllm: frozen Qwen2.5-VL.
        tokenizer: its tokenizer.
        image_processor: its PIL image processor (patch size and pixel budget of input images).
        connector: queries and connector.
        transformer: ladder-conditioned SANA.
        vae: deep-compression autoencoder.
        scheduler: any of diffusers' for flows; DPM-Solver++ on flow sigmas is the recipe.
        system_prompt: text of the system turn.
        max_text_tokens: where the user's text is cut.
    """

    model_cpu_offload_seq = "mllm->transformer->vae"
    _exclude_from_cpu_offload = ["connector"]  # 10 M parameters, used as a parameter and not by a forward
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        mllm: Qwen2_5_VLForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: BaseImageProcessor,
        connector: LadderConnector,
        transformer: LadderTransformer2DModel,
        vae: AutoencoderDC,
        scheduler: DPMSolverMultistepScheduler | FlowMatchEulerDiscreteScheduler,
        system_prompt: str = SYSTEM_PROMPT,
        max_text_tokens: int = MAX_TEXT_TOKENS,
    ) -> None:
        super().__init__()
        self.register_modules(
            mllm=mllm,
            tokenizer=tokenizer,
            image_processor=image_processor,
            connector=connector,
            transformer=transformer,
            vae=vae,
            scheduler=scheduler,
        )
        self.register_to_config(system_prompt=system_prompt, max_text_tokens=max_text_tokens)

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
        )

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent along a side."""
        self.require("tell latents from pixels", "vae")
        return self.vae.spatial_compression_ratio

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
            LadderCondition: states ``[layers, branches * prompts, queries, dim]``, branch by branch.
        """
        request = check_request(prompt, image, negative_prompt)
        guidance = Guidance(guidance_scale, image_guidance_scale)
        with self.undisturbed():
            return self._encode(request, guidance.num_branches(request.images is not None))

    @torch.no_grad()
    def _encode(self, request: Request, branches: int) -> LadderCondition:
        prompts, images = branch_inputs(request.prompts, request.negatives, request.images, branches)
        return replace(self.encoder(prompts, images), branches=branches, canvases=request.canvases)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: ImageInput = None,
        negative_prompt: str | Sequence[str] = "",
        guidance_scale: float = 4.5,
        image_guidance_scale: float = 1.0,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 30,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        condition: LadderCondition | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[DiffusionPipeline, int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        rung_gains: Sequence[float] | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Draw pictures from prompts, or edit pictures by instructions.

        Args:
            prompt: one prompt or a list of them.
            image: what to edit. For one prompt a picture or a list of up to four; for a list of prompts a
                list of as many pictures, or of lists of pictures. None draws from the text alone.
            negative_prompt: one for all prompts, or one for each.
            guidance_scale: strength of the prompt; 1 = no guidance.
            image_guidance_scale: strength of the input picture when editing; 1 = text guidance only.
            height, width: size in pixels, multiples of the autoencoder's factor. Default: the size that the
                model was trained at; when editing, that area in the proportions of the first picture.
            num_inference_steps: denoising steps.
            num_images_per_prompt: results per prompt, next to each other in the output.
            generator: one generator, or one per result; noise is drawn from them, that of the solver too.
            latents: initial noise ``[prompts * num_images_per_prompt, channels, h, w]``.
            condition: what :meth:`encode_prompt` returned for the same guidance, in place of ``prompt``,
                ``image`` and ``negative_prompt``.
            guidance_interval: part of the steps that is guided.
            output_type: "pil", "np", "pt" or "latent" (scaled latents).
            callback_on_step_end: called as ``f(pipeline, step, timestep, {"latents": …})``; may return
                other latents, and may set ``pipeline._interrupt`` to stop. What it is handed is this call's
                own view of the pipeline, with the scheduler that steps.
            rung_gains: how loud each block hears its rung, one number from 0 (mute) to 10 for each; 1 = as
                trained. :func:`.rungs.preset_gains` and :func:`.rungs.parse_curve` make such lists.

        Raises:
            ValueError: bad input, one sentence, before anything is computed.
        """
        guidance = Guidance(guidance_scale, image_guidance_scale, tuple(guidance_interval))
        check_options(num_inference_steps, num_images_per_prompt, output_type)
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(f"callback_on_step_end_tensor_inputs has {sorted(unknown)}; known: latents.")
        self.require("draw", "transformer", "scheduler")
        if output_type != "latent":
            self.require("show what it drew", "vae")
        config = self.transformer.config
        if rung_gains is not None:
            check_gains(rung_gains, config.num_layers)
        if condition is None:
            self.require("encode a prompt", *ENCODING)
            request = check_request(prompt, image, negative_prompt)
            branches, num_prompts = guidance.num_branches(request.images is not None), len(request.prompts)
            canvases = request.canvases
        else:
            if prompt is not None or image is not None or negative_prompt:
                raise ValueError("Give either a condition, or a prompt with what belongs to it, not both.")
            check_condition(condition, guidance, config.num_layers, config.caption_channels)
            branches, canvases = condition.branches, condition.canvases
            num_prompts = condition.states.shape[1] // branches
        batch = num_prompts * num_images_per_prompt
        shape = (batch, *self._latent_shape(height, width, canvases))
        generator = check_generator(generator, batch)

        with self.undisturbed():
            device = self._execution_device
            call = copy.copy(self)  # what a call changes is its own
            call.scheduler = scheduler_for_call(self.scheduler, num_inference_steps, device)
            call._interrupt = self._interrupt = False
            latents = self.prepare_latents(shape, device, generator, latents)
            if condition is None:
                condition = self._encode(request, branches)
            rungs = self.prepare_rungs(condition, num_images_per_prompt, device)
            if rung_gains is not None:
                rungs = scale_rungs(rungs, rung_gains)

            timesteps = call.scheduler.timesteps
            options = step_options(call.scheduler, generator)
            with self.progress_bar(total=len(timesteps)) as progress:
                for i, t in enumerate(timesteps):
                    if call._interrupt or self._interrupt:
                        break
                    active = branches if guidance.is_active(i, len(timesteps)) else 1
                    velocity = self._velocity(latents, t, last_branches(rungs, active * batch), active)
                    velocity = guidance.combine(velocity, active)
                    latents = call.scheduler.step(velocity, t, latents, return_dict=False, **options)[0]
                    if callback_on_step_end is not None:
                        returned = callback_on_step_end(call, i, t, {"latents": latents})
                        latents = (returned or {}).pop("latents", latents)
                    progress.update()

            images = latents if output_type == "latent" else self.decode(latents, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _velocity(self, latents: torch.Tensor, t: torch.Tensor, rungs: Rungs, branches: int) -> torch.Tensor:
        """Velocities of all branches ``[branches * batch, …]``, float32 because guidance amplifies."""
        x = torch.cat([latents] * branches).to(self.transformer.dtype)
        timestep = t.expand(len(x)) * self.transformer.config.timestep_scale
        return self.transformer(x, rungs, timestep, return_dict=False)[0].float()

    def _latent_shape(
        self, height: int | None, width: int | None, canvases: Sequence[Image.Image] | None
    ) -> tuple[int, int, int]:
        """Channels, height and width of a latent, by default of the trained area, as wide as the picture is.

        Raises:
            ValueError: a size in pixels that is no multiple of the autoencoder's factor.
        """
        config = self.transformer.config
        side = config.sample_size
        if self.vae is None and height is None and width is None and canvases is None:
            return config.in_channels, side, side
        factor = self.vae_scale_factor
        if height is None and width is None and canvases is not None:
            width, height = fit_size(canvases[0].size, side * factor, factor)
        height, width = (side * factor if length is None else length for length in (height, width))
        check_size(height, width, factor)
        return config.in_channels, height // factor, width // factor

    def prepare_latents(
        self,
        shape: tuple[int, ...],
        device: torch.device,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Initial noise, float32 of ``shape``: ``[batch, channels, height, width]``."""
        if latents is None:
            return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        if tuple(latents.shape) != shape:
            raise ValueError(f"latents have shape {list(latents.shape)}; this call needs {list(shape)}.")
        return latents.to(device, torch.float32)

    def prepare_rungs(self, condition: LadderCondition, per_prompt: int, device: torch.device) -> Rungs:
        """What no step changes, for every branch and every result of a prompt."""
        states = condition.states.repeat_interleave(per_prompt, dim=1).to(device, self.transformer.dtype)
        mask = condition.mask.repeat_interleave(per_prompt, dim=0).to(device)
        return self.transformer.prepare_rungs(states, mask)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, output_type: str = "pil") -> Any:
        """Latents to pictures."""
        self.require("decode latents", "vae")
        latents = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        pixels = self.vae.decode(latents, return_dict=False)[0].float()
        return VaeImageProcessor().postprocess(pixels, output_type=output_type)

    def ask(
        self,
        image: Image.Image | Sequence[Image.Image] | None,
        question: str,
        max_new_tokens: int = 128,
        vocabulary_rows: torch.Tensor | None = None,
    ) -> Answer:
        """Answer a question about a picture (or up to four) with the frozen MLLM (see :func:`.ask`)."""
        self.require("answer", "mllm", "tokenizer", "image_processor")
        images = [] if image is None else [image] if isinstance(image, Image.Image) else list(image)
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


def last_branches(rungs: Rungs, rows: int) -> Rungs:
    """The last ``rows`` rows of the batch: the branch of the prompt comes last."""
    kv = [RungKV(key[-rows:], value[-rows:]) for key, value in rungs.kv]
    return Rungs(kv, None if rungs.bias is None else rungs.bias[-rows:])
