"""Stage 4: the diffusion transformer learns to draw, from the names of a scene before it reads the
language model.

The condition is a table of embeddings of the same names that the query slots learn to say (`naming`). So this
stage needs the autoencoder only and runs while the language model is still being trained; `ladder` then
fits the connector to this table and goes on with the real states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import torch
from diffusers import AutoencoderDC
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

from ...core.conditions import LadderCondition
from ...core.transformer import LadderTransformer2DModel
from ..objective import flow_matching_loss
from . import autoencoder, edits, loop, mllm, naming, scenes
from .scenes import Scene

BATCH = 48
SHIFT = 3.0  # levels as dense near noise as in sampling: with so little training time it beat the recipe's 1
POOL = 60_000  # distinct scenes that are drawn from; their latents are encoded once
WITHOUT_CAPTION = 0.1


def build() -> LadderTransformer2DModel:
    """The untrained diffusion transformer: six blocks of width 192 on 8 x 8 latents."""
    return LadderTransformer2DModel(
        in_channels=autoencoder.LATENT_CHANNELS,
        out_channels=autoencoder.LATENT_CHANNELS,
        num_attention_heads=6,
        attention_head_dim=32,
        num_layers=mllm.RUNGS,
        num_cross_attention_heads=3,
        cross_attention_head_dim=64,
        cross_attention_dim=mllm.WIDTH,
        caption_channels=mllm.WIDTH,
        mlp_ratio=2.5,
        sample_size=scenes.SIZE // 8,
        patch_size=1,
    )


class NameTable(nn.Module):
    """Caption states of named slots, normalised as the connector normalises: [batch, QUERIES, WIDTH]."""

    def __init__(self) -> None:
        super().__init__()
        self.names = nn.Embedding(len(naming.NAMES), mllm.WIDTH)
        self.slots = nn.Parameter(torch.randn(mllm.QUERIES, mllm.WIDTH))
        self.norm = RMSNorm(mllm.WIDTH, eps=1e-5, elementwise_affine=True)
        nn.init.constant_(self.norm.weight, 5.5**0.5)
        vague = torch.arange(len(naming.NAMES))[:, None].repeat(1, 3)
        for part, values in (("x", naming.COORDINATES), ("y", naming.COORDINATES), ("side", naming.SIDES)):
            first = naming.INDEX[part, values[0]]  # values come in threes that differ by the jitter only
            triples = torch.arange(first, first + len(values)).view(-1, 1, 3)
            vague[first : first + len(values)] = triples.expand(-1, 3, -1).flatten(0, 1)
        self.register_buffer("vague", vague, persistent=False)

    def forward(self, names: Tensor, vaguely: Tensor) -> Tensor:
        """Names [batch, QUERIES]; where `vaguely` [batch] is set, places are told but for the jitter."""
        exact, blurred = self.names(names), self.names(self.vague[names]).mean(-2)
        return self.norm(torch.where(vaguely[:, None, None], blurred, exact) + self.slots)


class Encoded:
    """Latents of a pool of scenes, each encoded when it is first asked for."""

    def __init__(self, vae: AutoencoderDC, scene: Callable[[int], Scene], size: int) -> None:
        self.vae, self.scene = vae, scene
        self.latents = torch.empty(size, autoencoder.LATENT_CHANNELS, 8, 8, dtype=torch.float16)
        self.known = torch.zeros(size, dtype=torch.bool)

    @torch.no_grad()
    def __call__(self, indices: Sequence[int]) -> Tensor:
        """Scaled latents [batch, 16, 8, 8] float32."""
        indices = torch.as_tensor(indices)
        new = indices[~self.known[indices]].unique()
        if len(new):
            pictures = autoencoder.pixels([scenes.render(self.scene(i)) for i in new.tolist()])
            with loop.autocast():
                latents = self.vae.encode(pictures).latent
            self.latents[new] = (latents * self.vae.config.scaling_factor).half()
            self.known[new] = True
        return self.latents[indices].float()


def load_vae(folder: Path) -> AutoencoderDC:
    """The trained autoencoder with its latents normalised."""
    vae = autoencoder.build()
    loop.load_stage(folder, "autoencoder", {"vae": vae})
    random = Random(95)
    autoencoder.normalise_latents(vae, autoencoder.draw_batch(random, 512))
    return vae.eval().requires_grad_(False)


def pool_scene(seed: int, index: int) -> Scene:
    """Scene of a pool: captioned scenes and the targets of edits by turns."""
    random = Random(f"{seed}/pool/{index}")
    return scenes.draw(random) if index % 2 else edits.draw(random).target


def noise_and_levels(seed: str, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Noise and uniform draws for the timesteps as a function of a name."""
    generator = torch.Generator().manual_seed(Random(seed).getrandbits(62))
    return torch.randn(latents.shape, generator=generator), torch.rand(len(latents), generator=generator)


def train(folder: Path, minutes: float, threads: int = 1, seed: int = 0) -> None:
    """Train transformer and name table."""
    vae, transformer, table = load_vae(folder), build(), NameTable()
    encoded = Encoded(vae, lambda index: pool_scene(seed, index), POOL)
    mask = torch.ones(BATCH, mllm.QUERIES, dtype=torch.long)

    def loss(names: Tensor, vaguely: Tensor, latents: Tensor, noise: Tensor, u: Tensor) -> Tensor:
        with loop.autocast():
            states = table(names, vaguely).expand(mllm.RUNGS, -1, -1, -1)
            condition = LadderCondition(states, mask[: len(names)])
            return flow_matching_loss(transformer, condition, latents, noise, u, SHIFT)

    def step(position: int) -> Tensor:
        random = Random(f"{seed}/drawing/{position}")
        indices = [random.randrange(POOL) for _ in range(BATCH)]
        latents = encoded(indices)
        told = [None if random.random() < WITHOUT_CAPTION else pool_scene(seed, index) for index in indices]
        names = torch.tensor([naming.slot_names(scene) for scene in told])
        vaguely = torch.tensor([random.random() < 0.5 for _ in indices])
        return loss(names, vaguely, latents, *noise_and_levels(f"{seed}/drawing/{position}", latents))

    held_out = Random(94)
    drawn = [scenes.draw(held_out, held_out=True) for _ in range(192)]
    examples = Encoded(vae, drawn.__getitem__, len(drawn))(range(len(drawn)))
    names = torch.tensor([naming.slot_names(scene) for scene in drawn])
    noise, _ = noise_and_levels("examples", examples)
    levels = (torch.arange(len(drawn)) + 0.5) / len(drawn)

    @torch.no_grad()
    def evaluate() -> str:
        parts = [slice(start, start + BATCH) for start in range(0, len(drawn), BATCH)]
        exact = torch.zeros(BATCH, dtype=torch.bool)
        losses = [loss(names[p], exact, examples[p], noise[p], levels[p]).item() for p in parts]
        return f"held-out loss {sum(losses) / len(losses):.4f}"

    stage = loop.Stage(
        "drawing",
        folder,
        minutes,
        BATCH,
        1.5e-3,
        0.01,
        warmup=100,
        decay=0.0,
        ema=0.999,
        threads=threads,
        seed=seed,
    )
    loop.train(stage, {"transformer": transformer, "table": table}, step, evaluate)
