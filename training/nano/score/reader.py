"""A second reader of words, which knows nothing of our drawings: RapidOCR, if it is installed.

The judge was trained on the very font that is asked for, so it might forgive what nobody else would read.
RapidOCR reads print; its own mistakes with this font stand beside, in the column "truth".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from ..domain.letters import LETTERS

PACKAGE = "rapidocr-onnxruntime"
SIDE = 256  # pixels that a picture is enlarged to: letters of 56 are what it knows
Reader = Callable[[np.ndarray], str]


def load() -> Reader:
    """The reader: a picture [size, size, 3] uint8 to the capital letters in it, from the left to the right.

    Raises:
        ValueError: RapidOCR is not installed.
    """
    try:
        from rapidocr_onnxruntime import RapidOCR
    except ImportError as error:
        raise ValueError(f"--ocr needs RapidOCR; install it with `pip install {PACKAGE}`") from error
    engine = RapidOCR(intra_op_num_threads=1, inter_op_num_threads=1)

    def read(picture: np.ndarray) -> str:
        enlarged = Image.fromarray(picture).resize((SIDE, SIDE), Image.BICUBIC)
        found, _ = engine(np.asarray(enlarged)[..., ::-1], use_cls=False)  # blue, green, red
        return in_order([(box[0][0], text) for box, text, _ in found or ()])

    return read


def in_order(found: Sequence[tuple[float, str]]) -> str:
    """Capital letters of texts by where they begin; small ones count as theirs, other signs not at all."""
    return "".join(letter for _, text in sorted(found) for letter in text.upper() if letter in LETTERS)
