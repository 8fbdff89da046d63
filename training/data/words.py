"""What the name of a field, an ending or a folder says: its words, and the kind of picture or text they tell.

A name is cut into words: ``input_image_1``, ``inputImage1`` and ``.input1.jpg`` all say *input*, number 1.
"""

from __future__ import annotations

import re
from functools import lru_cache

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
# beside an answer these are what was asked, and tell nothing of the picture
ANSWERS = frozenset("answer answers response responses output outputs completion reply".split())
ASKED = frozenset("text texts txt prompt prompts input_prompt".split())
DESCRIBING = frozenset("caption captions recaption description".split())
# negative_prompt and caption_type, by their last word, are no captions
NOT_WANTED = frozenset("negative neg".split())
ABOUT_TEXTS = frozenset(
    "id ids type source lang language length len score model name path file url version method hash "
    "embedding count tokens quality similarity category".split()
)
# these captions describe one of the pictures of an edit, and not what is to be done
OF_ONE_PICTURE = INPUT | TARGET

WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+")


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
def simple(name: str) -> str:
    """A name as the lists of texts have it: words in lower case, joined by ``_``."""
    return "_".join(words_of(name)[0])
