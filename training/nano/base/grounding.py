"""Which words a slot is about, asked of the MLLM in training only.

Each word of a caption belongs to one slot. The slots of an object should attend to its noun, those of a word
that is to be written each to its letter (:func:`find_words`, :func:`telling_loss`); the word should know
its slot (:meth:`Grounding.number_loss`) and say what that will say. Unless they are asked, slots learn
combinations by heart, which is of no use for new ones.

An edit changes the slots of the objects that the instruction names and leaves the others. The slots' own loss
teaches that last of all, because it takes several steps that are of no use alone. So each is asked by itself:

- nouns should know where their object lies: :meth:`Grounding.cell_loss`, :meth:`Grounding.number_loss`;
- an object's slots should attend to the nouns that name it: :func:`naming_loss`;
- and know what happens to it: :meth:`Grounding.fate_loss`;
- and, where it changes, attend to the word for what it becomes: :func:`telling_loss`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..domain import naming
from . import mllm
from .vision import WHAT

GROUNDED = slice(2, 5)  # layers at whose input nouns should know their object
NAMED = slice(0, 2)  # of `ASKED`: an object's slots should attend to the nouns that name it
ASKED = (3, 4, 5, 6)  # layers whose first head is asked
NEWS = slice(2, 4)  # and to the word for what it becomes
TOLD = slice(2, 6)  # rungs, inputs of layers 4 to 7, where the slots should know what happens to their object
KEPT_WEIGHT = 0.3  # of the most frequent fate
ITEM_SLOTS = naming.MOST_ITEMS * len(naming.ITEM_SLOTS)  # the last ones
TINY = 1e-4


class Nouns(NamedTuple):
    """The nouns of instructions whose object is in the picture.

    Attributes:
        rows, places: where they stand, ``[nouns]`` each.
        cells: that their objects lie on, ``[nouns, CELLS]`` bool.
        spots: where every object is named, ``[batch, MOST_ITEMS, length]`` bool.
    """

    rows: Tensor
    places: Tensor
    cells: Tensor
    spots: Tensor


def find_nouns(ids: Tensor, words: Tensor, cells: Tensor, objects: Tensor) -> Nouns:
    """The nouns of a batch.

    Args:
        ids: of instructions, ``[batch, length]``.
        words: ids of the words for the objects, :attr:`.language.Tasks.words`.
        cells: names of the pictures' cells, :func:`.vision.cell_names`.
        objects: names of the pictures' objects by number, ``[batch, MOST_ITEMS]``, 0 where there is none.
    """
    row, place, _, word = (ids[..., None, None] == words).nonzero(as_tuple=True)
    named = word[:, None] + 1
    lies, numbers = cells[row, :, WHAT] == named, objects[row] == named
    spots = torch.zeros(*objects.shape, ids.shape[1], dtype=torch.bool)
    spots[row, :, place] = numbers
    seen = lies.any(-1)
    return Nouns(row[seen], place[seen], lies[seen], spots)


class Grounding(nn.Module):
    """Read off a noun's token: the cells of its object, and its number, by which the slots know it. Read off
    an object's slots: its fate.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.Linear(mllm.WIDTH, mllm.CELLS)
        self.numbers = nn.Linear(mllm.WIDTH, naming.MOST_ITEMS)
        self.fates = nn.Linear(mllm.WIDTH, len(naming.FATES))

    def fate_loss(self, slots: Tensor, fates: Tensor) -> Tensor:
        """Weighted cross-entropy, the mean over the slots of all objects; 0 without objects.

        Args:
            slots: normalised query states, ``[layers, batch, QUERIES, WIDTH]``.
            fates: of the objects, :func:`.naming.fates`, ``[batch, MOST_ITEMS]``.
        """
        if not (fates != naming.UNREAD).any():
            return slots.new_zeros((), dtype=torch.float32)
        items = slots[:, :, -ITEM_SLOTS:]
        wanted = fates.repeat_interleave(len(naming.ITEM_SLOTS), 1).expand(len(slots), -1, -1)
        weights = torch.ones(len(naming.FATES))
        weights[naming.FATES.index("kept")] = KEPT_WEIGHT
        return F.cross_entropy(self.fates(items.float()).flatten(0, 2), wanted.flatten(), weights)

    def cell_loss(self, layers: Tensor, nouns: Nouns) -> Tensor:
        """Cross-entropy of the cells of all nouns; 0 without nouns.

        Args:
            layers: normalised states of all tokens, ``[layers, batch, length, WIDTH]``.
            nouns: those of the batch.
        """
        return spread_loss(self.cells(layers[:, nouns.rows, nouns.places].float()), nouns.cells)

    def number_loss(self, layers: Tensor, spots: Tensor) -> Tensor:
        """Cross-entropy of the numbers of all words; 0 without any.

        Args:
            layers: as in :meth:`cell_loss`.
            spots: where the words of every number stand, ``[batch, MOST_ITEMS, length]`` bool.
        """
        row, place = spots.any(1).nonzero(as_tuple=True)
        return spread_loss(self.numbers(layers[:, row, place].float()), spots[row, :, place])


def spread_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy with several classes of which one is as good as another; 0 without samples.

    Args:
        logits: ``[layers, samples, classes]``.
        wanted: ``[samples, classes]`` bool.
    """
    if not len(wanted):
        return logits.new_zeros(())
    shares = (wanted / wanted.sum(-1, keepdim=True)).repeat(len(logits), 1)
    return F.cross_entropy(logits.flatten(0, 1), shares)


def naming_loss(attention: Tensor, objects: Tensor, spots: Tensor) -> Tensor:
    """How far the slots are from attending to the nouns that name their object, or, unnamed, to no noun.

    Args:
        attention: log-probabilities ``[layers, batch, QUERIES, length]``.
        objects: names of the pictures' objects, ``[batch, MOST_ITEMS]``, 0 where there is none.
        spots: where they are named, ``[batch, MOST_ITEMS, length]`` bool.

    Returns:
        The mean negative logarithm of the attention that is right, over pictures of which something is named.
    """
    rows = spots.flatten(1).any(1)
    there = (objects != naming.NOTHING)[rows]
    if not there.any():
        return attention.new_zeros(())
    share = attention[:, rows, -ITEM_SLOTS:].exp().unflatten(2, (naming.MOST_ITEMS, -1))
    own = (share * spots[rows, :, None]).sum(-1)
    any_noun = (share * spots[rows].any(1)[:, None, None]).sum(-1)
    right = torch.where(spots[rows].any(-1)[..., None], own, 1 - any_noun)
    return -(right[:, there] + TINY).log().mean()


def find_news(
    ids: Tensor, words: Tensor, paints: Tensor, before: dict[str, Tensor], after: dict[str, Tensor]
) -> Tensor:
    """Where the word stands that tells what an object becomes: its noun if it is new, else its new paint.

    Args:
        ids: of instructions, ``[batch, length]``.
        words, paints: ids of the words for the objects, :attr:`.language.Tasks.words`, and for the paints.
        before, after: names of the objects by number, "what" and "paint", ``[batch, MOST_ITEMS]`` each.

    Returns:
        ``[batch, MOST_ITEMS, length]`` bool.
    """
    what, paint = after["what"], after["paint"]
    painted = (what == before["what"]) & (paint != before["paint"]) & (paint != naming.NOTHING)
    wanted = torch.full_like(what, naming.UNREAD)
    wanted[painted] = paints[paint[painted] - 1]
    new = find_words(ids, words, torch.where(what != before["what"], what, naming.NOTHING))
    return new | (wanted[..., None] == ids[:, None])


def find_words(
    ids: Tensor, words: Tensor, what: Tensor, written: Sequence[list[int]] | None = None
) -> Tensor:
    """Where the words stand that slots name: nouns, and the letters of a word to be written.

    Args:
        ids: of prompts, ``[batch, length]``.
        words: ids of the words for the objects, :attr:`.language.Tasks.words`.
        what: names of the objects by number, ``[batch, MOST_ITEMS]``.
        written: ids of the letters that every prompt asks for.

    Returns:
        ``[batch, MOST_ITEMS, length]`` bool.
    """
    most = words.shape[1]
    wanted = words[:, (what - 1).clamp(0, most - 1)]
    objects = (what != naming.NOTHING) & (what <= most)
    spots = (wanted[..., None] == ids[:, None]).any(0) & objects[..., None]
    for row, letters in enumerate(written or ()):
        line, count = ids[row].tolist(), len(letters)
        start = next(at for at in range(len(line)) if line[at : at + count] == letters)
        for number in range(count):
            spots[row, 1 + number, start + number] = True
    return spots


def telling_loss(attention: Tensor, spots: Tensor) -> Tensor:
    """How far the first slots of objects are from attending to the words that tell what they are to say.

    Args:
        attention: log-probabilities ``[layers, batch, QUERIES, length]``.
        spots: of :func:`find_words` or :func:`find_news`; objects without any are not asked.
    """
    told = spots.any(-1)
    if not told.any():
        return attention.new_zeros(())
    share = (attention[:, :, -ITEM_SLOTS :: len(naming.ITEM_SLOTS)].exp() * spots).sum(-1)
    return -(share[:, told] + TINY).log().mean()
