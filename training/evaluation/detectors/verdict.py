"""GenEval's verdict on a picture (``evaluate_images.py`` of djghosh13/geneval), from what was detected.

Boxes and scores are float32, and are compared as such: a score of 0.9 is not above the limit of 0.9.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")


@dataclass(frozen=True)
class Limits:
    """The official script's options.

    Attributes:
        score: an object counts above it.
        counting_score: the same for prompts of the task "counting".
        objects: at most so many of a class, the surest first.
        overlap: an object that overlaps a surer one of its class so much does not count; 1: all do.
        position: share of the summed sizes that an offset must exceed.
    """

    score: float = 0.3
    counting_score: float = 0.9
    objects: int = 16
    overlap: float = 1.0
    position: float = 0.1


PUBLISHED = Limits()


@dataclass(frozen=True)
class Seen:
    """A detected object.

    Attributes:
        box: left, top, right, bottom and score, ``[5]`` float32, in pixels.
        mask: ``[height, width]`` bool of the whole picture, or None.
    """

    box: np.ndarray
    mask: np.ndarray | None = None


Colours = Callable[[Sequence[Seen], str], Sequence[str]]


def kept(found: Mapping[str, Sequence[Seen]], task: str, limits: Limits = PUBLISHED) -> dict[str, list[Seen]]:
    """The objects that count, the surest first; classes without any are absent.

    Args:
        found: everything detected, by name of the class.
        task: ``tag`` of the prompt.
        limits: of scores, numbers and overlaps.
    """
    limit = np.float32(limits.counting_score if task == "counting" else limits.score)
    result = {}
    for name, objects in found.items():
        scores = np.array([seen.box[4] for seen in objects], np.float32)
        order = [i for i in np.argsort(scores)[::-1] if scores[i] > limit]
        counted: list[Seen] = []
        for i in order[: limits.objects]:
            if limits.overlap == 1 or all(
                iou(seen.box, objects[i].box) < np.float32(limits.overlap) for seen in counted
            ):
                counted.append(objects[i])
        if counted:
            result[name] = counted
    return result


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes whose edges are inclusive; 0 where both are empty."""
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)

    def area(left_top: np.ndarray, right_bottom: np.ndarray) -> np.float32:
        sides = np.maximum(right_bottom - left_top + 1, 0)
        return sides[0] * sides[1]

    both = area(np.maximum(a[:2], b[:2]), np.minimum(a[2:4], b[2:4]))
    union = area(a[:2], a[2:4]) + area(b[:2], b[2:4]) - both
    return both / union if union else 0.0


def relations(a: np.ndarray, b: np.ndarray, share: float = PUBLISHED.position) -> list[str]:
    """Where box ``a`` is relative to box ``b``, sorted: up to two of left of, right of, above, below."""
    corners_a, corners_b = (np.asarray(box, np.float32)[:4].reshape(2, 2) for box in (a, b))
    offset = corners_a.mean(axis=0) - corners_b.mean(axis=0)
    sizes = np.abs(corners_a[1] - corners_a[0]) + np.abs(corners_b[1] - corners_b[0])
    reduced = np.maximum(np.abs(offset) - share * sizes, 0) * np.sign(offset)
    if (np.abs(reduced) < 1e-3).all():
        return []
    x, y = reduced / np.linalg.norm(offset)
    holds = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return sorted(name for name, held in holds.items() if held)


def verdict(
    objects: Mapping[str, Sequence[Seen]],
    metadata: Mapping[str, Any],
    colours: Colours,
    limits: Limits = PUBLISHED,
) -> tuple[bool, str]:
    """Whether a picture shows what its prompt asks for, and a line for each thing that is wrong.

    Args:
        objects: those that count (:func:`kept`).
        metadata: the line of the benchmark: ``include``, ``exclude``.
        colours: a colour of :data:`COLOURS` for each of some objects of a class; asked only where needed.
        limits: of positions.
    """
    reasons = []
    groups: list[Sequence[Seen] | None] = []  # per part of the prompt: its objects if it holds
    for part in metadata.get("include", ()):
        name, count = part["class"], part["count"]
        first = objects.get(name, ())[:count]
        wrong = []
        if len(first) < count:
            wrong.append(f"expected {name}>={count}, found {len(first)}")
        elif "color" in part:
            wrong += wrong_colours(part, list(colours(first, name)))
        if "position" in part and not wrong:
            wrong += wrong_places(part, first, groups[part["position"][1]], limits.position)
        groups.append(None if wrong else first)
        reasons += wrong
    for part in metadata.get("exclude", ()):
        found = len(objects.get(part["class"], ()))
        if found >= part["count"]:
            reasons.append(f"expected {part['class']}<{part['count']}, found {found}")
    return not reasons, "\n".join(reasons)


def wrong_colours(part: Mapping[str, Any], seen: Sequence[str]) -> list[str]:
    """What is wrong with the colours of a part's objects."""
    name, count, colour = part["class"], part["count"], part["color"]
    if seen.count(colour) >= count:
        return []
    counts = ", ".join(f"{seen.count(c)} {c}" for c in COLOURS if c in seen)
    return [f"expected {colour} {name}>={count}, found {seen.count(colour)} {colour}; and {counts}"]


def wrong_places(
    part: Mapping[str, Any], objects: Sequence[Seen], targets: Sequence[Seen] | None, share: float
) -> list[str]:
    """What is wrong with the places of a part's objects: every one must stand so to every target."""
    name, wanted = part["class"], part["position"][0]
    if targets is None:
        return [f"no target for {name} to be {wanted}"]
    for seen in objects:
        for target in targets:
            held = relations(seen.box, target.box, share)
            if wanted not in held:
                return [f"expected {name} {wanted} target, found {' and '.join(held)} target"]
    return []
