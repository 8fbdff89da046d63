"""The documents point to things that exist, and name every module and node."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    ROOT / name
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "docs/architecture.md",
        "docs/ladder_study.md",
        "docs/training.md",
        "docs/data.md",
        "docs/evaluation.md",
        "docs/python.md",
        "docs/released_size.md",
    )
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]*)#?[^)]*\)", document.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (document.parent / target).exists(), target


def test_module_map_is_complete():
    modules = (ROOT / "docs" / "architecture.md").read_text().split("## Modules")[1]
    named = set(re.findall(r"`([a-z_/]+)(?:\.py)?`", modules))
    for folder in ("core", "core/checkpoints", "nodes"):
        missing = {path.stem for path in (ROOT / folder).glob("[a-z]*.py")} - {
            name.split("/")[-1] for name in named
        }
        assert not missing, folder


def test_every_node_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    names = re.findall(
        r'display_name="([^"]+)",\s+category', "".join(p.read_text() for p in ROOT.glob("nodes/*.py"))
    )
    assert len(names) == 16
    for name in names:
        assert f"| {name} |" in readme


def test_commands_of_the_readme_are_understood():
    from tbac_uniimage.shell.main import make_parser

    commands = re.findall(r"^tbac-uniimage (.*?)(?: +#.*)?$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(commands) == 8
    for command in commands:
        make_parser().parse_args([quoted or word for quoted, word in re.findall(r'"([^"]*)"|(\S+)', command)])


def test_commands_of_the_evaluation_are_understood():
    from tbac_uniimage.shell.main import make_parser

    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    commands = re.findall(r"^tbac-uniimage (evaluate .*?)(?: +#.*| > \S+)?$", text, re.MULTILINE)
    assert {command.split()[1] for command in commands} == {"fetch", "draw", "judge", "score", "table"}
    for command in commands:
        make_parser().parse_args(command.replace("…", "DIR").split())


def test_the_ten_minutes_are_one_chain():
    """Every command is understood, and takes what the one before has made."""
    from tbac_uniimage.shell.main import make_parser
    from tbac_uniimage.training.recipe.recipe import load_recipe

    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    block = text.split("## Ten minutes")[1].split("```")[1]
    commands = re.findall(r"^tbac-uniimage (.*)$", block, re.MULTILINE)
    words = [[quoted or word for quoted, word in re.findall(r'"([^"]*)"|(\S+)', line)] for line in commands]
    index, show, dry, train, plot, export, generate = (make_parser().parse_args(line) for line in words)
    recipe = load_recipe(ROOT / train.recipe, train.overrides)
    [data] = recipe.data.sets
    assert str(data.index) == str(show.index) == f"{index.out}/{index.datasets[0]}"
    assert (dry.recipe, dry.dry_run) == (train.recipe, True)
    assert str(plot.run_folder) == str(export.checkpoint) == recipe.run and export.ema
    assert generate.model == f"{recipe.run}/{export.to}"
    assert generate.prompts == recipe.validation.prompts
