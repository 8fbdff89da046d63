"""What newer versions of ComfyUI know and the oldest that the pack runs on does not."""

from __future__ import annotations

import inspect
from typing import Any

from comfy_api.latest import io

# for inputs that few need: newer ComfyUI folds them away, older has them in plain sight
ADVANCED: dict[str, Any] = (
    {"advanced": True} if "advanced" in inspect.signature(io.Float.Input.__init__).parameters else {}
)


def Schema(**fields: Any) -> io.Schema:
    """``io.Schema`` of those fields that this ComfyUI has, such as ``search_aliases`` from 0.11 on.

    Named like a class because ComfyUI-Manager reads node ids out of source text, from calls of that name.
    """
    known = inspect.signature(io.Schema).parameters
    return io.Schema(**{name: value for name, value in fields.items() if name in known})
