"""Words that were read in a picture against those that should stand there: GNED and recall of TIIF-Bench.

As in ``cal_gned_and_recall_models.py``: both sides are lowered by the caller, the true words are taken as
they are, and what was read is split at every single blank.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NEAR = 0.3  # normalised distance up to which a word counts as read


def distance(a: str, b: str) -> float:
    """Edit distance over the length of the longer word; 0 of two empty ones."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (letter != other))
    return row[-1] / max(len(a), len(b), 1)


def gned(truth: Sequence[str], read: Sequence[str]) -> float:
    """Global normalised edit distance, 0 to 1 (worst): the cheapest pairing, and 1 for each word unpaired."""
    from scipy.optimize import linear_sum_assignment

    words = split(read)
    longer = max(len(truth), len(words))
    if longer == 0:
        return 0.0
    costs = np.array([[distance(word, true) for true in truth] for word in words])
    costs = costs.reshape(len(words), len(truth))
    paired = costs[linear_sum_assignment(costs)].sum()
    return float(paired + abs(len(truth) - len(words))) / longer


def recall(truth: Sequence[str], read: Sequence[str]) -> float:
    """Share of the true words for which, in order, an unused word is near enough.

    Raises:
        ValueError: there is no true word, where the official script divides by zero.
    """
    if not truth:
        raise ValueError("The recall of no words is not defined.")
    left = split(read)
    found = 0
    for true in truth:
        near = next((word for word in left if distance(true, word) <= NEAR), None)
        if near is not None:
            left.remove(near)
            found += 1
    return found / len(truth)


def split(read: Sequence[str]) -> list[str]:
    """Words of texts, split at every single blank: two in a row give an empty word."""
    return [word for text in read for word in text.split(" ")]
