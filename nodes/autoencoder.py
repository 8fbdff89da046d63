"""The deep-compression autoencoder as ComfyUI's VAE."""

from __future__ import annotations

import logging

import comfy.model_management
import comfy.ops
import comfy.sd
import torch
from diffusers import AutoencoderDC

from ..core.editing import as_rgb, check_pictures
from .offload import cast_parameters, make_patcher, use_comfy_ops

ENCODE_VALUES, DECODE_VALUES = 920, 860  # that the released size holds for each pixel at its peak


def preferred_dtype() -> torch.dtype:
    """What ComfyUI computes an autoencoder in that takes both."""
    management = comfy.model_management
    return management.vae_dtype(management.vae_device(), [torch.bfloat16, torch.float32])


class PlainAutoencoderDC(AutoencoderDC):
    """AutoencoderDC that takes and returns tensors, as ComfyUI's VAE calls it."""

    device = None  # a read-only property in diffusers; ModelPatcher keeps the current device here

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Pictures ``[batch, 3, H, W]`` in -1 … 1 to unscaled latents."""
        return super().encode(x, return_dict=False)[0]

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Unscaled latents back to pictures."""
        return super().decode(z, return_dict=False)[0]


class LadderVAE(comfy.sd.VAE):
    """ComfyUI's VAE around a loaded AutoencoderDC, which it changes in place."""

    def __init__(
        self, autoencoder: AutoencoderDC, dtype: torch.dtype | None = None, disable_dynamic: bool = False
    ) -> None:
        management = comfy.model_management
        silenced = logging.root.manager.disable
        logging.disable(logging.WARNING)  # the parent, given no weights, sets its attributes and warns
        try:
            super().__init__(sd={})
        finally:
            logging.disable(silenced)
        factor = autoencoder.spatial_compression_ratio
        self.latent_channels = autoencoder.config.latent_channels
        self.downscale_ratio = self.upscale_ratio = factor
        self.memory_used_encode = lambda shape, dt: (
            ENCODE_VALUES * shape[2] * shape[3] * management.dtype_size(dt)
        )
        self.memory_used_decode = lambda shape, dt: (
            DECODE_VALUES * shape[2] * shape[3] * factor**2 * management.dtype_size(dt)
        )
        self.device = management.vae_device()
        self.output_device = management.intermediate_device()
        self.vae_dtype = dtype or preferred_dtype()
        cast_parameters(autoencoder.eval().requires_grad_(False), self.vae_dtype)
        use_comfy_ops(autoencoder, comfy.ops.disable_weight_init)
        autoencoder.__class__ = PlainAutoencoderDC
        self.first_stage_model = autoencoder
        self.patcher = make_patcher(
            autoencoder, self.device, management.vae_offload_device(), disable_dynamic
        )
        self.model_size()

    def encode(self, pixel_samples: torch.Tensor) -> torch.Tensor:
        """Pictures ``[batch, height, width, channels]`` in 0 … 1 to latents.

        Sides that are no multiples of the factor are cropped in the middle, as ComfyUI does with every VAE.

        Raises:
            ValueError: no picture, or one smaller than a latent.
        """
        return super().encode(self.checked_pixels(pixel_samples))

    def encode_tiled(
        self, pixel_samples: torch.Tensor, *arguments: object, **options: object
    ) -> torch.Tensor:
        """The same in tiles."""
        return super().encode_tiled(self.checked_pixels(pixel_samples), *arguments, **options)

    def decode(self, samples_in: torch.Tensor, *arguments: object, **options: object) -> torch.Tensor:
        """Latents ``[batch, channels, h, w]`` to pictures. Raises ValueError for those of another model."""
        return super().decode(self.checked_latents(samples_in), *arguments, **options)

    def decode_tiled(self, samples: torch.Tensor, *arguments: object, **options: object) -> torch.Tensor:
        """The same in tiles."""
        return super().decode_tiled(self.checked_latents(samples), *arguments, **options)

    def checked_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """RGB of the pictures, if there is something to encode."""
        check_pictures("The picture to encode", pixels)
        height, width = pixels.shape[1:3]
        if min(height, width) < self.downscale_ratio:
            raise ValueError(
                f"The picture to encode is {width}x{height}; the autoencoder needs at least "
                f"{self.downscale_ratio} pixels a side, so scale it up first."
            )
        return as_rgb(pixels)

    def checked_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """The latents, if they are this model's."""
        if latents.ndim != 4 or latents.shape[1] != self.latent_channels or 0 in latents.shape:
            raise ValueError(
                f"The latent to decode has the shape {list(latents.shape)}; this autoencoder's have "
                f"{self.latent_channels} channels, so use the VAE of the model that drew it."
            )
        return latents

    def decode_tiled_(
        self,
        samples: torch.Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
    ) -> torch.Tensor:
        """Decode in tiles of 512 pixels unless told otherwise; the parent's default assumes a factor of 8."""
        side = 512 // self.upscale_ratio
        return super().decode_tiled_(
            samples, tile_x or side, tile_y or side, side // 4 if overlap is None else overlap
        )


def fit_latent_rgb(vae: LadderVAE, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Linear map from scaled latents to colours, for previews while sampling.

    Least squares over the latents of pictures with coloured shapes: what the autoencoder itself says about
    colour. Such shapes predict the colours of drawn pictures better than plain blocks do; of two crowded
    pictures (288 latents) the map misses those of nano by 25 grey levels of 255, of 32 (1,152) by 24.

    Returns:
        factors ``[channels, 3]`` and bias ``[3]``; colours in -1 … 1.
    """
    pictures = coloured_discs(count=2, side=12 * vae.downscale_ratio, discs=16)
    rows = [vae.encode(picture[None].movedim(1, -1)) for picture in pictures]  # little memory at a time
    latents = torch.cat(rows).cpu().float() * scale
    inputs = latents.movedim(1, -1).reshape(-1, latents.shape[1])
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    colours = torch.nn.functional.avg_pool2d(pictures, vae.downscale_ratio) * 2 - 1
    solution = torch.linalg.lstsq(inputs, colours.movedim(1, -1).reshape(-1, 3)).solution
    return solution[:-1], solution[-1]


def coloured_discs(count: int, side: int, discs: int) -> torch.Tensor:
    """Discs of one colour each on a background of another, ``[count, 3, side, side]`` in 0 … 1."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.rand((discs + 1, count, 3, 1, 1), generator=generator)
    centres = torch.rand((discs, 2, count, 1, 1, 1), generator=generator)
    radii = 0.06 + 0.33 * torch.rand((discs, count, 1, 1, 1), generator=generator)
    place = (torch.arange(side) + 0.5) / side
    pictures = colours[0].expand(count, 3, side, side)
    for colour, (down, right), radius in zip(colours[1:], centres, radii, strict=True):
        inside = (place[:, None] - down) ** 2 + (place - right) ** 2 < radius**2
        pictures = torch.where(inside, colour, pictures)
    return pictures
