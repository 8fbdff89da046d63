"""A deep-compression autoencoder for sprite scenes, whose latents are 8 x 8 whatever the pictures' size.

diffusers' `AutoencoderDC`, in one of the `SHAPES`, trained for reconstruction only. Its latents come out with
a different scale in every channel; `normalise_latents` folds the normalisation into the two convolutions at
the bottleneck, so that a single `scaling_factor` of 1 is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC
from safetensors import safe_open
from torch import Tensor

from ..domain import edits, prompts
from ..domain.render import render
from . import stage
from .stage import StageRecipe, autocast

KINDS = {  # share of each kind of captioned scene; those of small sprites and letters are the hard ones
    "single": 0.08,
    "two": 0.12,
    "count": 0.15,
    "color": 0.07,
    "position": 0.12,
    "binding": 0.12,
    "dense": 0.2,
    "text": 0.14,
}
EDITED = 0.3  # share of pictures of edits
EXAMPLES = 64
SIDE = 8  # of the latents
NOISE = 0.03  # of the latents' standard deviation: the decoder must bear the generator's small errors


@dataclass(frozen=True)
class Shape:
    """Sizes of an autoencoder.

    Attributes:
        channels: of the latents.
        widths, depths: channels and blocks of its resolutions, from the pixels on. The first has no blocks:
            one convolution takes pixels to half their resolution.
        upsample: how the decoder doubles a resolution, see `AutoencoderDC`.
    """

    channels: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    upsample: str


SHAPES = {  # by the side of the pictures in pixels
    64: Shape(16, (24, 48, 96, 96), (0, 1, 2, 2), "interpolate"),
    128: Shape(32, (24, 24, 48, 96, 96), (0, 1, 1, 2, 2), "pixel_shuffle"),  # crisper edges for 0.4 M more
}


def build(size: int) -> AutoencoderDC:
    """The untrained autoencoder of pictures of `size` pixels: 3 x size x size to channels x 8 x 8."""
    shape = SHAPES[size]
    widths, depths, above = shape.widths, shape.depths, len(shape.widths) - 1
    blocks = ("ResBlock",) * above + ("EfficientViTBlock",)
    scales = ((),) * above + ((5,),)
    return AutoencoderDC(
        latent_channels=shape.channels,
        attention_head_dim=32,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=depths,
        decoder_layers_per_block=depths,
        encoder_qkv_multiscales=scales,
        decoder_qkv_multiscales=scales,
        upsample_block_type=shape.upsample,
        downsample_block_type="Conv",
        encoder_out_shortcut=False,  # the shortcut bypasses conv_out, into which the normalisation is folded
        decoder_in_shortcut=False,
        scaling_factor=1.0,
    ).to(memory_format=torch.channels_last)


def trained_size(run: str | Path) -> int:
    """Side of the pictures of a trained autoencoder, which the channels of its latents tell.

    Raises:
        ValueError: it has not been trained yet.
    """
    with safe_open(stage.trained_state(run), "pt") as state:
        [channels] = state.get_slice("model/vae.encoder.conv_out.bias").get_shape()
    return next(size for size, shape in SHAPES.items() if shape.channels == channels)


def pixels(pictures: list[np.ndarray]) -> Tensor:
    """Pictures [H, W, 3] uint8 as one batch [B, 3, H, W] float32 in -1..1, channels last."""
    batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return batch.contiguous(memory_format=torch.channels_last)


def pictures_of(batch: Tensor) -> list[np.ndarray]:
    """Inverse of `pixels`: clamps and rounds."""
    values = ((batch.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return list(values.permute(0, 2, 3, 1).contiguous().cpu().numpy())


def draw_batch(seed: str, number: int, size: int) -> Tensor:
    """Training pictures of `size` pixels: captioned scenes and both pictures of edits, those of many small
    sprites most.
    """
    random = Random(seed)
    pictures = []
    for _ in range(number):
        if random.random() < EDITED:
            edit = edits.sample(random)
            scene = random.choice((edit.source, edit.target))
        else:
            kind = random.choices(list(KINDS), list(KINDS.values()))[0]
            scene = prompts.sample(random, kind).scene
        pictures.append(render(scene, size))
    return pixels(pictures)


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Vertical and horizontal differences of neighbouring pixels."""
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Absolute plus squared error plus half the absolute error of the edges, which keeps small sprites
    crisp.
    """
    gradients = sum(F.l1_loss(a, b) for a, b in zip(edges(output), edges(target), strict=True))
    return F.l1_loss(output, target) + F.mse_loss(output, target) + 0.5 * gradients


def psnr(output: Tensor, target: Tensor) -> Tensor:
    """Mean peak signal-to-noise ratio of pictures in -1..1, in decibels."""
    error = ((output.clamp(-1, 1) - target) / 2).square().mean((1, 2, 3))
    return (-10 * error.log10()).mean()


@torch.no_grad()
def normalise_latents(vae: AutoencoderDC, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Shift and scale every latent channel to mean 0 and deviation 1 on `pictures`; the decoder undoes it.

    Exactly so but for the outermost latents: the decoder pads with zeros, which now stand for the mean.

    Returns the mean and the deviation [channels] that were folded in.
    """
    latents = vae.encode(pictures).latent
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    outward, inward = vae.encoder.conv_out, vae.decoder.conv_in
    outward.weight.div_(std[:, None, None, None])
    outward.bias.sub_(mean).div_(std)
    inward.bias.add_((inward.weight * mean[:, None, None]).sum((1, 2, 3)))
    inward.weight.mul_(std[:, None, None])
    return mean, std


def train(recipe: StageRecipe) -> None:
    """Train by a recipe, going on where its run left off."""
    torch.manual_seed(recipe.seed)
    vae = build(recipe.size)
    numbers = range(EXAMPLES // 8)
    held_out = [prompts.draw(recipe.seed, "held out", i, kind).scene for i in numbers for kind in KINDS]
    examples = pixels([render(scene, recipe.size) for scene in held_out])

    def step(number: int) -> Tensor:
        target = draw_batch(f"{recipe.seed}/autoencoder/{number}", recipe.batch, recipe.size)
        with autocast():
            latents = vae.encode(target).latent
            latents = latents + NOISE * latents.detach().float().std() * torch.randn_like(latents)
            output = vae.decode(latents).sample
        return reconstruction_loss(output.float(), target)

    @torch.no_grad()
    def evaluate() -> str:
        output = vae.decode(vae.encode(examples).latent).sample
        each = [psnr(output[i :: len(KINDS)], examples[i :: len(KINDS)]) for i in range(len(KINDS))]
        told = ", ".join(f"{kind} {value:.1f}" for kind, value in zip(KINDS, each, strict=True))
        return f"held out {psnr(output, examples):.2f} dB ({told})"

    stage.train(recipe, {"vae": vae}, step, evaluate)
