"""Pictures within a request, as the official scripts send them."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

from PIL import Image

from ..benchmark import Item, Shown

JPEG_QUALITY = 75


def data_url(shown: Shown, item: Item, pictures: Path) -> str:
    """A picture as a data URL.

    Args:
        shown: which, and in what form.
        item: whose source it may be.
        pictures: the set's folder of pictures.

    Raises:
        ValueError: the file is no picture.
    """
    content = item.source() if shown.path is None else (pictures / shown.path).read_bytes()
    kind = shown.format or "PNG"
    if shown.tile is not None or shown.source_size or shown.format is not None:
        content = converted(content, shown, item, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"


def converted(content: bytes, shown: Shown, item: Item, kind: str) -> bytes:
    """The picture cut, resized and written anew. Raises ValueError."""
    try:
        with Image.open(BytesIO(content)) as opened:
            picture = opened.convert("RGB")
        if shown.source_size:
            with Image.open(BytesIO(item.source())) as source:
                size = source.size
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{shown.path or f'The source of {item.key}'} is no picture ({error}).") from error
    if shown.tile is not None:
        width, height = picture.width // 2, picture.height // 2
        left, top = shown.tile % 2 * width, shown.tile // 2 * height
        picture = picture.crop((left, top, left + width, top + height))
    if shown.source_size and picture.size != size:
        picture = picture.resize(size)
    file = BytesIO()
    picture.save(file, format=kind, **({"quality": JPEG_QUALITY} if kind == "JPEG" else {}))
    return file.getvalue()
