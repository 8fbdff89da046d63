"""How fast a run is: samples per second, waiting for data, share of the device's peak, memory."""

from __future__ import annotations

import re
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn

from ...core.checkpoints import LadderParts
from ...core.inputs import LadderInputs
from ...core.layers import text_columns

# Dense bfloat16 with float32 accumulation, 1e12 operations per second, from the makers' data sheets. The
# first pattern that matches the device's name counts; the more special ones come first.
PEAKS = {
    r"H100 PCIe": 756,
    r"H[12]00 NVL": 835,
    r"\b(G?H[12]00)\b": 989,
    r"\bG?B200\b": 2250,
    r"\bA100\b": 312,
    r"\bA40\b": 150,
    r"\bA10\b": 125,
    r"\bL40S\b": 362,
    r"\bL40\b": 181,
    r"\bL4\b": 121,
    r"RTX 6000 Ada": 364,
    r"RTX A6000": 155,
    r"RTX 5090$": 210,
    r"RTX 4090$": 165,
    r"RTX 3090$": 71,
    r"MI300X": 1307,
}


def peak_flops(device_name: str) -> float | None:
    """Dense bfloat16 peak of a device in FLOP/s; None where it is not known, or for a part of a device."""
    if "MIG" in device_name or "Laptop" in device_name:
        return None
    return next((peak * 1e12 for name, peak in PEAKS.items() if re.search(name, device_name)), None)


def peak_memory(device: torch.device) -> int:
    """Largest memory so far, bytes: allocated on an accelerator, resident in main memory on a CPU."""
    backend = getattr(torch, device.type)
    if hasattr(backend, "max_memory_allocated"):
        return backend.max_memory_allocated(device)
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class LadderFlops:
    """Operations of a training step of the ladder, from the shapes of its weights.

    A multiplication with an addition counts as two. Forward: two per weight of a linear layer or convolution
    and per position, and the products of attention, whole matrices also where they are causal. Backward: as
    much again for the gradient with respect to the inputs, and once more for that of trained weights. The
    prefix and the vision tower run forward only, and so do the queries where neither they nor the connector
    are trained. What gradient checkpointing computes twice counts once. The autoencoder, norms and
    activations are left out.

    Args:
        parts: the model, with ``requires_grad`` as it is trained.
    """

    def __init__(self, parts: LadderParts) -> None:
        transformer, connector, mllm = parts.transformer, parts.connector, parts.mllm
        config = transformer.config
        self.blocks = len(transformer.transformer_blocks)
        self.queries = connector.config.num_queries
        self.patch = config.patch_size
        self.backward = any(parameter.requires_grad for parameter in connector.parameters())

        rungs = [m for b in transformer.transformer_blocks for m in (b.attn2.to_k, b.attn2.to_v)]
        words = [b.attn2.to_v_text for b in transformer.transformer_blocks if b.attn2.to_v_text is not None]
        joined = step_cost(connector) if self.backward else 2 * num_weights(connector)
        into = (
            2 * num_weights(connector.layers[:1]) * self.backward
        )  # gradient with respect to the MLLM's states
        if connector.config.rungs in ("last", "final"):  # one state is joined for all blocks
            joined, into = joined / self.blocks, into / self.blocks
        joined += step_cost(transformer.caption_projection)
        self.per_rung_query = sum(map(step_cost, rungs)) / self.blocks + joined
        self.per_rung_text = self.per_rung_query - into
        self.per_sample = step_cost(transformer.time_embed)
        self.per_latent = (
            step_cost(transformer)
            - sum(map(step_cost, [*rungs, *words]))
            - step_cost(transformer.caption_projection)
            - self.per_sample
        )
        head_dim = config.attention_head_dim
        linear_attention = 4 * config.num_attention_heads * head_dim * (head_dim + 1)  # a row for the sums
        self.per_latent += 3 * self.blocks * linear_attention
        self.cross_width = config.num_cross_attention_heads * config.cross_attention_head_dim

        text = mllm.config.get_text_config()
        layers = mllm.model.language_model.layers
        if connector.config.rungs != "final":
            layers = layers[:-1]  # the last one never runs
        self.layers = len(layers)
        self.per_token = 2 * sum(map(num_weights, layers))
        self.text_width = text.num_attention_heads * layers[0].self_attn.head_dim

        visual, vision = mllm.model.visual, mllm.config.vision_config
        self.merged = vision.spatial_merge_size**2
        self.per_patch = 2 * (
            num_weights(visual.patch_embed)
            + num_weights(visual.blocks)
            + num_weights(visual.merger) / self.merged
        )
        self.vision_width = vision.hidden_size
        self.whole_attention = len(vision.fullatt_block_indexes)
        self.windowed_attention = vision.depth - self.whole_attention
        self.window = (vision.window_size // vision.patch_size) ** 2

    def transformer(self, latents: int, text: int = 0) -> float:
        """One sample through connector and diffusion transformer, forward and backward.

        Args:
            latents: tokens of the latent.
            text: tokens of the text, where the blocks attend to them.
        """
        cross = 3 * 4 * self.blocks * latents * (self.queries + text) * self.cross_width
        rungs = self.blocks * (self.queries * self.per_rung_query + text * self.per_rung_text)
        return self.per_sample + latents * self.per_latent + rungs + cross

    def prefix(self, tokens: int) -> float:
        """One sample's system, picture and text tokens through the MLLM, forward."""
        return tokens * (self.per_token + 4 * self.layers * tokens * self.text_width)

    def query_pass(self, prefix: int) -> float:
        """One sample's queries through the MLLM, forward and where it is needed backward."""
        linear = self.queries * self.per_token
        attention = 4 * self.layers * self.queries * (prefix + self.queries) * self.text_width
        return linear * (1 + self.backward) + attention * (1 + 2 * self.backward)

    def vision(self, patches: int) -> float:
        """One picture through the vision tower, forward.

        Args:
            patches: before merging.
        """
        seen = self.whole_attention * patches + self.windowed_attention * min(self.window, patches)
        return patches * (self.per_patch + 4 * seen * self.vision_width)

    def __call__(self, inputs: LadderInputs, latents: torch.Size) -> float:
        """A micro-batch.

        Args:
            inputs: prompts; pictures are counted unless their features come from a cache.
            latents: shape ``[batch, channels, height, width]``.
        """
        batch, _, height, width = latents
        prefix = inputs.input_ids.shape[1] - self.queries - 2  # the closing tokens never run
        tokens = (height // self.patch) * (width // self.patch)
        text = 0 if inputs.text_spans is None else text_columns(inputs.text_spans).shape[1]
        total = batch * (self.transformer(tokens, text) + self.prefix(prefix) + self.query_pass(prefix))
        if inputs.pixel_values is not None:
            total += sum(self.vision(patches) for patches in inputs.image_grid_thw.prod(-1).tolist())
        return total


def products(module: nn.Module) -> list[Tensor]:
    """Weights that are multiplied with: those of linear layers and convolutions."""
    return [m.weight for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Conv3d)]


def num_weights(module: nn.Module) -> int:
    """Multiplications per position."""
    return sum(weight.numel() for weight in products(module))


def step_cost(module: nn.Module) -> int:
    """Operations per position, forward and backward."""
    return sum(weight.numel() * (6 if weight.requires_grad else 4) for weight in products(module))


class Throughput:
    """Figures over the steps since they were last asked for. Time outside of steps is left out.

    Args:
        parts: the model.
        device: of this process.
        world: number of processes.
    """

    def __init__(self, parts: LadderParts, device: torch.device, world: int) -> None:
        self.flops = LadderFlops(parts)
        self.device = device
        self.world = world
        self.peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        self.reset()

    def reset(self) -> None:
        """Forget the steps so far."""
        self.seconds = self.wait = self.samples = self.done = 0.0

    def begin(self) -> None:
        """A step begins."""
        self.began = time.perf_counter()

    def see(self, inputs: LadderInputs, latents: torch.Size) -> None:
        """A micro-batch of this process; the shape of its latents."""
        self.done += self.flops(inputs, latents)

    def count(self, samples: float, wait: float) -> None:
        """A step is done.

        Args:
            samples: of all processes.
            wait: seconds that processes waited for data, summed over them.
        """
        self.seconds += time.perf_counter() - self.began
        self.samples += samples
        self.wait += wait

    def figures(self) -> dict[str, Any]:
        """For a line of the log, and start anew.

        Returns:
            ``samples_per_second`` of all processes; ``data_wait``, the share of time that processes waited
            for data, 0 … 1; ``mfu``, operations of this process by its device's dense bfloat16 peak, 0 … 1,
            None where either is not known; ``peak_memory`` of this process so far, bytes.
        """
        seconds = max(self.seconds, 1e-9)
        figures = {
            "samples_per_second": self.samples / seconds,
            "data_wait": min(self.wait / self.world / seconds, 1.0),
            "mfu": self.done / seconds / self.peak if self.peak and self.done else None,
            "peak_memory": peak_memory(self.device),
        }
        self.reset()
        return figures
