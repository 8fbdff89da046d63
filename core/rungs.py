"""What can be done to the rungs of a ladder: louder and quieter, mixed, grouped (paper section 3.1).

A rung is what one block of the diffusion transformer is told. Rungs are counted from 1 where people see them,
the first block's first. Nothing here knows how many rungs a model has: curves are resampled to any number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .conditions import columns_of_kinds
from .rung_attention import Rungs

MAX_GAIN = 10.0
PRESETS = ("even", "layout", "subject", "detail")

_PAIR = re.compile(r"(\d+)(?:-(\d+))?:(\S+)")


def positions(rungs: int) -> list[float]:
    """Where the middles of the rungs lie on the ladder, from 0 (bottom) to 1 (top)."""
    return [(i + 0.5) / rungs for i in range(rungs)]


def preset_gains(preset: str, amount: float, rungs: int) -> list[float]:
    """Gains that emphasise one part of the ladder.

    "layout", "subject" and "detail" are its lower, middle and upper third. They overlap like the bands of an
    equaliser, and the three together lift all rungs alike.

    Args:
        preset: one of :data:`PRESETS`.
        amount: added to the gains in the middle of that part; -1 mutes it, 1 doubles it.
        rungs: how many there are.

    Raises:
        ValueError: unknown preset, or an amount that is no finite number of at least -1.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset is {preset!r}; choose {', '.join(PRESETS)}.")
    if not math.isfinite(amount) or amount < -1:
        raise ValueError(f"amount is {amount}; give a finite number of at least -1, which mutes.")
    if preset == "even":
        return [1.0] * rungs
    band = PRESETS.index(preset) - 1
    # where the band's neighbours have their middle, it has ended; the outer bands stay up to the ends
    places = [min(max(3 * position - 0.5, 0), 2) for position in positions(rungs)]
    return [1 + amount * max(0.0, 1 - abs(place - band)) for place in places]


def parse_curve(text: str, rungs: int) -> list[float]:
    """Gains out of what a user typed.

    Two forms: a list of any length, ``1, 1.2, 0.8``, drawn as a curve from the first rung to the last; or
    single rungs, ``3: 0, 5-8: 1.3``, where those not named stay 1. Empty text is 1 everywhere.

    Raises:
        ValueError: text of neither form, a gain out of range, or a rung that the model has not.
    """
    joined = re.sub(r"\s*:\s*", ":", re.sub(r"[,;]", " ", text))
    words = re.sub(r"(\d)\s*-\s*(\d+:)", r"\1-\2", joined).split()
    if not any(":" in word for word in words):
        return resample([_number(word) for word in words] or [1.0], rungs)
    gains = [1.0] * rungs
    for word in words:
        pair = _PAIR.fullmatch(word)
        if pair is None:
            raise ValueError(f"The curve has {word!r} among single rungs; write them like 3: 0, 5-8: 1.3.")
        first, last = int(pair[1]), int(pair[2] or pair[1])
        if not 1 <= first <= last <= rungs:
            raise ValueError(f"The curve names rung {pair[0].split(':')[0]}; this model has 1 to {rungs}.")
        gains[first - 1 : last] = [_number(pair[3])] * (last - first + 1)
    return gains


def _number(word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        raise ValueError(f"The curve has {word!r}, which is no number; write it like 1, 1.2, 0.8.") from None
    if not (math.isfinite(number) and 0 <= number <= MAX_GAIN):
        raise ValueError(f"The curve has {word!r}; give numbers from 0 (mute) to {MAX_GAIN:g}.")
    return number


def resample(values: Sequence[float], count: int) -> list[float]:
    """A curve of any number of values, straight between them, read at ``count`` places from end to end."""
    if len(values) == count:
        return list(values)
    if len(values) == 1:
        return list(values) * count
    found = []
    for i in range(count):
        at = i / (count - 1) * (len(values) - 1) if count > 1 else (len(values) - 1) / 2
        low = min(int(at), len(values) - 2)
        found.append(values[low] + (at - low) * (values[low + 1] - values[low]))
    return found


def check_gains(gains: Sequence[float], rungs: int) -> None:
    """Raise ValueError unless there is one finite number from 0 to :data:`MAX_GAIN` for each rung."""
    if not isinstance(gains, Sequence) or not all(isinstance(gain, int | float) for gain in gains):
        raise ValueError(f"The gains are {gains!r}; give a list with one number for each rung.")
    if len(gains) != rungs:
        raise ValueError(f"{len(gains)} gains were given for {rungs} rungs; make them for the same model.")
    for i, gain in enumerate(gains):
        if not (math.isfinite(gain) and 0 <= gain <= MAX_GAIN):
            raise ValueError(f"The gain of rung {i + 1} is {gain}; give 0 (mute) to {MAX_GAIN:g}.")


def scale_rungs(rungs: Rungs, gains: Sequence[float]) -> Rungs:
    """Scale what every block receives from its rung.

    Scaling the caption states would do next to nothing, because a norm follows; the values of the
    cross-attention come after it. A gain of 1 changes nothing to the bit. A gain of 0 leaves of the
    cross-attention the bias of its output, the same for all prompts.

    Raises:
        ValueError: see :func:`check_gains`.
    """
    check_gains(gains, len(rungs.kv))
    return Rungs([kv.louder(gain) for kv, gain in zip(rungs.kv, gains, strict=True)])


def crossover_weights(rungs: int, crossover: float, softness: float = 0.0) -> list[float]:
    """Shares of B for :func:`mix_rungs`: A below the crossover, B above it.

    Args:
        rungs: how many there are.
        crossover: part of the ladder, from the first rung on, that is A's: 1 is A alone, 0 is B alone.
        softness: width of the blend as a part of the ladder, 0 (a cut) to 1.

    Raises:
        ValueError: a number outside 0 … 1.
    """
    for name, value in (("crossover", crossover), ("softness", softness)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; give a number from 0 to 1.")
    middle = crossover * (1 + softness) - softness / 2  # so that both ends are A or B alone
    if softness == 0:
        return [float(position > middle) for position in positions(rungs)]
    return [min(max((position - middle) / softness + 0.5, 0.0), 1.0) for position in positions(rungs)]


def mix_rungs(a: torch.Tensor, b: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """Rungs of two conditions, ``a + weight · (b - a)`` rung by rung; weights 0 and 1 are exact.

    Args:
        a, b: states ``[layers, batch, queries, dim]``. Where one has more queries (prompts joined by
            Concat), both are repeated to the same number, which attention does not notice.
        weights: one per layer, the share of ``b``.

    Raises:
        ValueError: conditions of different models, or another number of weights.
    """
    if len(a) != len(b) or a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"The conditions have {len(a)} rungs of width {a.shape[-1]} and {len(b)} of width {b.shape[-1]}; "
            "make both with the same model."
        )
    if len(weights) != len(a):
        raise ValueError(f"{len(weights)} weights were given for {len(a)} rungs; give one for each.")
    queries = math.lcm(a.shape[2], b.shape[2])
    a, b = (states.repeat(1, 1, queries // states.shape[2], 1) for states in (a, b))
    share = torch.tensor(weights, dtype=a.dtype, device=a.device)[:, None, None, None]
    return torch.lerp(*torch.broadcast_tensors(a, b.to(a)), share)


def mix_packed(a: torch.Tensor, b: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """:func:`mix_rungs` of packed conditions ``[layers, batch, tokens, dim + 2]`` of queries and text.

    Queries are mixed with queries, tokens of one text with those in the same places of the other; where it
    has none, a token of the other counts as much as the weight of its side.
    """
    queries, texts = [], []
    for packed in (a, b):
        is_query, is_text = columns_of_kinds(packed)
        queries.append(packed[:, :, is_query])
        texts.append(packed[:, :, is_text & ~is_query])
    longest = max(text.shape[2] for text in texts)
    mixed = mix_rungs(*queries, weights)
    if longest:
        text = mix_rungs(*(F.pad(text, (0, 0, 0, longest - text.shape[2])) for text in texts), weights)
        mixed = torch.cat([mixed, F.pad(text, (0, 0, 0, -longest % mixed.shape[2]))], dim=2)
    return mixed


def group_rungs(rungs: int, bounds: Sequence[float]) -> list[int]:
    """Which group every rung belongs to, 0 … ``len(bounds)``.

    Args:
        rungs: how many there are.
        bounds: rising parts of the ladder, 0 to 1, at which the next group begins.

    Raises:
        ValueError: bounds that are no rising numbers from 0 to 1.
    """
    edges = [0.0, *bounds, 1.0]
    if not all(low <= high for low, high in zip(edges, edges[1:], strict=False)):
        raise ValueError(f"The groups begin at {list(bounds)}; give rising numbers from 0 to 1.")
    return [sum(position > bound for bound in bounds) for position in positions(rungs)]
