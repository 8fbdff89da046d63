"""Names of tensors: released checkpoints, Qwen2.5-VL folders of any age, and the modules they belong to.

A released checkpoint names its MLLM as transformers 4.51 did (``visual.*``, ``model.*``); later versions
moved both under ``model`` and call the language model ``language_model``. All are read, the first is written.
"""

from __future__ import annotations

from typing import NamedTuple

from .scaled import refuse_scaled
from .weights import STORED, TensorInfo, list_names

MLLM_PREFIX = "model.mllm_backbone."
EMBEDDING = "model.language_model.embed_tokens.weight"
HEAD = "lm_head.weight"
PREFIXES = {"connector": "model.connector.", "transformer": "model.transformer.", "vae": "vae."}


class Place(NamedTuple):
    """A tensor's part (a field of LadderParts) and its name in that module."""

    part: str
    name: str


def mllm_name(name: str) -> str:
    """A tensor name of Qwen2.5-VL, from any version of transformers, as the present version has it."""
    for old, new in (
        ("model.visual.", "model.visual."),
        ("visual.", "model.visual."),
        ("model.language_model.", "model.language_model."),
        ("language_model.model.", "model.language_model."),
        ("language_model.", "model.language_model."),
        ("model.", "model.language_model."),
    ):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def place_of(released_name: str) -> Place | None:
    """Where a tensor of a released checkpoint belongs; None if nowhere."""
    if released_name.startswith(MLLM_PREFIX):
        return Place("mllm", mllm_name(released_name.removeprefix(MLLM_PREFIX)))
    for part, prefix in PREFIXES.items():
        if released_name.startswith(prefix):
            name = released_name.removeprefix(prefix)
            return Place(part, f"layers.{name}" if part == "connector" else name)
    return None


def released_name(place: Place) -> str:
    """The name that :func:`place_of` maps to ``place``, as the released checkpoint writes it."""
    part, name = place
    if part == "mllm":
        name = name.replace("model.language_model.", "model.", 1).replace("model.visual.", "visual.", 1)
        return MLLM_PREFIX + name
    return PREFIXES[part] + (name.removeprefix("layers.") if part == "connector" else name)


def check_tensors(
    source: object, found: dict[str, TensorInfo], wanted: dict[str, tuple[int, ...]], remedy: str
) -> None:
    """Compare what a checkpoint holds with what a model needs.

    Args:
        source: where the tensors come from, for the message.
        found: headers by name.
        wanted: shapes by name.
        remedy: what to do, ends the message.

    Raises:
        ValueError: names of missing, unexpected and misshapen tensors, or a format that is not read.
    """
    refuse_scaled(source, found)
    missing = sorted(wanted.keys() - found.keys())
    unexpected = sorted(found.keys() - wanted.keys())
    misshapen = [
        f"{name} is {list(found[name].shape)} and should be {list(wanted[name])}"
        for name in sorted(wanted.keys() & found.keys())
        if found[name].shape != tuple(wanted[name])
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    faults = [f"{len(names)} {kind} ({list_names(names)})" for kind, names in kinds.items() if names]
    if faults:
        raise ValueError(f"The tensors of {source} do not fit the model: {'; '.join(faults)}; {remedy}.")


def check_weights(
    source: object, found: dict[str, TensorInfo], wanted: dict[str, tuple[int, ...]], remedy: str
) -> None:
    """Compare weights that a checkpoint holds with those that a model needs, see :func:`check_tensors`.

    Raises:
        ValueError: what that says, and weights stored as no floating-point numbers, which mean others.
    """
    check_tensors(source, found, wanted, remedy)
    strange = [f"{name} as {info.dtype}" for name, info in sorted(found.items()) if info.dtype not in STORED]
    if strange:
        raise ValueError(
            f"{source} holds {len(strange)} weights that are no floating-point numbers "
            f"({list_names(strange)}), and no scales that say what they mean; take the same model in "
            "bf16 or fp16."
        )
