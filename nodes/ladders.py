"""The ladder of a MODEL: how many rungs, their gains, and whether a CONDITIONING fits it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from comfy_api.latest import io

if TYPE_CHECKING:
    import torch
    from comfy.model_patcher import ModelPatcher

GAINS = io.Custom("TBAC_UNIIMAGE_GAINS")  # a tuple of floats, one per rung


class Ladder(NamedTuple):
    """How a model is conditioned.

    Attributes:
        rungs: blocks of the diffusion transformer.
        width: values of one token on one rung.
        packed: whether these say what kind of token it is, a query or one of the text.
    """

    rungs: int
    width: int
    packed: bool = False


def ladder_of(model: ModelPatcher) -> Ladder:
    """The ladder of one of our models. Raises ValueError for another kind of MODEL."""
    transformer = getattr(getattr(model, "model", None), "diffusion_model", None)
    config = getattr(transformer, "config", None)
    if getattr(config, "caption_channels", None) is None:
        raise ValueError("The model is not a TBAC-UniImage model; connect Load Model (TBAC-UniImage).")
    from ..core.conditions import KINDS

    if not config.text_states:
        return Ladder(config.num_layers, config.caption_channels)
    return Ladder(config.num_layers, config.caption_channels + KINDS, packed=True)


def check_conditioning(ladder: Ladder, name: str, conditioning: list) -> None:
    """Raise ValueError unless every entry is ``[batch, tokens, rungs * width]``."""
    if not isinstance(conditioning, list):
        raise ValueError(f"{name} is of the type {type(conditioning).__name__}; connect a conditioning.")
    if not conditioning:
        raise ValueError(f"{name} is an empty conditioning; connect Multi-Layer MLLM Encode.")
    for states, _ in conditioning:
        if states.ndim != 3 or states.shape[-1] != ladder.rungs * ladder.width:
            raise ValueError(
                f"{name} has the shape {list(states.shape)}, this model needs {ladder.rungs} rungs of "
                f"{ladder.width} values; make it with Multi-Layer MLLM Encode of the same model."
            )


def gains_of(model: ModelPatcher) -> tuple[float, ...]:
    """The gains in force on a model."""
    from .diffusion import RUNG_GAINS

    options = model.model_options.get("transformer_options", {})
    return options.get(RUNG_GAINS, (1.0,) * ladder_of(model).rungs)


def with_gains(model: ModelPatcher, gains: Sequence[float]) -> ModelPatcher:
    """A clone of the model whose rungs have these gains, whatever it had before.

    Raises:
        ValueError: not one gain for each rung of this model, or one out of range.
    """
    from ..core.rungs import check_gains
    from .diffusion import RUNG_GAINS

    check_gains(gains, ladder_of(model).rungs)
    clone = model.clone()
    clone.model_options.setdefault("transformer_options", {})[RUNG_GAINS] = tuple(map(float, gains))
    return clone


def mix_conditioning(ladder: Ladder, a: list, b: list, weights: Sequence[float]) -> list:
    """Rungs of two conditionings, see :func:`..core.rungs.mix_rungs`; masks and ranges are those of ``b``.

    Entry by entry; where ``a`` has a single one, it goes with every entry of ``b``.

    Raises:
        ValueError: conditionings of another model, or of numbers of entries that do not go together.
    """
    check_conditioning(ladder, "The first conditioning", a)
    check_conditioning(ladder, "The second conditioning", b)
    if len(a) not in (1, len(b)):
        raise ValueError(
            f"The conditionings have {len(a)} and {len(b)} entries; mix before Conditioning (Combine)."
        )
    return [
        [mix_states(ladder, first, second, weights), options]
        for (first, _), (second, options) in zip(a * (len(b) // len(a)), b, strict=True)
    ]


def mix_states(ladder: Ladder, a: torch.Tensor, b: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """Rungs of two folded conditions ``[batch, tokens, rungs * width]``."""
    from ..core.conditions import fold_condition, unfold_condition
    from ..core.rungs import mix_packed, mix_rungs

    if len(a) != len(b) and 1 not in (len(a), len(b)):
        raise ValueError(f"The conditionings have {len(a)} and {len(b)} rows; give the same number, or one.")
    states = (unfold_condition(one, ladder.rungs) for one in (a, b))
    return fold_condition((mix_packed if ladder.packed else mix_rungs)(*states, weights))
