"""The ladder transformer as ComfyUI's MODEL."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.supported_models_base
import torch
from comfy.patcher_extension import CallbacksMP, WrapperExecutor, WrappersMP, get_all_wrappers

from ..core.checkpoints import Dtypes
from ..core.conditions import KINDS, unfold_condition, unpack_condition
from ..core.rung_attention import Rungs
from ..core.rungs import scale_rungs
from ..core.schedulers import FLOW_SHIFT
from ..core.transformer import LadderTransformer2DModel
from .mllm import LatentSize
from .offload import cast_parameters, computed_in, make_patcher, use_comfy_ops
from .scaled import take_scaled
from .source import read_source

EXACT_TIMESTEP = "tbac_uniimage_timestep"
RUNG_GAINS = "tbac_uniimage_gains"  # transformer option: a tuple of one gain per rung
CONTEXTS_KEPT = 8  # whose rungs a run remembers; one of the released model takes 20 MB a picture


class LadderLatentFormat(comfy.latent_formats.LatentFormat):
    """LATENT wires carry the autoencoder's own latents; the model sees them scaled.

    Args:
        size: channels and pixels per latent.
        scale: the autoencoder's scaling factor.
        fit_rgb: makes factors ``[channels, 3]`` and bias ``[3]`` that turn scaled latents into a rough
            picture; called when the first preview is wanted.
    """

    def __init__(
        self, size: LatentSize, scale: float, fit_rgb: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    ) -> None:
        self.size = size
        self.fit_rgb = fit_rgb
        self.latent_channels = size.channels
        self.spacial_downscale_ratio = size.factor  # the name, misspelt, that newer ComfyUI reads
        self.scale_factor = scale

    @functools.cached_property
    def rgb(self) -> tuple[list, list]:
        """Factors and bias, fitted once."""
        factors, bias = self.fit_rgb()
        del self.fit_rgb  # and the autoencoder with it
        return factors.tolist(), bias.tolist()

    @property
    def latent_rgb_factors(self) -> list[list[float]]:
        """What ComfyUI's previewer reads, before the first step of a run that shows previews."""
        return self.rgb[0]

    @property
    def latent_rgb_factors_bias(self) -> list[float]:
        """The colour of zeros."""
        return self.rgb[1]


class LadderConfig(comfy.supported_models_base.BASE):
    """What ComfyUI wants to know of a model before it is built."""

    unet_config = {}
    unet_extra_config = {}
    sampling_settings = {"shift": FLOW_SHIFT, "multiplier": 1000}
    supported_inference_dtypes = [torch.bfloat16, torch.float32]
    memory_usage_factor = 4.0

    def inpaint_model(self) -> bool:
        """No extra latent channels for a mask."""
        return False


class LadderDiT(LadderTransformer2DModel):
    """The core transformer behind ComfyUI's calling convention. Parameter names stay those of the core.

    While a sampler runs, what no step changes (each block's keys and values) is computed once per distinct
    context; ``rung_cache`` is None whenever weights may change under it.

    ComfyUI compiles this module without guards on ``transformer_options``, so what the compiler reads from
    them stays what it was at the first step: :meth:`forward` and :meth:`read_options` are kept from it.
    """

    rung_cache: list[tuple[torch.Tensor, Rungs]] | None = None

    @torch.compiler.disable(recursive=False)
    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        context: torch.Tensor | None = None,
        control: dict | None = None,
        transformer_options: dict | None = None,
        **_: object,
    ) -> torch.Tensor:
        """Velocity for latents ``[batch, channels, h, w]``, timesteps 0 … 1000 and a folded condition.

        The latents of what is edited may follow as further channels of ``x``.
        """
        options = transformer_options or {}
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        executor = WrapperExecutor.new_class_executor(self.predict, self, wrappers)
        return executor.execute(x, timesteps, context, control, options)

    def predict(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        context: torch.Tensor,
        control: dict | None,
        transformer_options: dict,
        **_: object,
    ) -> torch.Tensor:
        """What :meth:`forward` does inside other packs' wrappers."""
        timesteps, rungs = self.read_options(timesteps, context, control, transformer_options)
        x, source = x.split((self.config.in_channels, x.shape[1] - self.config.in_channels), dim=1)
        seen = {"source_latents": source} if source.shape[1] else {}
        return super().forward(x, rungs, timesteps, return_dict=False, **seen)[0]

    @torch.compiler.disable
    def read_options(
        self,
        timesteps: torch.Tensor,
        context: torch.Tensor,
        control: dict | None,
        transformer_options: dict,
    ) -> tuple[torch.Tensor, Rungs]:
        """Timesteps and rungs of a step, as its options want them."""
        refuse_patches(control, transformer_options)
        exact = transformer_options.get(EXACT_TIMESTEP)
        if exact is not None:
            timesteps = torch.full_like(timesteps, exact)
        rungs = self.rungs_of(context)
        gains = transformer_options.get(RUNG_GAINS)
        if gains is not None:
            rungs = scale_rungs(rungs, gains)
        return timesteps * self.config.timestep_scale, rungs

    def rungs_of(self, context: torch.Tensor) -> Rungs:
        """Rungs of a folded condition ``[batch, tokens, layers * dim]``, packed if it has the text's tokens.

        Raises:
            ValueError: a conditioning of another model.
        """
        layers, reads_text = self.config.num_layers, self.config.text_states
        width = self.config.caption_channels + (KINDS if reads_text else 0)
        if context is None or context.ndim != 3 or context.shape[-1] != layers * width:
            found = "none" if context is None else f"of shape {list(context.shape)}"
            raise ValueError(
                f"The conditioning is {found}, this model needs {layers} rungs of {width} values; make it "
                "with Multi-Layer MLLM Encode of the same model."
            )
        for known, rungs in self.rung_cache or ():
            if known.shape == context.shape and torch.equal(known, context):
                return rungs
        states = unfold_condition(context, layers)
        rungs = self.prepare_rungs(*unpack_condition(states) if reads_text else (states,))
        if self.rung_cache is not None:
            self.rung_cache.append((context, rungs))
            del self.rung_cache[:-CONTEXTS_KEPT]
        return rungs


class LadderModel(comfy.model_base.BaseModel):
    """Adopts a loaded transformer instead of building one, so that the weights are held once."""

    def __init__(self, config: LadderConfig, transformer: LadderDiT, device: torch.device) -> None:
        super().__init__(
            config, comfy.model_base.ModelType.FLOW, device=device, unet_model=lambda **_: transformer
        )

    def concat_cond(self, **given: Any) -> torch.Tensor | None:
        """The latents of what is edited, scaled. Raises ValueError for those that this model cannot read."""
        source = read_source(given, self.diffusion_model.config.source_latents)
        return None if source is None else self.process_latent_in(source).to(given["device"])


def refuse_patches(control: object, options: dict) -> None:
    """Raise ValueError for what other nodes ask of attention layers that this model has not."""
    if control is not None:
        raise ValueError(
            "A ControlNet is connected and this model has none; remove it, or edit the picture instead."
        )
    asked = sorted(
        name
        for kind in ("patches", "patches_replace")
        for name, found in options.get(kind, {}).items()
        if found
    )
    if asked:
        raise ValueError(
            f"A node patches {', '.join(asked)}, which this model has not, so it would change nothing; "
            "remove the node between Load Model and the sampler."
        )


def prepare_run(
    executor: WrapperExecutor,
    noise: torch.Tensor,
    latents: torch.Tensor,
    *arguments: object,
    **options: object,
) -> torch.Tensor:
    """ComfyUI's wrapper of a whole run: refuses what would draw noise, and makes areas in pixels right.

    ConditioningSetArea divides pixels by 8 whatever the model; here a latent may be 32 pixels wide.
    """
    guider = executor.class_obj
    timestep = guider.model_patcher.get_model_object("model_sampling").timestep(torch.tensor([0.5]))
    if abs(timestep.item() - 500) > 1:
        raise ValueError(
            "A node between Load Model and the sampler sets the timesteps of another kind of model; use "
            "ModelSamplingSD3 to change the shift."
        )
    size = guider.model_patcher.get_model_object("latent_format").size
    if latents.ndim != 4 or latents.shape[1] != size.channels:
        raise ValueError(
            f"The latent has the shape {list(latents.shape)} and this model needs {size.channels} channels; "
            "encode the picture with the VAE of Load Model, or use Empty Ladder Latent."
        )
    for conditioning in guider.conds.values():
        for entry in conditioning:
            area = entry.get("area")
            if area is not None and area[0] != "percentage":
                sides = [max(1, round(length * 8 / size.factor)) for length in area[:2]]
                entry["area"] = (*sides, *(round(place * 8 / size.factor) for place in area[2:]))
    return executor(noise, latents, *arguments, **options)


def weight_dtypes(transformer: torch.nn.Module, dtype: torch.dtype | None) -> Dtypes:
    """What a transformer computes in, with its norms, biases and tables, and what its layers are kept in.

    Args:
        dtype: as of :func:`make_model`.
    """
    management, supported = comfy.model_management, LadderConfig.supported_inference_dtypes
    device = management.get_torch_device()
    if dtype is None:
        count = sum(parameter.numel() for parameter in transformer.parameters())
        dtype = management.unet_dtype(device, count, supported)
    return Dtypes(dtype if dtype == torch.float32 else computed_in(dtype, device), dtype)


def make_model(
    transformer: LadderTransformer2DModel,
    latent_format: LadderLatentFormat,
    dtype: torch.dtype | None,
    disable_dynamic: bool = False,
    scaled: Path | None = None,
) -> comfy.model_patcher.ModelPatcher:
    """Turn the core transformer, in place, into a MODEL.

    Args:
        dtype: dtype of the weights; None lets ComfyUI choose for the device. In one that the model does not
            compute in (float16, which linear attention overflows, and float8) only the weights of linear and
            convolution layers are kept.
        disable_dynamic: see :func:`.offload.make_patcher`.
        scaled: a file with ComfyUI's scales, whose weights it gets in place of its own.
    """
    management = comfy.model_management
    device, offload_device = management.get_torch_device(), management.unet_offload_device()
    config = LadderConfig({})
    config.latent_format = latent_format
    compute, dtype = weight_dtypes(transformer, dtype)
    config.set_inference_dtype(dtype, None if compute == dtype else compute)
    config.custom_operations = comfy.ops.pick_operations(dtype, compute)

    # norms, biases and tables stay precise: few bytes, and the tables are added without a cast on the way
    cast_parameters(transformer.eval().requires_grad_(False), compute, layers=dtype)
    use_comfy_ops(transformer, config.custom_operations)
    if scaled is not None:
        take_scaled(transformer, scaled, config, compute)
    transformer.__class__ = LadderDiT
    model = LadderModel(config, transformer, offload_device)
    patcher = make_patcher(model, device, offload_device, disable_dynamic)
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "tbac_uniimage", prepare_run)
    remember_rungs_while_sampling(patcher)
    return patcher


def remember_rungs_while_sampling(patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Open the rung cache when a sampler starts, close it when it ends or when hooks change the weights."""

    def start(running: comfy.model_patcher.ModelPatcher) -> None:
        running.model.diffusion_model.rung_cache = [] if running.current_hooks is None else None

    def stop(running: comfy.model_patcher.ModelPatcher, *_: object) -> None:
        running.model.diffusion_model.rung_cache = None

    def on_hooks(running: comfy.model_patcher.ModelPatcher, hooks: object) -> None:
        if hooks is not None:
            stop(running)

    key = "tbac_uniimage"
    patcher.add_callback_with_key(CallbacksMP.ON_PRE_RUN, key, start)
    patcher.add_callback_with_key(CallbacksMP.ON_CLEANUP, key, stop)
    patcher.add_callback_with_key(CallbacksMP.ON_APPLY_HOOKS, key, on_hooks)
