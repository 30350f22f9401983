"""Command-line flags and YAML files as values of a dataclass's fields; jsonargparse knows the types.

Every value is read by itself, so that an error can name it, what was expected, and what came.
"""

import difflib
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape, short_repr

IN_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}

LENGTHS = {list[int]: 2, list[float]: 3}
"""Words that a flag of such a list takes at most: height and width, or three channels."""
MAX_YAML_BYTES = 100_000
"""Of a file of settings; a run's config.yaml has 2,000."""

NO_FLAG = {"format_version"}
"""Fields of settings that are written into files and not set by users."""

Flags = list[tuple[str, list[str]]]


def split_flags(arguments: Sequence[str]) -> tuple[list[str], Flags]:
    """The words of a command line → those before the first flag, and each flag with the words after it.

    `["RUN", "--lr", "1e-4", "--seed=3"]` → `["RUN"]`, `[("lr", ["1e-4"]), ("seed", ["3"])]`
    """
    words: list[str] = []
    flags: Flags = []
    for word in arguments:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            flags.append((name, [value] if equals else []))
        else:
            (flags[-1][1] if flags else words).append(word)
    return words, flags


def read_flags(settings: type, flags: Flags) -> tuple[list[str], dict[str, Any]]:
    """Flags as values of the fields of `settings`; given twice, the later wins.

    A flag takes one word; one of a size also takes a second number, one of three channels two more; one of a truth
    value can stand alone.

    Returns:
        The words that belong to no flag, and the values.

    Raises:
        InputError: an unknown flag, one without a value, or a value of another type.
    """
    hints = _hints(settings)
    words: list[str] = []
    values: dict[str, Any] = {}
    for name, following in flags:
        if name not in hints:
            raise InputError(f"unknown flag --{escape(name):.60}: {_what_exists(name, hints, '--')}")
        if not following and hints[name] is not bool:
            raise InputError(f"--{name}: expected {_expected(hints[name])}, got nothing")
        value, taken = following[0] if following else "true", 1
        longest = max((LENGTHS[each] for each in get_args(hints[name]) if each in LENGTHS), default=1)
        if longest > 1 and len(following) > 1:
            taken = min(longest, len(following))
            value = f"[{','.join(following[:taken])}]"
        values[name] = _convert(settings, name, value, f"--{name}")
        words += following[taken:]
    return words, values


def read_settings(settings: type, values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Values out of a file, as values of the fields of `settings`.

    Args:
        source: where they are from, for errors.

    Raises:
        InputError: an unknown name, or a value of another type.
    """
    hints = _hints(settings)
    for name in values:
        if name not in hints:
            raise InputError(f"{source}: unknown setting '{escape(name):.60}': {_what_exists(str(name), hints)}")
    return {name: _convert(settings, name, value, f"{source}: {name}") for name, value in values.items()}


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of `setting: value` lines. Tags that would make Python objects are refused, not run.

    Raises:
        InputError: it cannot be read, is larger than `MAX_YAML_BYTES`, has aliases (`*name`), or holds something else.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_YAML_BYTES + 1)
        if len(raw) > MAX_YAML_BYTES:
            raise InputError(f"cannot read '{path}' as YAML: expected at most {MAX_YAML_BYTES:,} bytes of settings")
        content = yaml.load(raw.decode("utf-8"), _PlainLoader)
    except InputError:
        raise
    except RecursionError as error:
        raise InputError(f"cannot read '{path}' as YAML: it is nested too deeply for settings") from error
    except Exception as error:  # a date in month 13, a number of 5,000 digits: PyYAML lets out what Python raises
        raise InputError(f"cannot read '{path}' as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"'{path}': expected lines of 'setting: value', got {short_repr(content)}")
    return content


class _PlainLoader(yaml.SafeLoader):
    """Without aliases: a few lines of them can stand for billions of values."""

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.YAMLError(f"expected values, got the alias *{event.anchor} in line {event.start_mark.line + 1}")
        return super().compose_node(parent, index)


def describe(settings: type, usage: str, description: str, **more: str) -> str:
    """The text of --help: every field with its meaning, type and default; `more` describes further flags."""
    parser = ArgumentParser(prog="dcal", usage=usage, description=description, default_env=False)
    for name, meaning in more.items():
        parser.add_argument(f"--{name}", help=meaning)
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser.add_class_arguments(settings, skip=NO_FLAG)
    # jsonargparse's own syntax for lists, "--img_size+ 1 --img_size+ 2", is not read here.
    return re.sub(r", --\w+\+ \w+", "", parser.format_help())


def _convert(settings: type, name: str, value: Any, where: str) -> Any:
    hint = _hints(settings)[name]
    try:
        if value is None and type(None) not in get_args(hint):
            raise InputError("nothing")
        return _parser(settings).parse_object({name: value}, defaults=False).as_dict()[name]
    except Exception:  # ArgumentError, and what the types raise on values far from them: too deep, too many digits
        came = "null" if value is None else short_repr(value)
        raise InputError(f"{where}: expected {_expected(hint)}, got {came}") from None


@cache
def _parser(settings: type) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, default_env=False)
    parser.add_class_arguments(settings)
    return parser


@cache
def _hints(settings: type) -> dict[str, Any]:
    hints = get_type_hints(settings)
    return {field.name: hints[field.name] for field in fields(settings) if field.name not in NO_FLAG}


def _expected(hint: Any) -> str:
    """A type, in words."""
    if hint in IN_WORDS:
        return IN_WORDS[hint]
    if get_origin(hint) is Literal:
        return f"one of {', '.join(get_args(hint))}"
    if get_origin(hint) in (Union, types.UnionType):
        return ", or ".join(_expected(part) for part in get_args(hint))
    if hint in LENGTHS:
        return {list[int]: "two (height and width)", list[float]: "three (of red, green and blue)"}[hint]
    return """names and values, such as '{"depth": 6}'"""


def _what_exists(name: str, known: Mapping[str, Any], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {prefix}{close[0]}? " if close else ""
    return f"{hint}there are {', '.join(prefix + each for each in known)}"
