"""Numbers and paths on command lines: what cannot be is said by argparse, which adds the option's name."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..core.few_steps import FewSteps


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return number(text, int, lambda value: value >= 1, "a whole number of at least 1")


def seed(text: str) -> int:
    """What torch takes as a seed."""
    return number(text, int, lambda value: 0 <= value < 2**63, "a whole number from 0 to 2^63 - 1")


def guidance(text: str) -> float:
    """A guidance scale."""
    return number(
        text, float, lambda value: math.isfinite(value) and value >= 0, "a finite number of at least 0"
    )


def strength(text: str) -> float:
    """Share of the way from noise that is drawn."""
    return number(text, float, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def share(text: str) -> float:
    """A share of something, which may be more than all of it."""
    return number(text, float, lambda value: value >= 0, "a number of at least 0")


def threshold(text: str) -> float:
    """Above what something counts."""
    return number(text, float, lambda value: math.isfinite(value) and value > 0, "a finite number above 0")


def number(text: str, kind: type, is_good: Callable[[Any], bool], wanted: str) -> Any:
    """``text`` as a number. Raises ArgumentTypeError."""
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not is_good(value):
        raise argparse.ArgumentTypeError(f"{text} is not possible; give {wanted}")
    return value


def add_few(parser: argparse.ArgumentParser) -> None:
    """Drawing in few steps."""
    parser.add_argument(
        "--few",
        action="store_true",
        help="draw in a few steps without guidance, by the LoRA in the folder few_steps of the model",
    )
    parser.add_argument("--few-lora", type=any_path, metavar="FILE", help="the same with another such LoRA")


def fill_in(options: argparse.Namespace, model: Callable[[], Path], **defaults: Any) -> FewSteps | None:
    """Give options of drawing that were left out their values.

    Args:
        options: changed in place; `few` and `few_lora` among them.
        model: tells where the model lies.
        defaults: of options where few steps are not asked for.

    Returns:
        The LoRA for few steps, None where they are not asked for.

    Raises:
        ValueError: the model has none, or an option does not go with it.
    """
    few = None
    if options.few or options.few_lora is not None:
        from ..core.few_steps import find_few_steps

        few = find_few_steps(model(), options.few_lora)
        few_values = {"steps": few.steps, "scheduler": "euler"}
        defaults = {name: few_values.get(name, 1.0) for name in defaults}
        for name, value in defaults.items():
            given = getattr(options, name, None)
            if name != "steps" and given not in (None, value):
                shown = value if isinstance(value, str) else f"{value:g}, which is no guidance"
                raise ValueError(
                    f"--{name.replace('_', '-')} is {given}, but few steps are drawn with {shown}; leave it "
                    "out, or leave out --few."
                )
    for name, value in defaults.items():
        if getattr(options, name, None) is None:
            setattr(options, name, value)
    return few


def any_path(text: str) -> Path:
    """A path, see :func:`..core.paths.user_path`. Raises ArgumentTypeError."""
    from ..core.paths import user_path  # not above: what core lacks is a sentence only inside a command

    try:
        return user_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
