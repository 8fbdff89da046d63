"""What a pipeline is made of: its components as they are now, read from folders and written to them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from inspect import signature
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from diffusers import DiffusionPipeline
from torch import nn

from .checkpoints import is_pipeline_folder, load_parts
from .checkpoints.export import complete_folder, forget_origin, name_class
from .checkpoints.folders import check_folder
from .checkpoints.load import check_layout
from .checkpoints.parts import check_dtype
from .checkpoints.placing import DtypeRule, Dtypes
from .hub import find_model
from .versions import DTYPE_ARGUMENT, IS_4, name_image_processor

MOVING = threading.RLock()
HUB_OPTIONS = ("subfolder", "revision", "cache_dir", "token", "local_files_only", "force_download")


class LadderComponents(DiffusionPipeline):
    """A pipeline that is at every moment what its components and its configuration say.

    Any component may be exchanged, set to None or deleted; nothing else holds it. What is missing is asked
    for when it is needed.
    """

    _optional_components = [
        "mllm",
        "tokenizer",
        "image_processor",
        "connector",
        "transformer",
        "vae",
        "scheduler",
    ]

    @property
    def components(self) -> dict[str, Any]:
        """Everything that another pipeline of the same model is made of, its settings too."""
        _, settings = self._get_signature_keys(self)
        return {**super().components, **{name: self.config[name] for name in settings}}

    @property
    def parameters(self) -> dict[str, Any]:
        """Nothing: the settings are among the components."""
        return {}

    def require(self, use: str, *names: str) -> None:
        """Raise ValueError unless these components are there; ``use`` is what for."""
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            raise ValueError(
                f"This pipeline has no {', '.join(missing)}, without which it cannot {use}; load it with all "
                f"its components, or set pipeline.{missing[0]}."
            )

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """The components where they compute, for as long as the ``with`` block needs them.

        Where they are moved in and out of a device, one call at a time has them: another's would be taken
        away while it computes. So it is where the transformer keeps what earlier steps of a call computed.
        """
        moved = any(hasattr(part, "_hf_hook") for part in self.components.values())
        cached = getattr(self.transformer, "is_cache_enabled", False)
        with MOVING if moved or cached else nullcontext():
            yield
            self.maybe_free_model_hooks()

    def __setattr__(self, name: str, value: Any) -> None:
        """Exchange a component; where offloading is on, it is for the new one too and lets go of the old."""
        super().__setattr__(name, value)
        exchanged = name in self._optional_components and (value is None or isinstance(value, nn.Module))
        if exchanged and self.__dict__.get("_all_hooks"):
            self.maybe_free_model_hooks()

    def __delattr__(self, name: str) -> None:
        """Let go of a component: the pipeline is one without it from then on."""
        if name in self._optional_components:
            setattr(self, name, None)
        else:
            super().__delattr__(name)

    @classmethod
    def _get_signature_types(cls) -> dict[str, tuple[type, ...]]:
        """What each argument may be, for diffusers before 0.39, which reads no annotations that are text."""
        hints = get_type_hints(cls.__init__)
        return {name: get_args(hint) or (hint,) for name, hint in hints.items() if name != "return"}

    @classmethod
    def load_config(cls, *args: Any, **options: Any) -> Any:
        """The configuration of a folder. The module that it names for others is not run: this class is it."""
        config = super().load_config(*args, **options)
        if isinstance(config, dict) and isinstance(config.get("_class_name"), list):
            config["_class_name"] = config["_class_name"][-1]
        return config

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Load a pipeline folder, a checkpoint in the released layout, or either from the hub.

        Args:
            pretrained_model_name_or_path: a path or ``owner/model``.
            kwargs: ``revision``, ``subfolder``, ``cache_dir``, ``token``, ``local_files_only`` and
                ``force_download`` say what of the hub is meant, see :func:`.hub.find_model`. ``dtype``, or
                ``torch_dtype`` as it was called before, is a torch type or its name. Components and settings
                replace those of the model; None leaves a component out. A pipeline folder takes all others of
                :meth:`DiffusionPipeline.from_pretrained`, a released checkpoint those of
                :func:`.checkpoints.load_parts`; with transformers 4, and with ``quantization_config``, which
                is diffusers' PipelineQuantizationConfig (see :mod:`.quantised`), so does a pipeline folder.

        Raises:
            ValueError: no model, or one that is not whole or of another kind, one sentence.
        """
        if kwargs.pop("use_safetensors", None) is False:
            raise ValueError("use_safetensors is False, but only safetensors files are opened; leave it out.")
        dtype = wanted_dtype(kwargs.pop("dtype", None), kwargs.pop("torch_dtype", None))
        hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        quantisation = kwargs.pop("quantization_config", None)
        if quantisation is not None:
            from .quantised import check_config, quantise, takes_torchao

            quantisation = check_config(quantisation)
        path = find_model(pretrained_model_name_or_path, variant=kwargs.get("variant"), **hub)
        check_layout(path)
        ours = quantisation is not None and takes_torchao(quantisation)
        if is_pipeline_folder(path) and not IS_4 and not ours:  # 4 reads no tokenizer that 5 saved
            check_folder(path, kwargs)
            kwargs |= {} if quantisation is None else {"quantization_config": quantisation}
            name_image_processor()
            kwargs[DTYPE_ARGUMENT] = dtype
            return super().from_pretrained(path, use_safetensors=True, **kwargs)
        given = {
            name: kwargs.pop(name)
            for names in cls._get_signature_keys(cls)
            for name in names
            if name in kwargs
        }
        if quantisation is not None and not ours:
            raise ValueError(
                "The transformer of a released checkpoint takes diffusers' TorchAoConfig alone; for another "
                "library load the model, save_pretrained, and quantise that folder as it loads."
            )
        check_options(kwargs, "quantization_config" if quantisation is not None else "this kind of model")
        parts = vars(load_parts(path, dtype=one_type(dtype), given=given, **kwargs))
        return cls(**parts | (quantise(parts, quantisation) if quantisation is not None else {}))

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """As in diffusers: every layer comes to an accelerator for as long as it computes.

        Raises:
            ValueError: ``device`` is the CPU.
        """
        if device is not None and torch.device(device).type == "cpu":
            raise ValueError(
                "enable_sequential_cpu_offload brings weights from the CPU to an accelerator, and device is "
                "the CPU, where they lie already; leave the call out, or name the accelerator."
            )
        super().enable_sequential_cpu_offload(gpu_id, device)

    def enable_vae_tiling(self) -> None:
        """Decode large pictures tile by tile: ``vae.enable_tiling()``."""
        self.require("decode in tiles", "vae")
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Decode pictures whole: ``vae.disable_tiling()``."""
        self.require("decode", "vae")
        self.vae.disable_tiling()

    def enable_vae_slicing(self) -> None:
        """Decode one picture of a batch after the other: ``vae.enable_slicing()``."""
        self.require("decode in slices", "vae")
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Decode the pictures of a batch at once: ``vae.disable_slicing()``."""
        self.require("decode", "vae")
        self.vae.disable_slicing()

    def fuse_qkv_projections(self) -> None:
        """Refused, see :meth:`.LadderTransformer2DModel.fuse_qkv_projections`."""
        self.require("fuse its projections", "transformer")
        self.transformer.fuse_qkv_projections()

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write a pipeline folder, whole or not at all; arguments as in diffusers.

        Raises:
            ValueError: ``save_directory`` is there already and not empty, a LoRA stands beside weights, or
                these were quantised in place.
        """
        if getattr(self.transformer, "peft_config", None):
            raise ValueError(
                "A LoRA stands beside the transformer's weights; fuse_lora() and then unload_lora_weights() "
                "make it part of them, unload_lora_weights() alone takes it away."
            )
        from .quantised import prepare_saving

        prepare_saving(self.components)
        names, _ = self._get_signature_keys(self)
        self.register_modules(**{name: getattr(self, name) for name in names})
        if kwargs.get("push_to_hub"):
            kwargs.setdefault("repo_id", Path(save_directory).name)
        with complete_folder(save_directory) as unfinished:
            super().save_pretrained(str(unfinished), **kwargs)

    def save_config(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write ``model_index.json``, and the module by which diffusers alone finds this class."""
        super().save_config(save_directory, *args, **kwargs)
        forget_origin(Path(save_directory))
        name_class(Path(save_directory), type(self).__name__)


def wanted_dtype(
    dtype: torch.dtype | str | dict | None, torch_dtype: torch.dtype | str | dict | None
) -> torch.dtype | dict[str, torch.dtype | None] | None:
    """The type of the weights under its newest name or the one before, or those of components by name.

    Raises:
        ValueError: both are given, or one that is no floating-point type.
    """
    if dtype is not None and torch_dtype is not None:
        raise ValueError("Both dtype and torch_dtype are given, which mean the same; give dtype alone.")
    given = torch_dtype if dtype is None else dtype
    if isinstance(given, dict):
        return {name: check_dtype(one) for name, one in given.items()}
    return check_dtype(given)


def one_type(dtype: torch.dtype | dict[str, torch.dtype | None] | None) -> DtypeRule:
    """A rule by which all weights of a part have one type, as they are multiplied with each other.

    Args:
        dtype: of all parts, or by part and as "default"; None is the type of most values in the file, and
            bfloat16 in place of one that is stored and not computed in.
    """

    def rule(part: str, module: nn.Module, stored: torch.dtype) -> Dtypes:
        wanted = dtype.get(part, dtype.get("default")) if isinstance(dtype, dict) else dtype
        kept = stored if stored.itemsize > 1 else torch.bfloat16
        return Dtypes(*[wanted or kept] * 2)

    return rule


def check_options(options: dict[str, Any], of: str) -> None:
    """Leave of the options of ``from_pretrained`` those of :func:`load_parts`.

    Raises:
        ValueError: others, but for one that says how diffusers holds weights, which are held once here.
    """
    options.pop("low_cpu_mem_usage", None)
    known = set(signature(load_parts).parameters) - {"path", "dtype", "own", "given"}
    others = sorted(name for name, value in options.items() if name not in known and value is not None)
    if others:
        raise ValueError(
            f"from_pretrained knows no {' and no '.join(others)} for {of}; beside dtype and components it "
            f"takes {', '.join(sorted(known))}."
        )
    for name in options.keys() - known:
        del options[name]
