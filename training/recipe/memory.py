"""How much memory a device needs for a recipe, before anything is loaded.

Computed exactly, from the shapes of parameters: weights, gradients, optimizer state and averages, and what
sharding leaves of them. Counted: activations. One micro-batch is run forward and backward on tensors that
have a shape and no values (the real modules, autograd, autocast and gradient checkpointing), and every tensor
that is alive is added up; the largest sum counts. Modelled: the vision tower's intermediate values, the
weights that FSDP2 gathers, and what no tensor shows (a device context, kernels' workspaces, fragmentation).
Prompts are taken as long as they may be. Kernels differ between devices, so expect errors of some 10 %.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache

from ...core.checkpoints import LadderParts
from ...core.checkpoints.parts import place
from ...core.checkpoints.released import ROW_NAMES
from ...core.conditions import LadderCondition
from ...core.encoder import LadderEncoder
from ...core.guidance import Guidance
from ...core.schedulers import step_levels
from ..step.few_steps import few_step_losses, guided, velocity_of
from ..step.lora import add_lora
from ..step.objective import flow_matching_losses
from .recipe import Recipe
from .settings import DistillationSettings

CHAT_TOKENS = 48  # of a prompt beside text and pictures
CONTEXT = 1 << 30  # of a CUDA device with its libraries
FRAGMENTATION = 0.05  # of what is allocated and freed again
SCALES_8BIT = {"int8": 5, "fp8": 4}  # torchao: bytes of a row's scale, and of its zero
BLOCK_8BIT, SMALLEST_8BIT = 256, 4096  # bitsandbytes: values per scale; smaller tensors stay float32


def estimate_memory(parts: LadderParts, recipe: Recipe, world: int = 1, images: int = 1) -> dict[str, int]:
    """Bytes on one device by what they are for; their sum is what the device needs.

    Args:
        parts: the model, also without memory (``core.checkpoints.released_parts_on_meta``).
        recipe: of the run.
        world: number of devices.
        images: input images of a sample: 0 for captions only, 1 for edits.
    """
    train = recipe.train
    dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
    model = on_meta(parts, recipe, dtype)
    trained = [p for p in model_parameters(model) if p.requires_grad]
    shards = world if train.parallel == "fsdp2" else 1
    shared = frozen_sizes(model, recipe)
    sharded = {
        "trained weights": size(trained),
        "gradients": size(trained),
        "optimizer state": sum(moments(p.numel(), train.optimizer) for p in trained),
        "averaged weights": size(trained) if train.ema else 0,
        "frozen generator": size(p for p in model_parameters(model) if not p.requires_grad),
    }
    if recipe.distils and train.parts == "all":  # of a LoRA it is the transformer without
        shared["teacher"] = dtype.itemsize * count(model_parameters(model))
    estimate = shared | {name: -(-n // shards) for name, n in sharded.items()}
    if shards > 1:
        estimate["gathered weights"] = gathered_size(model, dtype)
    estimate["activations"] = count_activations(model, recipe, dtype, images, gathered=shards > 1)
    moving = estimate["activations"] + estimate.get("gathered weights", 0)
    estimate["context and fragmentation"] = CONTEXT + int(FRAGMENTATION * moving)
    return {name: n for name, n in estimate.items() if n}


def parameter_counts(parts: LadderParts, recipe: Recipe) -> dict[str, tuple[int, int]]:
    """Trained and frozen parameters by part; the MLLM without the head, which training does not need."""
    model = on_meta(parts, recipe, torch.float32)
    parameters = {
        "queries": [model.connector.queries],
        "connector": [p for name, p in model.connector.named_parameters() if name not in ROW_NAMES],
        "diffusion transformer": [*model.transformer.parameters()],
        "MLLM": [*model.mllm.model.language_model.parameters()],
        "vision tower": [*model.mllm.model.visual.parameters()],
        "autoencoder": [*model.vae.parameters()],
    }
    return {
        name: (count(p for p in some if p.requires_grad), count(p for p in some if not p.requires_grad))
        for name, some in parameters.items()
    }


def moments(values: int, optimizer: str) -> int:
    """Bytes of both moments of a parameter, and its step counter."""
    if optimizer == "adamw_8bit" and values >= SMALLEST_8BIT:
        return 2 * (values + 4 * -(-values // BLOCK_8BIT)) + 4
    return 2 * 4 * values + 4


def count(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in parameters)


def size(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def model_parameters(model: LadderParts) -> list[nn.Parameter]:
    """Of connector and transformer."""
    return [*model.connector.parameters(), *model.transformer.parameters()]


def frozen_sizes(model: LadderParts, recipe: Recipe) -> dict[str, int]:
    """Bytes of what is frozen on every device, by part.

    Where the language model is in 8 bits or away, a layer has its weights in full while it computes, and
    until the gradient of the queries has passed it: of one block where blocks are checkpointed, else of all.
    """
    mllm, kind = model.mllm.model, recipe.base.mllm_dtype
    language = mllm.language_model
    table, norm = (size(layer.parameters()) for layer in (language.embed_tokens, language.norm))
    full, kept = ([sum(layer_sizes(block, how)) for block in language.layers] for how in (None, kind))
    computed = max(full) if recipe.train.gradient_checkpointing else sum(full)
    if recipe.train.offload:
        towers = [max(layer_sizes(tower)) for tower in (mllm.visual, model.vae)]
        return {"frozen layers at a time": max(table, computed + (max(kept) if kind else 0), *towers)}
    return {
        "frozen MLLM": table + sum(kept) + norm,
        "frozen MLLM, layers in full": computed if kind else 0,
        "frozen vision tower": size(mllm.visual.parameters()),
        "frozen autoencoder": size(model.vae.parameters()),
    }


def layer_sizes(module: nn.Module, kind: str | None = None) -> list[int]:
    """Bytes of the parameters that each layer within a module has of its own, as ``kind`` keeps them."""
    sizes = []
    for layer in module.modules():
        own = size(layer.parameters(recurse=False))
        if kind and isinstance(layer, nn.Linear):
            weight = layer.weight
            own += weight.numel() - size([weight]) + SCALES_8BIT[kind] * len(weight)
        sizes.append(own)
    return sizes


def on_meta(parts: LadderParts, recipe: Recipe, dtype: torch.dtype) -> LadderParts:
    """The model as training holds it, on the meta device.

    Args:
        parts: what has the configurations.
        recipe: of the run.
        dtype: of frozen weights.
    """
    trained = torch.float32 if recipe.train.parts == "all" else dtype
    with torch.device("meta"):
        mllm = type(parts.mllm)(parts.mllm.config)
        vae, connector, transformer = map(again, (parts.vae, parts.connector, parts.transformer))
    for module, kind in ((mllm, dtype), (vae, dtype), (connector, trained), (transformer, trained)):
        place(module, "meta", kind)
    mllm.requires_grad_(False).eval()
    vae.requires_grad_(False).eval()
    if recipe.train.parts == "lora":
        lora = recipe.train.lora
        connector.requires_grad_(False)
        add_lora(transformer, lora.rank, lora.alpha, lora.dropout, lora.targets)
    if recipe.train.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    return replace(parts, mllm=mllm, vae=vae, connector=connector, transformer=transformer.train())


def again(module: ModelMixin) -> Any:
    """A module of the same configuration; ``from_config`` would leave out what was said without a name."""
    return type(module)(**{key: value for key, value in module.config.items() if not key.startswith("_")})


def without_values(module: nn.Module) -> nn.Module:
    """Give a module on the meta device tensors that pass for ones on the CPU (in a FakeTensorMode)."""
    known: dict[Tensor | None, Tensor | None] = {None: None}
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter not in known:
                values = torch.empty(parameter.shape, dtype=parameter.dtype)
                known[parameter] = nn.Parameter(values, parameter.requires_grad)
            owner._parameters[name] = known[parameter]
        for name, buffer in owner._buffers.items():
            owner._buffers[name] = None if buffer is None else torch.empty(buffer.shape, dtype=buffer.dtype)
    return module


class LiveBytes(TorchDispatchMode):
    """Adds up the memory of tensors made within, while they live.

    Args:
        known: tensors that do not count, though operators write into them.

    Attributes:
        peak: largest sum so far, bytes.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.known = [tensor.untyped_storage() for tensor in known]
        self.sizes = {storage._cdata: 0 for storage in self.known}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.enter(tensor.untyped_storage())
        return result

    def enter(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.sizes:
            self.sizes[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.leave, storage._cdata)

    def leave(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


def count_activations(
    model: LadderParts, recipe: Recipe, dtype: torch.dtype, images: int, gathered: bool
) -> int:
    """Largest memory of all but weights, gradients and optimizer at any time of a micro-batch, bytes.

    Args:
        model: of :func:`on_meta`; used up.
        recipe: of the run.
        dtype: of frozen weights, and of what is computed.
        images: input images of a sample.
        gathered: the engine brings trained weights in ``dtype``; otherwise autocast makes copies, which are
            counted here.
    """
    batch, side = recipe.train.micro_batch, recipe.data.resolution
    if gathered:
        place(model.connector, "meta", dtype)
        place(model.transformer, "meta", dtype)
    with FakeTensorMode():
        modules = [model.mllm, model.vae, model.connector, model.transformer]
        weights = [p for module in modules for p in without_values(module).parameters()]
        trained = [p for p in model_parameters(model) if p.requires_grad]
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
        encoding = LiveBytes(weights)
        with encoding, autocast, torch.no_grad():
            shape = model.vae.encode(torch.empty(batch, 3, side, side, dtype=dtype)).latent.shape
        tokens, vision = vision_activations(model, batch * images, dtype)
        step = LiveBytes([*weights, *(parameter.grad for parameter in trained)])
        with step:
            latents, noise, u = torch.empty(shape), torch.empty(shape), torch.empty(batch)
            seen = model.transformer.nothing_seen(latents)
            with autocast:
                if recipe.distils:
                    with torch.no_grad():
                        told = longest_condition(model, batch * (3 if images else 2), tokens, dtype)
                    own = recipe.train.parts == "all"  # of a LoRA the student is told what the teacher is
                    condition = longest_condition(model, batch, tokens, dtype) if own else None
                    losses = distillation_losses(model, recipe.distillation, told, condition, noise, seen)
                else:
                    condition = longest_condition(model, batch, tokens, dtype)
                    losses = flow_matching_losses(
                        model.transformer, condition, latents, noise, u, recipe.objective.shift, seen=seen
                    )
            losses.sum().backward()
    encodes = (not recipe.distils or seen) and not recipe.data.cache.latents
    return max(step.peak, vision, encoding.peak if encodes else 0)


def distillation_losses(
    model: LadderParts,
    settings: DistillationSettings,
    told: LadderCondition,
    condition: LadderCondition | None,
    noise: Tensor,
    seen: Mapping[str, Tensor],
) -> Tensor:
    """Those of captions (2 branches of guidance) or of edits (3).

    Args:
        told: what the teacher is, branch by branch.
        condition: what the student is, if that is not the last of it.
    """
    rows = torch.arange(told.states.shape[1]).view(-1, len(noise))
    none = torch.empty(5 - len(rows), 0, dtype=torch.long)
    branches = (rows, none) if len(rows) == 2 else (none, rows)
    guidances = (Guidance(settings.guidance), Guidance(settings.edit_guidance, settings.image_guidance))
    prepare = partial(model.transformer.prepare_rungs, text_tokens=told.text_tokens)
    with torch.no_grad():
        taught = prepare(told.states)
    rungs = prepare(told.states[:, rows[-1]] if condition is None else condition.states)
    teacher = guided(model.transformer, taught, branches, guidances, seen, {})
    student = partial(velocity_of, model.transformer, rungs=rungs, seen=seen)
    return few_step_losses(student, teacher, noise, step_levels(settings.steps), settings.solver_steps)


def vision_activations(model: LadderParts, images: int, dtype: torch.dtype) -> tuple[int, int]:
    """Vision tokens per image, and a model of the tower's memory for all: the widest point of a block."""
    vision = model.mllm.config.vision_config
    pixels = model.image_processor.size["longest_edge"]
    tokens = pixels // (vision.patch_size * vision.spatial_merge_size) ** 2
    patches = images * tokens * vision.spatial_merge_size**2
    width = 4 * vision.hidden_size + 3 * vision.intermediate_size
    return tokens * bool(images), patches * width * dtype.itemsize


def longest_condition(
    model: LadderParts, batch: int, vision_tokens: int, dtype: torch.dtype
) -> LadderCondition:
    """What MLLM and connector make of the longest prompts: prefix without gradient, then the queries."""
    encoder = LadderEncoder(
        model.mllm,
        model.connector,
        model.tokenizer,
        model.image_processor,
        num_layers=model.transformer.config.num_layers,
    )
    encoder.gradient_checkpointing = model.transformer.gradient_checkpointing
    length = CHAT_TOKENS + model.max_text_tokens + vision_tokens
    queries = model.connector.queries
    cache = DynamicCache(config=model.mllm.config.get_text_config())
    with torch.no_grad():
        prefix = torch.empty(batch, length, queries.shape[1], dtype=dtype)
        positions = torch.zeros(3, batch, length, dtype=torch.long)
        layers = encoder.layer_inputs(prefix, None, positions, cache)
        text = model.max_text_tokens if model.transformer.config.text_states else 0
        beside = encoder.rungs_of(states[:, length - text :].clone() for states in layers)
    positions = torch.zeros(3, batch, len(queries), dtype=torch.long)
    states = encoder.run_layers(queries.to(dtype).expand(batch, -1, -1), None, positions, cache)
    states = torch.cat([states, beside], dim=2) if text else states
    return LadderCondition(encoder.caption_states(states), None, text_tokens=text)


def gathered_size(model: LadderParts, dtype: torch.dtype) -> int:
    """What FSDP2 holds whole at a time: two blocks and all that is in no block, and a block's gradients."""
    blocks = [count(block.parameters()) for block in model.transformer.transformer_blocks]
    outside = count(model_parameters(model)) - sum(blocks)
    return (2 * max(blocks) + outside) * dtype.itemsize + 4 * max(max(blocks), outside)
