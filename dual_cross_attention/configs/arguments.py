"""A command line from a dataclass: argparse options by its fields, type hints and attribute docstrings."""

import ast
import inspect
import json
import textwrap
from argparse import SUPPRESS, ArgumentError, ArgumentParser
from collections.abc import Sequence
from dataclasses import MISSING, field, fields, is_dataclass
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar, get_args, get_origin

from dual_cross_attention.configs.values import convert, type_hints, type_names, what_exists
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape

Options = TypeVar("Options")

SEVERAL_WORDS = {list[int], list[float]}
"""Types of flags that take one or more words, beside tuples."""


def positional(metavar: str, **default: Any) -> Any:
    """A field that is given without a flag: of type `list[str]`, one or more words; of another type, one word.

    Args:
        metavar: its name in the help, such as RUN_OR_MODEL.
        default: `default` or `default_factory`, as of `dataclasses.field`, of a field that can be left out.
    """
    return field(**default, metadata={"positional": metavar})


def read_options(options: type[Options], command: str, arguments: Sequence[str]) -> Options:
    """The options of a command line, `dcal COMMAND ARGUMENTS`. Raises as `OptionParser.read` does."""
    return options(**OptionParser(options, command, options.__doc__).read(arguments))


class OptionParser(ArgumentParser):
    """Reads a command line as values of the fields of a dataclass; every error is an InputError of one line.

    Args:
        options: the dataclass. Its `EXAMPLE`, lines to type, begins the help; `GROUPS`, {title: "NAME NAME"}, orders it
            (fields in no group come first); the docstring under each field says what it means.
        command: name of the command.
        description: what the command does.
    """

    def __init__(self, options: type, command: str, description: str):
        # No abbreviations: a flag that is added later could change what they mean.
        settings = {"allow_abbrev": False, "exit_on_error": False, "argument_default": SUPPRESS}
        super().__init__(f"dcal {command}", description=description, **settings)
        self.example = inspect.cleandoc(options.EXAMPLE)
        titles = getattr(options, "GROUPS", {})
        groups = {title: self.add_argument_group(title) for title in titles}
        group_of = {name: groups[title] for title, names in titles.items() for name in names.split()}
        hints, meanings = type_hints(options), attribute_docstrings(options)
        self.hints: dict[str, Any] = {}  # of flags by name
        self.words: dict[str, tuple[str, Any]] = {}  # metavar and hint of single words without a flag, by name
        self.required: dict[str, str] = {}  # how each is written in the usage, by name
        self.may_be_blank: set[str] = set()  # names of text whose default is
        self.usage = self.prog
        for each in (one for one in fields(options) if one.name in hints):
            hint, metavar, meaning = hints[each.name], each.metadata.get("positional"), meanings.get(each.name, "")
            default = each.default if each.default_factory is MISSING else each.default_factory()
            if default is not MISSING:
                meaning += f" (default: {default if isinstance(default, str) else json.dumps(default)})"
            shown = {"help": meaning.replace("%", "%%"), "metavar": metavar or type_names(hint)[0]}
            if metavar:
                several = hint == list[str]
                self.add_argument(each.name, nargs="*" if several else "?", **shown)
                word = f"{metavar} ..." if several else metavar
                if not several:
                    self.words[each.name] = metavar, hint
            else:
                self.hints[each.name] = hint
                group_of.get(each.name, self).add_argument(f"--{each.name}", **_number_of_words(hint), **shown)
                word = f"--{each.name} {shown['metavar']}"
            if default is MISSING:
                self.required[each.name] = word
            if default == "":
                self.may_be_blank.add(each.name)
            if metavar or default is MISSING:
                self.usage += f" {word}"
        self.usage += " [--SETTING VALUE ...]"

    def read(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Values of the fields that are given, by name; of a flag given twice, the later.

        Raises:
            InputError: an unknown flag, a missing or surplus word, or a value of another type.
            SystemExit: --help was among the arguments and is printed.
        """
        try:
            found, rest = self.parse_known_intermixed_args(arguments)
        except ArgumentError as error:  # of a flag without its value
            hint = self.hints.get(str(error.argument_name).removeprefix("--"))
            message = f"expected {type_names(hint)[1]}, got nothing" if hint else error.message
            raise InputError(f"{error.argument_name}: {message}") from None
        for name in (word[2:].partition("=")[0] for word in rest if word.startswith("--")):
            raise InputError(f"unknown flag --{escape(name):.60}: {what_exists(name, self.hints, '--')}")
        for word in rest:
            raise InputError(f"{self.prog}: unexpected word '{escape(word):.60}': expected {self.usage}")
        values = vars(found)
        for missing in (word for name, word in self.required.items() if name not in values):
            raise InputError(f"{self.prog}: expected {missing}, got nothing")
        for name, (metavar, hint) in self.words.items():
            if name in values:
                values[name] = convert(hint, values[name], metavar)
        for name, words in values.items():
            if hint := self.hints.get(name):
                if hint == tuple[str, ...]:  # not YAML, in which *.jpg would be an alias
                    values[name] = tuple(words)
                    continue
                text = f"[{','.join(words)}]" if isinstance(words, list) and len(words) > 1 else "".join(words)
                values[name] = convert(hint, text, f"--{name}")
        self._refuse_blank(values)
        return values

    def _refuse_blank(self, values: dict[str, Any]) -> None:
        """A path of "" would be the working directory."""
        for name, value in values.items():
            texts = value if isinstance(value, tuple) else [value]
            if name not in self.may_be_blank and any(isinstance(text, str) and not text.strip() for text in texts):
                where = self.words[name][0] if name in self.words else f"--{name}"
                raise InputError(f"{where}: expected text, got an empty one: is a variable of the shell not set?")

    def format_help(self) -> str:
        return f"example:\n{textwrap.indent(self.example, '  ')}\n\n{super().format_help()}"


def _number_of_words(hint: Any) -> dict[str, Any]:
    """After a flag: none or one of a truth value, one or more of a list, else one; as arguments of `add_argument`."""
    if hint is bool:
        return {"nargs": "?", "const": "true"}
    parts = {hint, *get_args(hint)}
    return {"nargs": "+"} if SEVERAL_WORDS & parts or any(get_origin(part) is tuple for part in parts) else {}


@cache
def attribute_docstrings(options: type) -> dict[str, str]:
    """The string under each field of a dataclass and of those it inherits from; a subclass's stands over its base's."""
    found = {}
    for each in filter(is_dataclass, reversed(options.__mro__)):
        for node, below in pairwise(ast.parse(textwrap.dedent(inspect.getsource(each))).body[0].body):
            match node, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found
