"""Drawings to test with where the real ones have not been fetched: a shape of its own for every object."""

from __future__ import annotations

import numpy as np
import pytest
from tbac_uniimage.training.nano.domain import art, render
from tbac_uniimage.training.nano.domain.words import OBJECTS, STYLES

needs_art = pytest.mark.skipif(
    not (art.CACHE / "art.npz").exists(), reason="the drawings are not in the cache"
)


def made_up() -> dict[tuple[str, str], np.ndarray]:
    """Blots [96, 96, 4] uint8 whose outline follows from the object and whose shades from the style."""
    rows, columns = np.mgrid[:96, :96] / 95 * 2 - 1
    angle, radius = np.arctan2(rows, columns), np.hypot(rows, columns)
    drawings = {}
    for i, style in enumerate(STYLES):
        for j, name in enumerate(OBJECTS):
            inside = radius < 0.75 + 0.2 * np.cos((2 + j % 6) * angle + j)
            shade = (0.3 + 0.7 * (rows + 1) / 2) ** (1 + i)
            colour = np.random.default_rng(j).integers(40, 255, 3)
            rgba = np.concatenate([shade[..., None] * colour, 255.0 * inside[..., None]], -1)
            drawings[style, name] = rgba.astype(np.uint8)
    return drawings


@pytest.fixture
def drawings(monkeypatch):
    """The made-up drawings in place of the real ones."""
    stored = made_up()
    monkeypatch.setattr(art, "load", lambda: stored)
    monkeypatch.setattr(art, "build", lambda: None)
    caches = (render.painted, render.sprite)
    for cache in caches:
        cache.cache_clear()
    yield stored
    for cache in caches:
        cache.cache_clear()
