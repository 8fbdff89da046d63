"""When a picture counts: what a caption or an instruction asks for, compared with what the detector saw."""

from __future__ import annotations

from ..domain.edits import Edit
from ..domain.facts import GENERAL, holds
from ..domain.prompts import Prompt
from ..domain.scene import SIZE, Item, Scene

NEAR = 0.16 * SIZE  # an item stands where it should if both coordinates are this close, in pixels


def follows(seen: Scene, prompt: Prompt) -> bool:
    """Whether everything holds that the caption states about objects and words.

    As in GenEval more objects may be there, except of a kind that is counted. Style and background have rows
    of their own; see `general`.
    """
    return all(holds(fact, seen) for fact in prompt.facts if fact[0] not in GENERAL)


def general(seen: Scene, prompt: Prompt, what: str) -> bool | None:
    """Whether the caption's "style" or "background" holds, None if it names none."""
    facts = [fact for fact in prompt.facts if fact[0] == what]
    return all(holds(fact, seen) for fact in facts) if facts else None


def facts_right(seen: Scene, prompt: Prompt) -> float:
    """Share of all that the caption states, style and background too: the verdict on dense captions."""
    return sum(holds(fact, seen) for fact in prompt.facts) / len(prompt.facts)


def letters_right(seen: Scene, prompt: Prompt) -> float:
    """Character accuracy: 1 less the letters to change, add or drop as a share of the longer word.

    0 where no word was read.
    """
    wanted, read = prompt.scene.word.letters, seen.word.letters if seen.word else ""
    return 1 - distance(wanted, read) / max(len(wanted), len(read))


def distance(first: str, second: str) -> int:
    """How many letters must be changed, added or dropped to make one word of the other (Levenshtein)."""
    row = list(range(len(second) + 1))
    for i, letter in enumerate(first, start=1):
        before, row = row, [i]
        for j, other in enumerate(second, start=1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (letter != other)))
    return row[-1]


def follows_edit(seen: Scene, edit: Edit) -> bool:
    """Whether exactly the result's objects are there: names, paints, places, style and background.

    Where the instruction told the number only, they may stand anywhere.
    """
    target = edit.target
    if (seen.background, seen.style) != (target.background, target.style):
        return False
    if len(seen.items) != len(target.items):
        return False
    left = list(seen.items)
    for wanted in target.items:
        match = next((item for item in left if matches(item, wanted, edit.anywhere)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def matches(item: Item, wanted: Item, anywhere: bool) -> bool:
    """Whether a finding is an item of the target."""
    if (item.name, item.paint) != (wanted.name, wanted.paint):
        return False
    return anywhere or (abs(item.x - wanted.x) < NEAR and abs(item.y - wanted.y) < NEAR)
