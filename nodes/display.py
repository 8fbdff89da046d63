"""What nodes show: text below them while they run, and pictures."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from PIL import Image

SECONDS_BETWEEN_TEXTS = 0.1  # a browser need not redraw more often


def from_pil(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """Pictures of one size as an IMAGE ``[batch, height, width, 3]`` in 0 … 1."""
    import numpy as np
    import torch

    arrays = [np.asarray(picture.convert("RGB"), dtype=np.float32) / 255 for picture in pictures]
    return torch.from_numpy(np.stack(arrays))


def text_display() -> Callable[[str, bool], None]:
    """A function that shows a text below the node that runs just now; without a server it does nothing.

    Its second argument says that this text is the last, which is shown however soon it comes.
    """
    from comfy_execution.utils import get_executing_context

    module = sys.modules.get("server")  # absent where ComfyUI's code runs without its server
    server = getattr(getattr(module, "PromptServer", None), "instance", None)
    context = get_executing_context()
    shown_at = 0.0

    def show(text: str, last: bool) -> None:
        nonlocal shown_at
        if server is None or context is None:
            return
        if last or time.monotonic() - shown_at >= SECONDS_BETWEEN_TEXTS:
            shown_at = time.monotonic()
            server.send_progress_text(text, context.node_id)

    return show
