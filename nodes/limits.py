"""Numbers of a node held to the limits that its schema states, NaN included, which ComfyUI lets pass."""

from __future__ import annotations

import math
from typing import Any

from comfy_api.latest import io


def problem(node: type[io.ComfyNode], **values: Any) -> str | None:
    """The first value that is no finite number inside its input's limits or none of its choices, in one
    sentence; None if all are right.

    ``None`` stands for a value that comes over a link and is not known yet. Names without an input of the
    node are passed over.
    """
    for widget in node.define_schema().inputs:
        value = values.get(widget.id)
        if value is None:
            continue
        if isinstance(widget, io.Combo.Input) and value not in widget.options:
            return f"{widget.id} is {value!r}; choose {', '.join(map(str, widget.options))}."
        if isinstance(widget, io.Int.Input | io.Float.Input):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and math.isfinite(value) and widget.min <= value <= widget.max):
                return f"{widget.id} is {value}; give a number from {widget.min:g} to {widget.max:g}."
    return None


def check(node: type[io.ComfyNode], **values: Any) -> None:
    """Raise ValueError with what :func:`problem` finds: values that came over links were never checked."""
    found = problem(node, **values)
    if found:
        raise ValueError(found)
