"""The nano model's questions, and what its query slots and vision tokens are to say."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tbac_uniimage.training.nano.domain import edits, facts, letters, naming, prompts, questions, words
from tbac_uniimage.training.nano.domain.prompts import SPLITS
from tbac_uniimage.training.nano.domain.scene import Item, Scene, Word, is_held_out, straightened

numbers = st.integers(0, 2**32)
VALUES = {words.NUMBERS[number]: number for number in words.NUMBERS}


@given(numbers, st.sampled_from(SPLITS), st.sampled_from(list(questions.KINDS)))
def test_answers_are_right(number, split, kind):
    question = questions.draw(0, split, number, kind)
    assert question == questions.draw(0, split, number, kind) and question.kind == kind
    scene, answer = question.scene, question.answer
    assert is_held_out(scene) == (split != "train")
    asked = [item for item in scene.items if item.name in question.text.replace("?", "").split()]
    if kind == "what":
        matching = [item for item in scene.items if words.a(item.noun) == answer]
        placed = [item for item in matching if item.place in question.text]
        assert placed or len(scene.items) == len(matching) == 1
    elif kind == "how many":
        counted = [name for name in scene.names if words.plural(name) in question.text]
        assert VALUES[answer] == len(counted or scene.items)
    elif kind == "color":
        assert [item.paint for item in asked] == [answer]
    elif kind == "where":
        assert len(asked) == 1 and facts.stands(asked[0], answer)
    elif kind in ("style", "background"):
        assert getattr(scene, kind) == answer
    elif kind == "word":
        assert scene.word.letters == answer
    else:
        assert scene.background in answer and scene.style in answer
        assert all(item.name in answer and item.paint in answer for item in scene.items)
        assert scene.word is None or scene.word.letters in answer


def test_descriptions():
    dog, car = Item("dog", 47, 18, 27), Item("car", 17, 16, 27, "red")
    told = "a red car in the top left corner, a dog in the top right corner on a gray background, flat style"
    assert questions.describe(Scene("flat", "gray", (dog, car))) == told
    stars = Scene("3D", "blue", tuple(Item("star", x, 32, 27) for x in (17, 47)))
    assert questions.describe(stars) == "two stars on a blue background, 3D style"
    alone = Scene("3D", "blue", (Item("apple", 32, 32, 42),))
    assert questions.describe(alone) == "an apple on a blue background, 3D style"
    word = Scene("cartoon", "pink", (Item("bus", 32, 22, 36),), Word("TAXI", 52))
    told = 'a bus with the word "TAXI" below it on a pink background, cartoon style'
    assert questions.describe(word) == told
    assert questions.describe(Scene("", "pink", (), Word("GO", 32))) == 'the word "GO" on a pink background'


def test_unknown_kinds_of_questions_are_refused():
    with pytest.raises(ValueError, match="unknown kind of question 'why'"):
        questions.draw(0, "train", 0, "why")
    with pytest.raises(ValueError, match="no such split"):
        questions.draw(0, "test", 0)


def scene_of(slots: np.ndarray) -> Scene | None:
    """The scene that slots name, found without the function that is tested."""

    def said(slot: int, head: str):
        index = slots[slot, naming.COLUMNS[head]]
        assert index != naming.UNREAD
        return naming.HEADS[head][index - 1] if index else None

    if not said(0, "background"):
        return None
    items, written = [], ""
    for slot in range(2, 20, 3):
        name = said(slot, "what")
        if name in words.OBJECTS:
            place = (said(slot + 1, "x"), said(slot + 2, "y"), said(slot + 1, "side"))
            items.append(Item(name, *place, said(slot, "paint") or ""))
        elif name:
            written += name
    assert said(1, "number") == (len(items) or None)
    word = Word(written, said(1, "line")) if written else None
    return Scene(said(1, "style") or "", said(0, "background"), tuple(items), word)


@given(numbers, st.sampled_from(SPLITS))
def test_slots_name_the_whole_scene(number, split):
    edit = edits.draw(0, split, number)
    for scene in (prompts.draw(0, split, number).scene, edit.source, edit.target):
        assert scene_of(naming.slot_names(scene)) == scene
        plain = Scene(scene.style, scene.background, tuple(map(straightened, scene.items)), scene.word)
        assert scene_of(naming.slot_names(scene, exact=False)) == plain


@given(numbers, st.sampled_from(sorted(edits.KINDS)))
def test_what_an_edit_leaves_keeps_its_number(number, kind):
    edit = edits.draw(0, "train", number, kind)
    items = naming.numbered(edit.target, edit.source)
    assert Counter(filter(None, items)) == Counter(edit.target.items)
    assert len(items) <= naming.MOST_ITEMS
    touched = [i for i, old in enumerate(edit.source.items) if items[i] != old] if not edit.anywhere else []
    most = {"recolor": 1, "replace": 1, "remove": 1, "action": 1, "hybrid": 2, "extract": 3}
    assert len(touched) <= most.get(kind, 0)
    if kind in ("recolor", "action"):
        assert all(items[i].name == edit.source.items[i].name for i in touched)
    if kind == "remove":
        assert [items[i] for i in touched] == [None]
    if kind == "add":
        assert items[:-1] == edit.source.items


@given(numbers, st.sampled_from(["add", "recolor", "extract", "replace", "remove", "background", "style"]))
def test_an_edits_kind_is_what_happens_to_its_objects(number, kind):
    edit = edits.draw(0, "train", number, kind)
    fates = naming.fates(edit.target, edit.source)
    there = [naming.FATES[fate] for fate in fates if fate != naming.UNREAD]
    assert len(there) == len(edit.source.items) and (fates[len(there) :] == naming.UNREAD).all()
    changed = {"recolor": "painted", "replace": "replaced", "remove": "removed", "extract": "removed"}
    number_of = {"extract": len(there) - 1, "recolor": 1, "replace": 1, "remove": 1}
    assert sorted(fate for fate in there if fate != "kept") == [changed.get(kind)] * number_of.get(kind, 0)


def test_another_number_of_a_kind_moves_or_removes_them():
    cat, other, third = Item("cat", 17, 17, 27), Item("cat", 47, 17, 27), Item("cat", 32, 47, 27)
    before = Scene("flat", "gray", (cat, other, third))
    after = Scene("flat", "gray", (cat, Item("cat", 47, 47, 27)))
    told = [naming.FATES[fate] for fate in naming.fates(after, before)[:3]]
    assert told == ["kept", "moved", "removed"]
    assert naming.fates(before, after)[:3].tolist() == [0, naming.FATES.index("moved"), naming.UNREAD]


def test_slots_of_a_removed_object_say_nothing():
    dog, car, cat = Item("dog", 17, 17, 27), Item("car", 47, 17, 27), Item("cat", 17, 47, 27)
    before, after = Scene("flat", "gray", (dog, car, cat)), Scene("flat", "gray", (dog, cat))
    slots, was = naming.slot_names(after, before=before), naming.slot_names(before)
    number, removed = 1, [5, 6, 7]
    told = [slot for slot in range(len(slots)) if slot not in (number, *removed)]
    assert np.array_equal(slots[told], was[told])
    assert set(slots[removed].flatten()) == {naming.NOTHING, naming.UNREAD}
    assert not np.array_equal(slots, naming.slot_names(after))


def test_slots_of_nothing():
    slots = naming.slot_names(None)
    assert slots.shape == (20, 9) == (len(naming.SLOTS), len(naming.HEADS))
    assert set(np.unique(slots)) == {naming.NOTHING, naming.UNREAD}
    for slot, heads in enumerate(naming.SLOTS):
        assert set(np.nonzero(slots[slot] == 0)[0]) == {naming.COLUMNS[head] for head in heads}


@given(numbers)
def test_names_are_within_the_heads(number):
    scene = prompts.draw(0, "held out", number).scene
    slots, cells = naming.slot_names(scene), naming.cell_names(scene)
    for head, column in naming.COLUMNS.items():
        assert slots[:, column].max() < naming.SIZES[head]
    for column, size in enumerate(naming.cell_sizes()):
        assert 0 <= cells[:, column].max() < size


def test_vision_tokens_name_what_lies_on_them():
    dog, car = Item("dog", 17, 17, 27), Item("car", 47, 47, 27, "blue")
    cells = naming.cell_names(Scene("flat", "gray", (dog, car)))
    column = naming.CELL_HEADS.index

    def name(row: int, at: int, head: str):
        index = cells[row * naming.CELLS + at, column(head)]
        return naming.HEADS["what" if "letter" in head else head][index - 1] if index else None

    assert [name(0, at, "what") for at in range(4)] == ["dog", "dog", None, None]
    assert [name(3, at, "paint") for at in range(4)] == [None, None, "blue", "blue"]
    assert name(1, 1, "x") == 17 and name(2, 2, "side") == 27
    assert {name(*divmod(i, 4), "background") for i in range(16)} == {"gray"}
    cells = naming.cell_names(Scene("", "gray", (), Word("TAXI", 12)))
    assert [name(0, at, "letter") for at in range(4)] == ["T", "A", "X", "I"]
    assert [name(1, at, "letter") for at in range(4)] == [None] * 4
    cells = naming.cell_names(Scene("", "gray", (), Word("HELLO", 32)))
    for row in (1, 2):  # the line lies on both
        assert [name(row, at, "letter") for at in range(4)] == ["H", "E", "L", "O"]
        assert [name(row, at, "next letter") for at in range(4)] == [None, None, "L", None]
    assert [name(3, at, "letter") for at in range(4)] == [None] * 4


@given(st.text(letters.LETTERS, min_size=2, max_size=5), st.sampled_from((12, 32, 52)))
def test_cells_and_slots_spell_a_word(written, line):
    scene = Scene("", "pink", (), Word(written, line))
    cells = naming.cell_names(scene)[:, [naming.CELL_HEADS.index(h) for h in ("letter", "next letter")]]
    rows = [[naming.HEADS["what"][index - 1] for index in row if index] for row in cells.reshape(4, -1)]
    assert {"".join(row) for row in rows} == {"", written}
    slots, (x, y) = naming.slot_names(scene), (naming.COLUMNS["x"], naming.COLUMNS["y"])
    middles = [naming.HEADS["x"][slots[6 + 3 * i, x] - 1] for i in range(len(written))]
    assert middles == letters.centres(written, 32)
    assert {naming.HEADS["y"][slots[7 + 3 * i, y] - 1] for i in range(len(written))} == {line}
