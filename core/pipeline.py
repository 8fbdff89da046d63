"""The model as a diffusers pipeline: text-to-image, editing by instruction, and answers about pictures."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import AutoencoderDC, DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.schedulers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image
from transformers import BaseImageProcessor, PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from .canvas import encode_canvases, encode_latents, in_tiles_if_large
from .conditions import LadderCondition, check_condition
from .connector import LadderConnector
from .crops import CONTEXT
from .denoising import Sampling, denoise, draw_noises
from .guidance import Guidance, branch_pictures
from .lora import LadderLoraMixin
from .masks import MaskInput
from .originals import as_output
from .prompts import MAX_TEXT_TOKENS, SYSTEM_PROMPT
from .reading import ENCODING, LadderReading
from .repainting import (
    ChangeMapOutput,
    LadderPipelineOutput,
    as_mapped,
    check_repainting,
    draw_over,
    find_changes,
    find_mask,
)
from .requests import (
    ImageInput,
    check_generator,
    check_options,
    check_request,
    check_size,
    fit_size,
)
from .rung_attention import Rungs
from .rungs import check_gains, scale_rungs
from .schedulers import scheduler_for_call
from .transformer import LadderTransformer2DModel


class LadderPipeline(LadderReading, LadderLoraMixin):
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
    def vae_scale_factor(self) -> int:
        """Pixels per latent along a side."""
        self.require("tell latents from pixels", "vae")
        return self.vae.spatial_compression_ratio

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
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        condition: LadderCondition | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[DiffusionPipeline, int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        rung_gains: Sequence[float] | None = None,
        mask: MaskInput = None,
        strength: float = 1.0,
        feather: int | None = None,
        context: float | None = CONTEXT,
    ) -> LadderPipelineOutput | tuple:
        """Draw pictures from prompts, or edit pictures by instructions.

        With a mask or a strength below 1 pictures are drawn over one after the other, each as if it were
        alone, and the callback counts the steps of each.

        Args:
            prompt: one prompt or a list of them.
            image: what to edit. For one prompt a picture or a list of up to four; for a list of prompts a
                list of as many pictures, or of lists of pictures. None draws from the text alone.
            negative_prompt: one for all prompts, or one for each.
            guidance_scale: strength of the prompt; 1 = no guidance.
            image_guidance_scale: strength of the input picture when editing; 1 = text guidance only.
            height, width: size in pixels, multiples of the autoencoder's factor. Default: the size that the
                model was trained at; when editing, that area in the proportions of the first picture. With a
                mask it is the size that is drawn at: the result has that of its picture.
            num_inference_steps: denoising steps.
            num_images_per_prompt: results per prompt, next to each other in the output.
            generator: one generator, or one per result; noise is drawn from them, that of the solver too.
            latents: initial noise ``[prompts * num_images_per_prompt, channels, h, w]``.
            condition: what :meth:`encode_prompt` returned for the same guidance, in place of ``prompt``,
                ``image`` and ``negative_prompt``.
            guidance_interval: part of the steps that is guided.
            output_type: "pil", "np", "pt" or "latent" (scaled latents); with a mask pictures keep their
                alpha.
            callback_on_step_end: called as ``f(pipeline, step, timestep, {"latents": …})``; may return
                other latents, and may set ``pipeline._interrupt`` to stop. What it is handed is this call's
                own view of the pipeline, with the scheduler that steps.
            rung_gains: how loud each block hears its rung, one number from 0 (mute) to 10 for each; 1 = as
                trained. :func:`.rungs.preset_gains` and :func:`.rungs.parse_curve` make such lists.
            mask: where a picture may change (white, 1) and where every pixel stays (black, 0), as in
                diffusers' inpainting: a picture, an array or a tensor of the same proportions, one for all
                or one for each; or "auto": where :meth:`change_map` finds that the instruction changes it.
                A further :data:`.change_map.EVALUATIONS` of the transformer for each picture, and two or
                three conditions; where a square picture is drawn as a whole, one with ``guidance_scale=1``
                and else none.
            strength: share of the way from noise that is drawn: below 1 the last ``strength *
                num_inference_steps`` steps, from the picture mixed with noise.
            feather: width in pixels of the mask's seam, which lies inside; None = a quarter of a latent's.
            context: of a picture larger than the model's only the parts of the mask are cut out, drawn at
                the model's size and laid in, with so much around them on every side, as a share of the part's
                longer side; the language model sees what is cut out. None = the whole picture is drawn, which
                is also what a size, latents, a condition and ``output_type="latent"`` mean. (diffusers'
                ``padding_mask_crop`` is this in pixels, for one part.)

        Returns:
            LadderPipelineOutput: ``images``, and ``masks`` where there was a mask; or a tuple of them.

        Raises:
            ValueError: bad input, one sentence, before anything is computed.
        """
        guidance = Guidance(guidance_scale, image_guidance_scale, tuple(guidance_interval))
        check_options(num_inference_steps, num_images_per_prompt, output_type)
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(f"callback_on_step_end_tensor_inputs has {sorted(unknown)}; known: latents.")
        self.require("draw", "transformer", "scheduler")
        config = self.transformer.config
        if rung_gains is not None:
            check_gains(rung_gains, config.num_layers)
        if condition is None:
            self.require("encode a prompt", *ENCODING)
            request = check_request(prompt, image, negative_prompt)
            branches, num_prompts = guidance.num_branches(request.images is not None), len(request.prompts)
            canvases, pictures = request.canvases, request.originals
        else:
            if prompt is not None or image is not None or negative_prompt:
                raise ValueError("Give either a condition, or a prompt with what belongs to it, not both.")
            shape = config.num_layers, config.caption_channels
            check_condition(condition, guidance, *shape, config.text_states)
            branches, canvases = condition.branches, condition.canvases
            pictures = canvases
            num_prompts = condition.states.shape[1] // branches
        if output_type == "latent" or any(given is not None for given in (height, width, latents, condition)):
            context = None
        task = check_repainting(pictures, canvases, mask, strength, feather, context, output_type)
        if task is not None and task.auto and condition is not None and branches == 1:
            raise ValueError(
                'mask="auto" needs a condition of guidance; encode it with guidance_scale above 1.'
            )
        reads = task is not None or (config.source_latents and canvases is not None)
        if output_type != "latent" or reads:
            self.require("read the picture" if reads else "show what it drew", "vae")
        batch = num_prompts * num_images_per_prompt
        generator = check_generator(generator, batch)
        # from noise alone all are drawn at once, over pictures one after the other
        drawn = [canvases] if task is None else task.canvases()
        shapes = [(batch // len(drawn), *self._latent_shape(height, width, each)) for each in drawn]

        with self.undisturbed():
            device = self._execution_device
            scheduler = scheduler_for_call(self.scheduler, num_inference_steps, device, strength)
            noises = draw_noises(shapes, device, generator, latents)
            call = copy.copy(self)  # what a call changes is its own
            call._interrupt = self._interrupt = False
            stopped = lambda: call._interrupt or self._interrupt  # noqa: E731
            sampling = Sampling(scheduler, guidance, rung_gains, callback_on_step_end, stopped)
            if task is not None:

                def read(number: int, canvas: Image.Image, branches: int) -> LadderCondition:
                    if condition is not None:
                        return condition.single(number)
                    return self._encode(request.single(number, canvas), branches)

                output = draw_over(call, sampling, task, read, noises, generator, output_type)
            else:
                if condition is None:
                    condition = self._encode(request, branches)
                latents = denoise(call, sampling, condition, noises[0], generator)
                images = latents if output_type == "latent" else self.decode(latents, output_type)
                output = LadderPipelineOutput(images=images)
        return output if return_dict else output.to_tuple()

    @torch.no_grad()
    def change_map(
        self,
        prompt: str | Sequence[str],
        image: ImageInput,
        negative_prompt: str | Sequence[str] = "",
        rung_gains: Sequence[float] | None = None,
    ) -> ChangeMapOutput:
        """Where an instruction changes its picture, as ``mask="auto"`` finds it.

        The map of a picture depends on nothing but the picture and what is asked: not on a seed, and not on
        what else is asked for. Takes two conditions and :data:`.change_map.EVALUATIONS` of the transformer.

        Args: as those of a call.

        Raises:
            ValueError: bad input, one sentence, before anything is computed.
        """
        self.require("find changes", *ENCODING, "vae")
        request = check_request(prompt, image, negative_prompt)
        if request.images is None:
            raise ValueError("A change map needs a picture that is changed; give image.")
        if rung_gains is not None:
            check_gains(rung_gains, self.transformer.config.num_layers)
        with self.undisturbed():
            each = [
                request.single(number, as_mapped(self, canvas))
                for number, canvas in enumerate(request.canvases)
            ]
            maps = [find_changes(self, self._encode(one, 2), rung_gains) for one in each]
        found = zip(maps, request.canvases, strict=True)
        masks = [find_mask(change, canvas.size)[..., None] for change, canvas in found]
        return ChangeMapOutput(maps, as_output(masks, "pil"))

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

    def prepare_rungs(
        self,
        condition: LadderCondition,
        per_prompt: int,
        device: torch.device,
        gains: Sequence[float] | None = None,
    ) -> Rungs:
        """What no step changes, for every branch and every result of a prompt."""
        states = condition.states.repeat_interleave(per_prompt, dim=1).to(device, self.transformer.dtype)
        mask = condition.mask.repeat_interleave(per_prompt, dim=0).to(device)
        rungs = self.transformer.prepare_rungs(states, mask, condition.text_tokens)
        return rungs if gains is None else scale_rungs(rungs, gains)

    @torch.no_grad()
    def prepare_seen(
        self, condition: LadderCondition, shape: tuple[int, ...], per_prompt: int, device: torch.device
    ) -> dict[str, torch.Tensor]:
        """What the transformer reads besides noisy latents, by argument, for every branch and every result.

        Args:
            condition: of the call.
            shape: of its latents.
            per_prompt: results of a prompt.
            device: where the transformer computes.
        """
        if condition.canvases is None or not self.transformer.config.source_latents:
            return {}
        height, width = (length * self.vae_scale_factor for length in shape[2:])

        def encode(pixels: torch.Tensor) -> torch.Tensor:
            vae = in_tiles_if_large(self.vae, height, width)
            return encode_latents(vae, pixels.to(device)).to(self.transformer.dtype)

        rows = branch_pictures([[canvas] for canvas in condition.canvases], condition.branches)
        source = encode_canvases(encode, [canvas for [canvas] in rows], width, height)
        return {"source_latents": source.repeat_interleave(per_prompt, dim=0)}

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, output_type: str = "pil") -> Any:
        """Latents to pictures, large ones in tiles.

        Raises:
            ValueError: pixels that are no numbers.
        """
        self.require("decode latents", "vae")
        height, width = (side * self.vae_scale_factor for side in latents.shape[-2:])
        vae = in_tiles_if_large(self.vae, height, width)
        latents = latents.to(vae.dtype) / vae.config.scaling_factor
        pixels = vae.decode(latents, return_dict=False)[0].float()
        if not pixels.isfinite().all():
            raise ValueError(
                "What was drawn is not finite and would be black; the model's weights hold NaN, or they are "
                "too large for float16: load it in bfloat16 or float32."
            )
        return VaeImageProcessor().postprocess(pixels, output_type=output_type)
