"""Entries of a cache: tensors of samples by name, in the few large files of :mod:`..shards`.

A name says everything that the values depend on. Any number of processes may write the same entry: they write
the same values.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from ...exits import DISK, Stop
from ..refs import Ref
from ..shards import Damaged, Shards, ShardWriter, name_of

HASH_BYTES = 16
OLD_FOLDER = re.compile("[0-9a-f]{2}")  # of a cache that had a file for each sample


class Cache:
    """Tensors of samples in a folder. May be sent to other processes.

    Args:
        folder: of all entries.
        model: hash of the model that computes the tensors, see :func:`model_hash`.

    Raises:
        ValueError: the folder holds a cache of an earlier version.
    """

    def __init__(self, folder: Path, model: str) -> None:
        self.folder, self.model = folder, model
        self._shards = Shards(folder)
        self._writer: ShardWriter | None = None
        if folder.is_dir() and any(OLD_FOLDER.fullmatch(path.name) for path in folder.iterdir()):
            raise ValueError(
                f"{folder} is a cache of an earlier version, with a file for each sample; delete it and fill "
                "it again with `tbac-uniimage train cache RECIPE`."
            )

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_writer": None}

    def name(self, fingerprint: str, key: str, transform: str) -> bytes:
        """What an entry is called.

        Args:
            fingerprint: of the index that the sample is from, or of the part of it.
            key: of the sample in that index.
            transform: what was done to the pictures before the model saw them.
        """
        return name_of(self.model, transform, fingerprint, key)

    def __contains__(self, name: bytes) -> bool:
        """Whether there was an entry when this process first asked."""
        return name in self._shards

    def write(self, name: bytes, tensors: Mapping[str, Tensor]) -> None:
        """Write an entry whole or not at all.

        Raises:
            Stop: it cannot be written.
        """
        data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        try:
            if self._writer is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._writer = ShardWriter(self.folder)
            self._writer.add(name, data)
        except OSError as error:
            raise Stop(
                f"The cache {self.folder} cannot be written to: {error.strerror}; free some space. The same "
                "command goes on.",
                DISK,
            ) from error

    def close(self) -> None:
        """End writing."""
        if self._writer:
            self._writer.close()
            self._writer = None

    def read(self, name: bytes, sample: str) -> dict[str, Tensor]:
        """The tensors of an entry.

        Args:
            name: see :meth:`name`.
            sample: how the sample is named in an error.

        Raises:
            ValueError: the entry is missing or damaged.
        """
        try:
            if name not in self._shards:
                self._shards.refresh()
            data = self._shards.get(name)
            if data is not None:
                return load(data)
        except Damaged as error:
            raise ValueError(
                f"{error.path}, which holds the cache entry of {sample}, is damaged ({error}); delete it and "
                "run `tbac-uniimage train cache` again."
            ) from error
        raise ValueError(
            f"The cache {self.folder} has nothing of {sample} for this model, size and crop; fill it "
            "with `tbac-uniimage train cache`, or train without it."
        )


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

    What is kept beside its mask has another name, one that tells the mask's contents if they are known.
    """
    masked = f" mask {mask.digest.hex()}" if mask else ""
    return f"{width}x{height} centre{masked}"


def source_name(width: int, height: int) -> str:
    """Transform of the picture that such a sample edits, whose latents are an entry of their own."""
    return f"{transform_name(width, height)} source"


def black_canvas_name(cache: Cache, width: int, height: int) -> bytes:
    """The entry of the latents of an all-black picture of a size, for every blackened one."""
    return cache.name("", "", f"black {width}x{height}")


def black_name(cache: Cache, grid: tuple[int, int, int]) -> bytes:
    """The entry of an all-black picture of a grid; it stands for every blackened picture of that grid."""
    return cache.name("", "", "black " + "x".join(map(str, grid)))
