"""Settings as people write them: strict YAML, overrides from the command line, errors in one sentence.

The YAML is that of version 1.2 where 1.1 surprises: ``1e-4`` is a number, ``no`` and ``2024-01-01`` are text,
``010`` is ten, and a key that is there twice is an error.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

NUMBERS = {
    "int": r"[-+]?(?:[0-9]+|[1-9][0-9]{0,2}(?:_[0-9]{3})+)",
    "float": r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?",
}
COMMAND_LINE = "The command line"
RULES = {  # by pydantic's names of errors
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text, in quotes if it looks like something else",
    "string_too_short": "text that is not empty",
    "string_pattern_mismatch": "letters, digits, dots, - and _",
    "bool_type": "true or false",
    "list_type": "a list, as in [a, b]",
    "model_type": "a section with keys of its own",
    "literal_error": "{expected}",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "a list of at least {min_length}",
}


class Loader(yaml.SafeLoader):
    """Reads plain data and nothing else."""

    yaml_implicit_resolvers: dict = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            problem = "aliases (*name) are not taken; write the value again"
            raise yaml.composer.ComposerError(None, None, problem, self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"the key {key.value} is there more than once"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


LINE_BREAKS = re.compile("[\x85\u2028\u2029]")


class Dumper(yaml.SafeDumper):
    """Writes text in quotes wherever YAML 1.1 or :class:`Loader` would take it for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    yaml_implicit_resolvers = {first: list(r) for first, r in yaml.SafeDumper.yaml_implicit_resolvers.items()}


for kind in (Loader, Dumper):
    kind.add_implicit_resolver(
        "tag:yaml.org,2002:bool", re.compile("(?:true|True|false|False)$"), list("tTfF")
    )
    kind.add_implicit_resolver(
        "tag:yaml.org,2002:null", re.compile("(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]
    )
    for name, pattern in NUMBERS.items():
        kind.add_implicit_resolver(
            f"tag:yaml.org,2002:{name}", re.compile(pattern + "$"), list("-+.0123456789")
        )
Dumper.add_representer(  # unless escaped, these come back as spaces
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style='"' if LINE_BREAKS.search(text) else None
    ),
)
Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(node.value))


def parse_yaml(text: str, where: str) -> Any:
    """Plain data of a YAML text. Raises ValueError, naming ``where``, the line and what is wrong there."""
    try:
        return yaml.load(text, Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, AttributeError, TypeError) as error:  # the latter: !!int of no number
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
        raise ValueError(f"{where} is not valid YAML{place}: {problem}.") from error


def dump_yaml(data: Any) -> str:
    """YAML that :func:`parse_yaml` reads back exactly."""
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)


def read_settings(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ValueError: no such file, not readable, not UTF-8, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ValueError(
            f"There is no recipe at {path}; those that come along are in training/recipes."
        ) from error
    except OSError as error:
        raise ValueError(f"The recipe {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"The recipe {path} is not text in UTF-8; is it another file?") from error
    content = parse_yaml(text, str(path))
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a {type(content).__name__} and not a recipe; write `key: value` lines."
        )
    return content


def override(settings: dict[str, Any], assignments: Sequence[str]) -> list[str]:
    """Put ``a.b=value`` assignments into settings, in place; values are YAML, numbers in a key count a list.

    Returns:
        the dotted keys that were set.

    Raises:
        ValueError: no ``key=value``, a value that is not YAML, or a key below something that has none.
    """
    changed = []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")):
            raise ValueError(
                f"{COMMAND_LINE} has {assignment!r}, which is not key=value, as in train.steps=100."
            )
        value = parse_yaml(text, f"The value of {key} on the command line")
        *parents, last = key.split(".")
        inner: Any = settings
        for depth, part in enumerate(parents):
            inner = descend(inner, part, ".".join(parents[:depth]), key)
        if isinstance(inner, list):
            inner[list_place(inner, last, ".".join(parents), key)] = value
        elif isinstance(inner, dict):
            inner[last] = value
        else:
            raise nothing_below(".".join(parents), key)
        changed.append(key)
    return changed


def descend(inner: Any, part: str, path: str, key: str) -> Any:
    """What is under ``part``; a section that is not there yet is made."""
    if isinstance(inner, list):
        return inner[list_place(inner, part, path, key)]
    if not isinstance(inner, dict):
        raise nothing_below(path, key)
    if inner.get(part) is None:
        inner[part] = {}
    return inner[part]


def list_place(items: list, part: str, path: str, key: str) -> int:
    if part.isdecimal() and int(part) < len(items):
        return int(part)
    raise ValueError(
        f"{COMMAND_LINE} sets {key}, but {path} has {len(items)} entries, counted from 0, and {part} is none."
    )


def nothing_below(path: str, key: str) -> ValueError:
    return ValueError(f"{COMMAND_LINE} sets {key}, but {path} is a value and has nothing below it.")


def known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted keys of a model and of the models in it; entries of a list have no number."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for inner in models_in(field.annotation):
            yield from known_keys(inner, f"{prefix}{name}.")


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def nearest_key(key: str, known: Sequence[str]) -> str:
    """The known dotted key that someone who wrote ``key`` most likely meant."""
    parent, _, name = re.sub(r"\.\d+(?=\.|$)", "", key).rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == parent}
    namesakes = [k for k in known if k.rpartition(".")[2] == name]
    close = difflib.get_close_matches(name, siblings, 1, 0.6)
    if namesakes or close:
        return namesakes[0] if namesakes else siblings[close[0]]
    names = {k.rpartition(".")[2]: k for k in reversed(known)}
    return names[difflib.get_close_matches(name, names, 1, 0.0)[0]]


def explain(error: ValidationError, model: type[BaseModel], path: str | Path, changed: Sequence[str]) -> str:
    """One sentence about the first thing that is wrong with settings; a misspelt key goes before its effects.

    Args:
        error: what pydantic says.
        model: of all settings.
        path: file that they are from.
        changed: dotted keys that the command line set.
    """
    errors = error.errors(include_url=False)
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    key = ".".join(map(str, first["loc"]))
    given = any(f"{key}.".startswith(f"{c}.") for c in changed)
    where = COMMAND_LINE if given else str(path)
    if first["type"] == "extra_forbidden":
        nearest = nearest_key(key, list(known_keys(model)))
        return f"{where} has the unknown key {key}; the nearest known key is {nearest}."
    if first["type"] == "missing":
        return f"{where} lacks the key {key}; give it a value."
    if first["type"] == "value_error":
        return f"{path}: {first['ctx']['error']}"
    rule = RULES.get(first["type"])
    wanted = f"must be {rule.format(**first.get('ctx', {}))}" if rule else f"is wrong: {first['msg']}"
    return f"{where} has {key}: {shortened(first['input'])}; it {wanted}."


def shortened(value: Any) -> str:
    text = dump_yaml(value).removesuffix("...\n").strip().replace("\n", " ")
    return text if len(text) <= 60 else text[:57] + "..."
