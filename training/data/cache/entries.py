"""Entries of a cache: one safetensors file per sample, named by everything that its values depend on.

An entry is written under a name of its own and renamed, so any number of processes may write the same one:
they write the same values.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from ...exits import DISK, Stop
from ..storage import Ref

HASH_BYTES = 16


@dataclass(frozen=True)
class Cache:
    """Tensors of samples in a folder.

    Attributes:
        folder: of all entries; two levels of folders below it keep directories small.
        model: hash of the model that computes the tensors, see :func:`model_hash`.
    """

    folder: Path
    model: str

    def path(self, fingerprint: str, key: str, transform: str) -> Path:
        """Where an entry lies.

        Args:
            fingerprint: of the index that the sample is from.
            key: of the sample in that index.
            transform: what was done to the pictures before the model saw them.
        """
        content = "\0".join((self.model, transform, fingerprint, key)).encode()
        name = hashlib.blake2b(content, digest_size=HASH_BYTES).hexdigest()
        return self.folder / name[:2] / name[2:4] / f"{name[4:]}.safetensors"

    def write(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write an entry whole or not at all.

        Raises:
            Stop: it cannot be written.
        """
        temporary = path.with_name(f".{path.stem}.{os.getpid()}.{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(
                    save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
                )
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise Stop(
                f"The cache {self.folder} cannot be written to: {error.strerror}; free some space. The same "
                "command goes on.",
                DISK,
            ) from error

    def read(self, path: Path, sample: str) -> dict[str, Tensor]:
        """The tensors of an entry.

        Args:
            path: see :meth:`path`.
            sample: how the sample is named in an error.

        Raises:
            ValueError: the entry is missing or damaged.
        """
        try:
            return load(path.read_bytes())
        except FileNotFoundError as error:
            raise ValueError(
                f"The cache {self.folder} has nothing of {sample} for this model, size and crop; fill it "
                "with `tbac-uniimage train cache`, or train without it."
            ) from error
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path}, the cache entry of {sample}, is damaged ({error}); delete it and run "
                "`tbac-uniimage train cache` again."
            ) from error


def model_hash(module: nn.Module, *settings: object) -> str:
    """A hash of a module's weights, their types, and whatever else its output depends on."""
    state = hashlib.blake2b(repr(settings).encode(), digest_size=HASH_BYTES)
    for name, tensor in sorted(module.state_dict().items()):
        state.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return state.hexdigest()


def latent_cache(folder: str | Path, vae: nn.Module) -> Cache:
    """The cache of scaled latents that ``vae`` makes of targets, and of sources.

    An entry has ``latents`` ``[c, h, w]``, and of a sample with a mask ``mask`` ``[h, w]`` float32 in 0 … 1.
    """
    return Cache(Path(folder).expanduser(), model_hash(vae, "latents", float(vae.config.scaling_factor)))


def vision_cache(folder: str | Path, visual: nn.Module, image_processor: object) -> Cache:
    """The cache of what a vision tower makes of all input pictures of a sample in order.

    An entry has ``features`` ``[tokens, mllm_dim]`` and ``grid`` ``[images, 3]`` int64.
    """
    names = ("size", "patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std", "resample")
    settings = [repr(getattr(image_processor, name, None)) for name in names]
    return Cache(Path(folder).expanduser(), model_hash(visual, "vision", *settings))


def transform_name(width: int, height: int, mask: Ref | None = None) -> str:
    """Transform of a sample whose target is cut centrally to a size; its inputs follow from that.

    What is kept beside its mask has another name, and of a loose mask one that tells its contents.
    """
    masked = f" mask {mask.stamp.digest if mask.stamp else ''}" if mask else ""
    return f"{width}x{height} centre{masked}"


def source_name(width: int, height: int) -> str:
    """Transform of the picture that such a sample edits, whose latents are an entry of their own."""
    return f"{transform_name(width, height)} source"


def black_canvas_path(cache: Cache, width: int, height: int) -> Path:
    """The entry of the latents of an all-black picture of a size, for every blackened one."""
    return cache.path("", "", f"black {width}x{height}")


def black_path(cache: Cache, grid: tuple[int, int, int]) -> Path:
    """The entry of an all-black picture of a grid; it stands for every blackened picture of that grid."""
    return cache.path("", "", "black " + "x".join(map(str, grid)))
