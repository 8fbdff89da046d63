"""What the project asks of the nano model, in templates, demo, recipes and documents, is in its words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from nano_models import OTHER, PROMPT
from tbac_uniimage.training.nano.domain import edits, letters, prompts, questions
from tbac_uniimage.training.recipe.recipe import load_recipe
from template_files import NAMES, api_form

ROOT = Path(__file__).resolve().parents[1]
INPUTS = ("prompt", "negative_prompt", "instruction", "question")
WORD = re.compile(r'"[A-Z]+"|[A-Za-z0-9]+')


@cache
def known() -> frozenset[str]:
    """Every word of some thousand training sentences, and the words that can be drawn."""
    texts = [
        text
        for number in range(4000)
        for domain in (prompts, edits, questions)
        for text in [domain.draw(0, "train", number).text]
    ]
    return frozenset(word for text in texts for word in WORD.findall(text)) | {
        f'"{w}"' for w in letters.WORDS
    }


def unknown(text: str) -> set[str]:
    return set(WORD.findall(text)) - known()


def told() -> Iterator[tuple[str, str]]:
    """Where a text stands, and the text."""
    import demo
    import template_notes

    for name in NAMES:
        for node in api_form(name).values():
            texts = [v for k, v in node["inputs"].items() if k in INPUTS and isinstance(v, str)]
            if node["class_type"] == "RegexReplace":
                texts = [re.sub(node["inputs"]["regex_pattern"], node["inputs"]["replace"], "a cat")]
            yield from ((f"template {name}", text) for text in texts)
    for name, note in template_notes.NOTES.items():
        for sentence in re.findall(r"For nano: (.*?)\.(?:\n| A )", note):
            yield from ((f"note of {name}", text) for text in re.findall(r"\*([^*]+)\*", sentence))
    yield from (("demo", text) for text in (*demo.PROMPTS, *demo.INSTRUCTIONS))
    for path in (ROOT / "training" / "recipes" / "nano").glob("[1234go]*.yaml"):
        validation = load_recipe(path).validation
        yield from ((path.name, text) for text in validation.prompts)
        yield from ((path.name, edit.instruction) for edit in validation.edits)
    commands = (ROOT / "README.md").read_text().split("## In the shell")[1].split("```")[1]
    for line in commands.splitlines():
        yield from (("README", text) for text in re.findall(r'"([^"]+)"', line))
    yield from (("tests", text) for text in (PROMPT, OTHER))


def test_every_text_is_in_the_models_words():
    found = list(told())
    assert len({where for where, _ in found}) >= 18
    assert not {(where, text): words for where, text in found if (words := unknown(text))}


@pytest.mark.parametrize("text", ["a fish on blue", "a red square", 'the word "hello"', "three pizzas"])
def test_other_words_are_noticed(text):
    assert len(unknown(text)) == 1
