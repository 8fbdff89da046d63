"""Which field of a data set is the picture to learn, which are those to start from, which is the text.

One rule for the columns of tables, the fields of JSON and CSV records, the endings of files that share a key
and the folders that pictures lie in. A name is cut into words: ``input_image_1``, ``inputImage1`` and
``.input1.jpg`` all say *input*, number 1. What the words do not say is an error that names the field.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from .columns import Columns, Field

INPUT = frozenset(
    "input inputs in source sources src original originals orig origin before start control controls "
    "conditioning condition cond reference references ref refs context init visual".split()
)
TARGET = frozenset(
    "output outputs out target targets tgt edited after end result results generated gt truth groundtruth "
    "final modified transformed".split()
)
PICTURE = frozenset(
    "image images img imgs picture pictures pic pics photo photos jpg jpeg jfif png webp gif bmp tif tiff "
    "avif jp2 bytes file files filename filenames filepath path paths name names local ground fname "
    "encoded raw data content".split()
)
MASK = frozenset("mask masks masklabel masklabels".split())
# beside it in the name of a mask: whose it is, what it is for, and that it is a file
ANY_PICTURE = frozenset("image images img imgs picture pictures pic pics photo photos".split())
MASKED = TARGET | {"loss"} | PICTURE - ANY_PICTURE
UNUSED = MASK | frozenset("thumbnail thumbnails thumb".split())  # known, and not what is learned

# texts in the order in which they are looked for
CAPTIONS = (
    "caption", "captions", "text", "texts", "txt", "prompt", "prompts", "input_prompt", "long_caption",
    "detailed_caption", "description", "descriptions", "sentence", "sentences", "alt_text",
)  # fmt: skip
INSTRUCTIONS = (
    "edited_prompt_list", "instruction", "instructions", "edit_instruction", "edit_instructions",
    "edited_instruction", "editing_instruction", "edit_prompt", "editing_prompt", "edit_text", "input_prompt",
    "edit",
)  # fmt: skip
PLAIN_TEXTS = ("text", "texts", "txt", "prompt", "prompts", "caption", "captions", "description")
CAPTION_WORDS = frozenset("caption captions recaption description prompt text alt txt".split())
INSTRUCTION_WORDS = frozenset("instruction instructions".split())
# these captions describe one of the pictures of an edit, and not what is to be done
OF_ONE_PICTURE = INPUT | TARGET

WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+")


class UnclearRoles(ValueError):
    """Fields whose meaning cannot be told.

    Args:
        sentence: what is unclear, without the end.
        command: the ``--columns …`` to type.
    """

    def __init__(self, sentence: str, command: str) -> None:
        super().__init__(sentence)
        self.sentence, self.command = sentence, command

    def __reduce__(self) -> tuple:
        return type(self), (self.sentence, self.command)

    def __str__(self) -> str:
        return f"{self.sentence}; say which is which with {self.command}" if self.command else self.sentence


class UnclearText(UnclearRoles):
    """Pictures are clear, the text is not."""


@dataclass(frozen=True)
class Roles:
    """What the fields of a sample are.

    Attributes:
        target: the picture to learn.
        inputs: pictures to start from, in order.
        texts: of these the first that holds something is the text.
        unused: fields of pictures and texts that were left aside.
        mask: picture that is white where the target counts in the loss, or None.
    """

    target: Field
    inputs: tuple[Field, ...]
    texts: tuple[str, ...]
    unused: tuple[str, ...] = ()
    mask: Field | None = None

    @property
    def pictures(self) -> tuple[Field, ...]:
        """All of them that are used."""
        return (self.target, *self.inputs, *((self.mask,) if self.mask else ()))

    def __str__(self) -> str:
        inputs = f", input {', '.join(map(str, self.inputs))}" if self.inputs else ""
        inputs += f", mask {self.mask}" if self.mask else ""
        unused = f"; unused: {', '.join(self.unused)}" if self.unused else ""
        return (
            f"target {self.target}{inputs}, text {' or '.join(self.texts) or 'of the conversation'}{unused}"
        )


@lru_cache(maxsize=4096)
def words_of(name: str) -> tuple[tuple[str, ...], int]:
    """The words of a name in lower case, and the number behind them (-1 if there is none)."""
    words = [word.lower() for word in WORD.findall(name)]
    number = -1
    if words and words[-1].isdecimal():
        number = int(words.pop())
    # edited_image_1_path: the number counts the picture
    elif len(words) > 1 and words[-2].isdecimal() and words[-1] in PICTURE:
        number = int(words.pop(-2))
    return tuple(words), number


@lru_cache(maxsize=4096)
def kind_of(name: str) -> str:
    """What the name of a picture says: input, target, mask, plain, edit, unused or unknown.

    ``mask_image`` is unused: published edits have it for where their source was changed, or for a picture
    with a hole.
    """
    words, _ = words_of(name)
    known = set(words)
    if known & MASK and known <= MASK | MASKED:
        return "mask"
    if known & UNUSED:
        return "unused"
    rest = known - PICTURE
    if not rest:
        return "plain"
    if rest == {"edit"}:  # edit_image is one of two things, edit.jpg could be either
        return "edit" if known & {"image", "images", "img", "imgs"} else "unknown"
    if rest <= INPUT:
        return "input"
    if rest <= TARGET:
        return "target"
    return "unknown"


def says_mask(name: str) -> bool:
    """Whether a name has the word in it."""
    return not MASK.isdisjoint(words_of(name)[0])


@lru_cache(maxsize=4096)
def roles_of(pictures: tuple[str, ...], texts: tuple[str, ...], columns: Columns) -> Roles:
    """What the fields of a sample, a table or a key are.

    Args:
        pictures: names of the fields that hold pictures.
        texts: names of the fields that hold text.
        columns: fields that were named by hand, which come first.

    Raises:
        UnclearRoles: a picture could not be told.
        UnclearText: the text could not be told.
    """
    target, inputs, mask, unused = picture_roles(pictures, texts, columns)
    chosen = text_roles(texts, target, inputs, columns)
    return Roles(target, inputs, chosen, (*unused, *(name for name in texts if name not in chosen)), mask)


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


@lru_cache(maxsize=4096)
def text_roles(
    texts: tuple[str, ...], target: Field, inputs: tuple[Field, ...], columns: Columns
) -> tuple[str, ...]:
    """The texts to use, best first. Raises UnclearText."""
    if not columns.texts:
        return told_texts(texts, target, inputs)
    chosen = tuple(name for name in columns.texts if name in texts)
    if not chosen:
        raise UnclearText(
            f"there is no text {listed(columns.texts)} among {listed(texts)}", typed(target, inputs, "…")
        )
    return chosen


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


def told_texts(texts: tuple[str, ...], target: Field, inputs: tuple[Field, ...]) -> tuple[str, ...]:
    """The texts to use, by their names alone, best first. Raises UnclearText."""
    families = ((CAPTIONS, CAPTION_WORDS), (INSTRUCTIONS, INSTRUCTION_WORDS))
    if inputs:
        families = ((INSTRUCTIONS, INSTRUCTION_WORDS), (PLAIN_TEXTS, CAPTION_WORDS))
    for order, words in families:
        found = tuple(name for wanted in order for name in texts if simple(name) == wanted)
        if found:
            return found
        like = tuple(name for name in texts if says(name, words, bool(inputs)))
        if len({simple(name) for name in like}) == 1:
            return like
        if like:
            raise UnclearText(f"{listed(like)} could each be the text", typed(target, inputs, like[0]))
    if not texts:
        raise UnclearText("nothing of it is a text", "")
    raise UnclearText(
        f"of the texts {listed(texts)} it is not clear which is to be learned",
        typed(target, inputs, texts[0]),
    )


def says(name: str, words: frozenset[str], edit: bool) -> bool:
    """Whether a text's name holds one of the words; not, if it describes a picture of an edit."""
    own = set(words_of(name)[0])
    return bool(own & words) and not (edit and own & OF_ONE_PICTURE)


def several_masks(name: str) -> str:
    """That a field holds more than one mask, and what to type."""
    return f"several masks in {name}; say which with --columns mask={name}[0]"


def typed(target: Field, inputs: tuple[Field, ...], text: str) -> str:
    """The option that names these fields."""
    given = f" input={','.join(map(str, inputs))}" if inputs else ""
    return f"--columns target={target}{given} text={text}"


@lru_cache(maxsize=4096)
def simple(name: str) -> str:
    """A name as the lists of texts have it: words in lower case, joined by ``_``."""
    return "_".join(words_of(name)[0])


def listed(names: Iterable[str]) -> str:
    """Names for a sentence."""
    return ", ".join(names) or "none"
