"""The model as a diffusers pipeline: text-to-image, editing by instruction, and answers about pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from diffusers import AutoencoderDC, DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.schedulers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from transformers import BaseImageProcessor, PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from .checkpoints.export import complete_folder, forget_origin
from .conditions import LadderCondition, LadderEncoder
from .connector import LadderConnector
from .guidance import Guidance, branch_inputs
from .prompts import MAX_TEXT_TOKENS, SYSTEM_PROMPT
from .requests import ImageInput, Request, check_request, check_size, fit_size
from .rungs import check_gains, scale_rungs
from .transformer import LadderTransformer2DModel, RungKV, Rungs
from .understanding import Answer, ask
from .versions import IS_4, name_image_processor


class LadderPipeline(DiffusionPipeline):
    """TBAC-UniImage: a frozen MLLM and a diffusion transformer joined rung by rung.

    Args:
        mllm: frozen Qwen2.5-VL.
        tokenizer: its tokenizer.
        image_processor: its PIL image processor (patch size and pixel budget of input images).
        connector: queries and connector.
        transformer: ladder-conditioned SANA.
        vae: deep-compression autoencoder.
        scheduler: DPM-Solver++ on flow sigmas (the recipe) or flow-matching Euler.
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
        self.vae_scale_factor = vae.spatial_compression_ratio
        self.latent_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self.encoder = LadderEncoder(
            mllm,
            connector,
            tokenizer,
            image_processor,
            num_layers=transformer.config.num_layers,
            system_prompt=system_prompt,
            max_text_tokens=max_text_tokens,
        )

    @classmethod
    def _get_signature_types(cls) -> dict[str, tuple[type, ...]]:
        """What each argument may be, for diffusers before 0.39, which reads no annotations that are text."""
        hints = get_type_hints(cls.__init__)
        return {name: get_args(hint) or (hint,) for name, hint in hints.items() if name != "return"}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> LadderPipeline:
        """Load a pipeline folder, a checkpoint in the released layout, or either from the hub.

        A pipeline folder takes every argument of :meth:`DiffusionPipeline.from_pretrained`. A released
        checkpoint takes ``torch_dtype`` and those of :func:`.checkpoints.load_parts`; with transformers 4 so
        does a pipeline folder.
        """
        from .checkpoints import is_pipeline_folder, load_parts

        path = Path(pretrained_model_name_or_path)
        if not path.exists() and str(pretrained_model_name_or_path).count("/") == 1:
            from huggingface_hub import snapshot_download

            patterns = ["*.json", "*.txt", "*.safetensors"]
            path = Path(snapshot_download(str(pretrained_model_name_or_path), allow_patterns=patterns))
        if is_pipeline_folder(path) and not IS_4:  # it reads no tokenizer that transformers 5 saved
            name_image_processor()
            return super().from_pretrained(path, **kwargs)
        dtype = kwargs.pop("torch_dtype", kwargs.pop("dtype", None))
        return cls(**vars(load_parts(path, dtype=dtype, **kwargs)))

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write a pipeline folder, whole or not at all; arguments as in diffusers.

        Raises:
            ValueError: ``save_directory`` is there already and not empty.
        """
        with complete_folder(save_directory) as unfinished:
            super().save_pretrained(unfinished, **kwargs)
            forget_origin(unfinished)

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
        return self._encode(request, guidance.num_branches(request.images is not None))

    @torch.no_grad()
    def _encode(self, request: Request, branches: int) -> LadderCondition:
        prompts, images = branch_inputs(request.prompts, request.negatives, request.images, branches)
        return self.encoder(prompts, images)

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
        generator: torch.Generator | list[torch.Generator] | None = None,
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
            generator: one generator, or one per result.
            latents: initial noise ``[prompts * num_images_per_prompt, channels, h, w]``.
            condition: what :meth:`encode_prompt` returned for the same kind of guidance, in place of
                ``prompt``, ``image`` and ``negative_prompt``.
            guidance_interval: part of the steps that is guided.
            output_type: "pil", "np", "pt" or "latent" (scaled latents).
            callback_on_step_end: called as ``f(pipeline, step, timestep, {"latents": …})``; may return
                other latents, and may set ``pipeline._interrupt`` to stop.
            rung_gains: how loud each block hears its rung, one number from 0 (mute) to 10 for each; 1 = as
                trained. :func:`.rungs.preset_gains` and :func:`.rungs.parse_curve` make such lists.

        Raises:
            ValueError: bad input, one sentence, before anything is computed.
        """
        guidance = Guidance(guidance_scale, image_guidance_scale, tuple(guidance_interval))
        self._check_call(num_inference_steps, num_images_per_prompt, output_type, prompt, condition)
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(f"callback_on_step_end_tensor_inputs has {sorted(unknown)}; known: latents.")
        source_size = None
        if rung_gains is not None:
            check_gains(rung_gains, self.transformer.config.num_layers)
        if condition is None:
            request = check_request(prompt, image, negative_prompt)
            branches, num_prompts = guidance.num_branches(request.images is not None), len(request.prompts)
            source_size = request.images[0][0].size if request.images else None
        else:
            branches = self._branches_of(condition, guidance)
            num_prompts = condition.states.shape[1] // branches
        height, width = self._size(height, width, source_size)

        device = self._execution_device
        self._interrupt = False
        batch = num_prompts * num_images_per_prompt
        latents = self.prepare_latents(batch, height, width, device, generator, latents)
        if condition is None:
            condition = self._encode(request, branches)
        rungs = self.prepare_rungs(condition, num_images_per_prompt, device)
        if rung_gains is not None:
            rungs = scale_rungs(rungs, rung_gains)

        self.scheduler.set_timesteps(num_inference_steps, device=device)
        timesteps = self.scheduler.timesteps
        with self.progress_bar(total=len(timesteps)) as progress:
            for i, t in enumerate(timesteps):
                if self._interrupt:
                    break
                active = branches if guidance.is_active(i, len(timesteps)) else 1
                velocity = self._velocity(latents, t, last_branches(rungs, active * batch), active)
                velocity = guidance.combine(velocity, active)
                latents = self.scheduler.step(velocity, t, latents, return_dict=False)[0]
                if callback_on_step_end is not None:
                    returned = callback_on_step_end(self, i, t, {"latents": latents})
                    latents = (returned or {}).pop("latents", latents)
                progress.update()

        images = latents if output_type == "latent" else self.decode(latents, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _velocity(self, latents: torch.Tensor, t: torch.Tensor, rungs: Rungs, branches: int) -> torch.Tensor:
        """Velocities of all branches ``[branches * batch, …]``, float32 because guidance amplifies."""
        x = torch.cat([latents] * branches).to(self.transformer.dtype)
        timestep = t.expand(len(x)) * self.transformer.config.timestep_scale
        return self.transformer(x, rungs, timestep, return_dict=False)[0].float()

    def _check_call(
        self, steps: int, per_prompt: int, output_type: str, prompt: Any, condition: LadderCondition | None
    ) -> None:
        if steps < 1:
            raise ValueError(f"num_inference_steps is {steps}; give at least 1.")
        if per_prompt < 1:
            raise ValueError(f"num_images_per_prompt is {per_prompt}; give at least 1.")
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type is {output_type!r}; choose pil, np, pt or latent.")
        if (prompt is None) == (condition is None):
            raise ValueError("Give either a prompt or a condition, not both and not neither.")

    def _branches_of(self, condition: LadderCondition, guidance: Guidance) -> int:
        """Branches of a condition made earlier; editing is told from text-to-image by image guidance."""
        branches = guidance.num_branches(has_images=guidance.image != 1)
        if condition.states.shape[1] % branches:
            raise ValueError(
                f"The condition holds {condition.states.shape[1]} rows, no multiple of the {branches} "
                "branches of this guidance; encode it with the same guidance scales."
            )
        return branches

    def _size(self, height: int | None, width: int | None, source: tuple[int, int] | None) -> tuple[int, int]:
        """Checked height and width; by default the trained area, in the proportions of ``source`` if any."""
        side = self.transformer.config.sample_size * self.vae_scale_factor
        if height is None and width is None and source is not None:
            width, height = fit_size(source, side, self.vae_scale_factor)
        height, width = (side if length is None else length for length in (height, width))
        check_size(height, width, self.vae_scale_factor)
        return height, width

    def prepare_latents(
        self,
        batch: int,
        height: int,
        width: int,
        device: torch.device,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Initial noise, float32 ``[batch, channels, height / factor, width / factor]``."""
        factor = self.vae_scale_factor
        shape = (batch, self.vae.config.latent_channels, height // factor, width // factor)
        if latents is not None:
            if tuple(latents.shape) != shape:
                raise ValueError(f"latents have shape {list(latents.shape)}; this call needs {list(shape)}.")
            return latents.to(device, torch.float32)
        if isinstance(generator, list) and len(generator) != batch:
            raise ValueError(
                f"{len(generator)} generators were given for {batch} results; give one for each."
            )
        return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)

    def prepare_rungs(self, condition: LadderCondition, per_prompt: int, device: torch.device) -> Rungs:
        """What no step changes, for every branch and every result of a prompt."""
        states = condition.states.repeat_interleave(per_prompt, dim=1).to(device, self.transformer.dtype)
        mask = condition.mask.repeat_interleave(per_prompt, dim=0).to(device)
        return self.transformer.prepare_rungs(states, mask)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, output_type: str = "pil") -> Any:
        """Latents to pictures."""
        latents = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        return self.latent_processor.postprocess(
            self.vae.decode(latents, return_dict=False)[0].float(), output_type=output_type
        )

    def ask(
        self,
        image: Image.Image | Sequence[Image.Image] | None,
        question: str,
        max_new_tokens: int = 128,
        vocabulary_rows: torch.Tensor | None = None,
    ) -> Answer:
        """Answer a question about a picture (or up to four) with the frozen MLLM (see :func:`.ask`)."""
        images = [] if image is None else [image] if isinstance(image, Image.Image) else list(image)
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
