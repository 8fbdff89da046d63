"""The nano model's edits: what they change, what they keep, and how that is judged."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nano_drawings import drawings  # noqa: F401  a fixture
from tbac_uniimage.training.nano.domain import changes, edits, words
from tbac_uniimage.training.nano.domain.edits import Edit
from tbac_uniimage.training.nano.domain.prompts import SPLITS
from tbac_uniimage.training.nano.domain.render import render, window
from tbac_uniimage.training.nano.domain.scene import Item, Scene, in_reading_order, is_clear
from tbac_uniimage.training.nano.judge.preservation import keep_mask, preservation, ssim
from tbac_uniimage.training.nano.judge.verdicts import follows_edit

numbers = st.integers(0, 2**32)
kinds = st.sampled_from(list(edits.KINDS))
RECORDED = {
    "add": "put an apple in the bottom left corner",
    "recolor": "make the panda blue",
    "extract": "extract the rocket onto a white background",
    "replace": "swap the frog for a heart",
    "remove": "take the rocket away",
    "background": "make the background purple",
    "style": "turn it into a flat illustration",
    "hybrid": "make the background white and turn the donut into a banana",
    "action": "change the number of penguins to four",
}
DOG, CAT, CAR = Item("dog", 17, 17, 27), Item("cat", 47, 17, 27), Item("car", 17, 47, 27, "blue")
THREE = Scene("flat", "gray", (DOG, CAT, CAR))


def test_recorded_instructions():
    """The training stream and the score's edits stay the same in later versions."""
    assert {kind: edits.draw(0, "held out", 7, kind).text for kind in edits.KINDS} == RECORDED


@given(numbers, st.sampled_from(SPLITS), kinds)
def test_an_edit_changes_what_it_says_and_nothing_else(number, split, kind):
    edit = edits.draw(0, split, number, kind)
    assert edit == edits.draw(0, split, number, kind) and edit.kind == kind
    source, target = edit.source, edit.target
    assert source != target and is_clear(source) and is_clear(target)
    assert target.items == in_reading_order(target.items) and 1 <= len(target.items) <= 5
    kept, gone = set(source.items) & set(target.items), set(source.items) - set(target.items)
    new = set(target.items) - set(source.items)
    same = (source.background == target.background, source.style == target.style)
    sizes = (len(kept), len(gone), len(new))
    if kind in ("add", "remove", "replace", "recolor", "action"):
        assert same == (True, True)
    if kind == "add":
        assert sizes == (len(source.items), 0, 1)
    elif kind == "remove":
        assert sizes == (len(source.items) - 1, 1, 0)
    elif kind in ("replace", "recolor"):
        assert sizes == (len(source.items) - 1, 1, 1)
        [before], [after] = gone, new
        assert (before.x, before.y, before.size) == (after.x, after.y, after.size)
        assert (before.name == after.name) == (kind == "recolor")
    elif kind == "background":
        assert same == (False, True) and source.items == target.items
    elif kind == "style":
        assert same == (True, False) and source.items == target.items
    elif kind == "extract":
        assert len(source.items) > 1 and len(kept) == len(target.items) == 1
        assert target.background == "white" and same[1]
    elif kind == "hybrid":
        assert " and " in edit.text and same[1]
    elif edit.anywhere:
        assert set(source.names) == set(target.names) and len(source.items) != len(target.items)
        assert words.NUMBERS[len(target.items)] in edit.text
    else:
        [before], [after] = gone, new
        assert (before.name, before.paint, before.size) == (after.name, after.paint, after.size)
        assert before.place != after.place and after.place.split(" the ")[1] in edit.text


@given(numbers, kinds)
def test_an_instruction_names_what_changes(number, kind):
    edit = edits.draw(0, "train", number, kind)
    for item in set(edit.source.items) ^ set(edit.target.items):
        if kind != "extract":
            assert item.name in edit.text or words.plural(item.name) in edit.text
    if kind == "extract":
        assert edit.target.names[0] in edit.text
    if edit.source.background != edit.target.background:
        assert edit.target.background in edit.text
    if edit.source.style != edit.target.style:
        assert edit.target.style in edit.text


@given(numbers, kinds)
def test_sprites_of_a_result_do_not_overlap(number, kind):
    items = edits.draw(0, "train", number, kind).target.items
    for i, first in enumerate(items):
        for second in items[:i]:
            gap = max(abs(first.x - second.x), abs(first.y - second.y)) - (first.size + second.size) / 2
            assert gap >= -2


@given(numbers, kinds)
def test_the_result_follows_and_the_source_does_not(number, kind):
    edit = edits.draw(0, "train", number, kind)
    assert follows_edit(edit.target, edit)
    assert not follows_edit(edit.source, edit)


def test_free_places():
    assert changes.free_places(THREE) == ["in the bottom right corner"]
    two = Scene("flat", "gray", (DOG, CAR))
    corners = ["in the top right corner", "in the bottom right corner"]
    assert changes.free_places(two) == ["on the right", *corners]
    assert changes.free_places(Scene("flat", "gray", (Item("dog", 32, 32, 42),))) == []


@pytest.mark.parametrize(
    "wrong",
    [
        Scene("flat", "gray", (DOG, CAT)),
        Scene("flat", "gray", (DOG, CAT, CAR, Item("pig", 47, 47, 27))),
        Scene("3D", "gray", (DOG, CAT, CAR)),
        Scene("flat", "pink", (DOG, CAT, CAR)),
        Scene("flat", "gray", (DOG, CAT, Item("car", 17, 47, 27, "red"))),
        Scene("flat", "gray", (DOG, CAT, Item("car", 47, 47, 27, "blue"))),
        Scene("flat", "gray", (DOG, CAT, Item("bus", 17, 47, 27, "blue"))),
    ],
)
def test_one_wrong_property_is_not_followed(wrong):
    edit = Edit("add", Scene("flat", "gray", (DOG, CAT)), THREE, "add a blue car in the bottom left corner")
    near = Scene("flat", "gray", tuple(Item(i.name, i.x + 4, i.y - 4, 30, i.paint) for i in (CAR, DOG, CAT)))
    assert follows_edit(near, edit) and not follows_edit(wrong, edit)


def test_a_number_is_followed_wherever_the_objects_stand():
    stars = [Item("star", x, 32, 27) for x in (17, 47)]
    centres = ((32, 17), (17, 47), (47, 47))
    wanted = Scene("3D", "blue", tuple(Item("star", x, y, 27) for x, y in centres))
    edit = Edit("action", Scene("3D", "blue", tuple(stars)), wanted, "make it three stars", anywhere=True)
    row = Scene("3D", "blue", tuple(Item("star", x, 32, 19) for x in (12, 32, 52)))
    assert follows_edit(row, edit) and not follows_edit(edit.source, edit)


def test_what_an_edit_must_keep(drawings):  # noqa: F811
    edit = Edit("remove", THREE, Scene("flat", "gray", (DOG, CAT)), "remove the car")
    source, target = render(edit.source), render(edit.target)
    mask = keep_mask(edit)
    assert np.array_equal(source[mask], target[mask]) and 0.7 < mask.mean() < 1
    assert mask[window(DOG)].all() and not mask[window(CAR)].all()
    assert preservation(target, edit) == (60.0, 1.0)
    assert preservation(source, edit)[0] == 60.0
    assert preservation(render(edit.target, 128), edit) == (60.0, 1.0)
    spoiled = target.copy()
    spoiled[mask] = 255 - spoiled[mask]
    assert preservation(spoiled.repeat(2, 0).repeat(2, 1), edit)[0] < 20
    assert preservation(spoiled, edit)[0] < 20
    spoiled = target.copy()
    spoiled[~mask] = 0
    assert preservation(spoiled, edit)[0] == 60.0


def test_a_new_background_must_keep_the_sprites(drawings):  # noqa: F811
    edit = Edit("background", THREE, Scene("flat", "pink", THREE.items), "make the background pink")
    mask = keep_mask(edit)
    assert 0.1 < mask.mean() < 0.6 and not mask[40:, 40:].any()
    assert np.abs(render(edit.source)[mask].astype(int) - render(edit.target)[mask]).max() <= 2
    nothing = Edit("hybrid", Scene("flat", "gray", (DOG,)), Scene("3D", "pink", (CAT,)), "…")
    assert preservation(render(nothing.target), nothing) is None


def test_ssim_is_one_for_equal_pictures_only():
    picture = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert ssim(picture, picture).mean() == pytest.approx(1)
    assert ssim(picture, 1 - picture).mean() < 0


def test_changes_that_do_not_fit_are_none():
    alone = Scene("flat", "gray", (Item("dog", 32, 32, 42),))
    random = Random(0)
    assert changes.remove(random, alone, True) is None and changes.extract(random, alone, True) is None
    assert changes.move(random, alone, True) is None and changes.add(random, alone, True) is None
    assert changes.count(random, THREE, True) is None
