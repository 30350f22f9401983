"""Words of a command line and values of a YAML file as values of a dataclass's fields, by their type hints."""

import difflib
import types
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from dual_cross_attention.configs.yaml_files import PlainLoader
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape, short_repr

NO_FLAG = {"format_version"}
"""Fields that are written into files and not set by users."""

NAMES = {
    bool: ("true|false", "true or false"),
    int: ("INT", "a whole number"),
    float: ("FLOAT", "a number"),
    str: ("TEXT", "text"),
    type(None): ("null", "null"),
    list[int]: ("INT", "two (height and width)"),
    list[float]: ("FLOAT", "three (of red, green and blue)"),
    tuple[int, ...]: ("INT", "whole numbers"),
    tuple[str, ...]: ("TEXT", "one or more words"),
}
"""Of types, in help and in errors; any other one is a dict."""
UNIONS = (Union, types.UnionType)


def type_hints(settings: type) -> dict[str, Any]:
    """Type hints of the fields of a dataclass that users set, in their order."""
    hints = get_type_hints(settings)
    return {field.name: hints[field.name] for field in fields(settings) if field.name not in NO_FLAG}


def type_names(hint: Any) -> tuple[str, str]:
    """A type as help shows it (`FLOAT|null`), and as errors do (`a number, or null`)."""
    if get_origin(hint) is Literal:
        return "|".join(get_args(hint)), f"one of {', '.join(get_args(hint))}"
    if get_origin(hint) is tuple and get_origin(get_args(hint)[0]) is Literal:
        short, long = type_names(get_args(hint)[0])
        return short, long.replace("one of", "one or several of", 1)
    if get_origin(hint) in UNIONS:
        short, long = zip(*map(type_names, get_args(hint)), strict=True)
        return "|".join(dict.fromkeys(short)), ", or ".join(long)
    return NAMES.get(hint, ("YAML", """names and values, such as '{"depth": 6}'"""))


def convert(hint: Any, value: Any, where: str) -> Any:
    """A value of the hinted type, out of text or what YAML has read; raises InputError, which begins with `where`."""
    try:
        return _convert(hint, value)
    except Exception:  # ValueError; and what PyYAML passes on of text that is far from any value
        came = "null" if value is None else short_repr(value)
        raise InputError(f"{where}: expected {type_names(hint)[1]}, got {came}") from None


def _convert(hint: Any, value: Any) -> Any:
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind in UNIONS:
        for part in sorted(parts, key=lambda part: part is str):  # str last: any text is one
            with suppress(Exception):
                return _convert(part, value)
    elif kind is Literal and value in parts:
        return value
    elif kind is tuple and get_origin(parts[0]) is Literal and isinstance(value, str):
        return tuple(_convert(parts[0], word.strip()) for word in value.strip("[]").split(","))
    elif isinstance(value, str) and kind is not str:
        if kind in (int, float):  # YAML 1.1 takes 1e-4 for text, and 010 for 8
            with suppress(ValueError):
                return _convert(kind, kind(value))
        read = yaml.load(value, PlainLoader)
        if not isinstance(read, str) and (read is not None or value.strip().lower() in ("null", "~")):
            return _convert(hint, read)
    elif kind is list and isinstance(value, list):
        return [_convert(parts[0], each) for each in value]
    elif kind is tuple and isinstance(value, list | tuple):
        return tuple(_convert(parts[0], each) for each in value)
    elif kind is tuple and parts[0] is not str:
        return (_convert(parts[0], value),)
    elif kind is dict and isinstance(value, dict):
        return {_convert(parts[0], name): _convert(parts[1], each) for name, each in value.items()}
    elif kind is float and type(value) in (int, float) and value == value:  # NaN is not itself
        return float(value)
    elif type(value) is kind and kind is not float:
        return value
    raise ValueError(value)


def read_settings(settings: type, values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Values out of a file, as values of the fields of `settings`.

    Args:
        source: where they are from, for errors.

    Raises:
        InputError: an unknown name, or a value of another type.
    """
    hints = type_hints(settings)
    for name in values:
        if name not in hints:
            raise InputError(f"{source}: unknown setting '{escape(name):.60}': {what_exists(str(name), hints)}")
    return {name: convert(hints[name], value, f"{source}: {name}") for name, value in values.items()}


def what_exists(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The rest of an error on an unknown name: the closest known one, and all of them, after a prefix such as --."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {prefix}{close[0]}? " if close else ""
    return f"{hint}there are {', '.join(prefix + each for each in known)}"
