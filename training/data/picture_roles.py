"""Which picture of a sample is to be learned, which are to start from, which is the mask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from .columns import Columns, Field, UnclearRoles, listed
from .words import CAPTIONS, INSTRUCTIONS, kind_of, words_of


@lru_cache(maxsize=4096)
def picture_roles(
    pictures: tuple[str, ...], texts: tuple[str, ...], columns: Columns
) -> tuple[Field, tuple[Field, ...], Field | None, tuple[str, ...]]:
    """Target, inputs, mask and unused pictures. Raises UnclearRoles."""
    named = columns.masks()
    if columns.target or columns.inputs:
        masks = tuple(name for name in named if name in pictures)
        rest = tuple(name for name in pictures if name not in masks)
        target, inputs, unused = named_pictures(columns, rest)
    else:
        masks = tuple(name for name in pictures if (name in named if named else kind_of(name) == "mask"))
        rest = tuple(name for name in pictures if name not in masks)
        target, inputs, unused = told_pictures(rest, texts)
    if len(masks) > 1:
        raise UnclearRoles(f"{listed(masks)} could each be the mask", f"--columns mask={masks[0]}")
    mask = columns.mask[0] if named and masks else Field(masks[0]) if masks else None
    return target, inputs, mask, unused


def named_pictures(
    columns: Columns, pictures: tuple[str, ...]
) -> tuple[Field, tuple[Field, ...], tuple[str, ...]]:
    """The pictures that were named by hand; of a sample that lacks an input the rest."""
    inputs = tuple(field for field in columns.inputs if field.name in pictures)
    used = {field.name for field in inputs}
    if columns.target:
        target = columns.target[0]
    else:
        rest = [name for name in pictures if name not in used and kind_of(name) not in ("mask", "unused")]
        if len(rest) != 1:
            raise UnclearRoles(
                f"the picture to learn is one of {listed(rest)}",
                f"--columns target=… {' '.join(columns.words())}",
            )
        target = Field(rest[0])
    if target.name not in pictures:
        raise UnclearRoles(
            f"there is no picture {target.name} among {listed(pictures)}", "--columns target=…"
        )
    used.add(target.name)
    return target, inputs, tuple(name for name in pictures if name not in used)


def told_pictures(
    pictures: tuple[str, ...], texts: tuple[str, ...]
) -> tuple[Field, tuple[Field, ...], tuple[str, ...]]:
    """Target, inputs and unused pictures by their names alone. Raises UnclearRoles."""
    kinds: dict[str, list[str]] = {
        kind: [] for kind in ("input", "target", "plain", "edit", "mask", "unused", "unknown")
    }
    for name in pictures:
        kinds[kind_of(name)].append(name)
    if len(kinds["mask"]) + len(kinds["unused"]) == len(pictures):
        raise UnclearRoles(f"of the pictures {listed(pictures)} none is to be learned", "--columns target=…")
    inputs, targets, plain, unknown = kinds["input"], kinds["target"], kinds["plain"], kinds["unknown"]
    for name in kinds["edit"]:  # beside a source it is what came out; beside a plain picture what goes in
        (targets if inputs and not targets else inputs if plain or targets else unknown).append(name)
    left: list[str] = list(unknown)
    if unknown and not (inputs or targets or plain or len(unknown) > 1):
        targets, left = unknown, []  # the only picture there is
    elif targets and not inputs and len({words_of(name)[0] for name in plain}) <= 1:
        inputs = plain
    elif not targets and len(plain) == 1:
        targets = plain
    else:
        left += plain
    if len(targets) != 1 or left:
        raise UnclearRoles(
            unclear(pictures, inputs, targets, left), suggestion(pictures, texts, inputs, targets)
        )
    numbered = sorted(inputs, key=lambda name: words_of(name)[1])
    return Field(targets[0]), tuple(map(Field, numbered)), (*kinds["mask"], *kinds["unused"])


def unclear(pictures: Iterable[str], inputs: list[str], targets: list[str], left: list[str]) -> str:
    """What cannot be told about some pictures, in words."""
    if left:
        verb = "is" if len(left) == 1 else "are"
        return f"of the pictures {listed(pictures)} it is not clear what {listed(left)} {verb}"
    if len(targets) > 1:
        return f"{listed(targets)} could each be the picture to learn"
    kind = "is a picture" if len(inputs) == 1 else "are pictures"
    return f"{listed(inputs)} {kind} to start from, and none is to be learned"


def suggestion(pictures: Iterable[str], texts: Sequence[str], inputs: list[str], targets: list[str]) -> str:
    """The option to type, filled in as far as the names tell."""
    rest = [name for name in pictures if kind_of(name) not in ("mask", "unused")]
    target = (
        targets[0] if targets else next((name for name in reversed(rest) if name not in inputs), rest[-1])
    )
    others = [name for name in rest if name != target]
    text = next((name for name in (*INSTRUCTIONS, *CAPTIONS) if name in texts), texts[0] if texts else "…")
    given = f" input={','.join(others)}" if others else ""
    return f"--columns target={target}{given} text={text}"


def several_masks(name: str) -> str:
    """That a field holds more than one mask, and what to type."""
    return f"several masks in {name}; say which with --columns mask={name}[0]"
