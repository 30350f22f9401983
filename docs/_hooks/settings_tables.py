"""MkDocs hook: fills `configuration.md` with tables of all settings.

The tables come from the settings' dataclasses and the docstrings of their attributes, so they cannot go stale.
"""

import re
from dataclasses import MISSING, Field, fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from dual_cross_attention.configs import CONFIGS
from dual_cross_attention.configs.arguments import attribute_docstrings
from dual_cross_attention.configs.parse import parse_config
from dual_cross_attention.configs.recipes import recipe_names

PAGE = "configuration.md"
HIDDEN = {"format_version", "task"}
"""Fields that have no row: users do not set the first, and the columns show the second."""
NO_DEFAULT = "–"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by MkDocs with the source of each page."""
    if page.file.src_uri != PAGE:
        return markdown
    for marker, text in (("settings", settings_tables()), ("datasets", dataset_table()), ("recipes", recipe_table())):
        found = f"<!-- generated: {marker} -->"
        if found not in markdown:
            raise ValueError(f"{PAGE}: expected the line {found}")
        markdown = markdown.replace(found, text)
    return markdown


def settings_tables() -> str:
    """A table for each group of settings, with the defaults of both tasks."""
    tasks = {task: _base(task) for task in CONFIGS}
    by_name = {task: {field.name: field for field in fields(settings)} for task, settings in tasks.items()}
    groups: dict[str, list[str]] = {title: [] for settings in tasks.values() for title in settings.GROUPS}
    for settings in tasks.values():
        group_of = groups_of(settings)
        for field in fields(settings):
            names = groups.setdefault(group_of.get(field.name, ""), [])
            if field.name not in HIDDEN and field.name not in names:
                names.append(field.name)
    lines: list[str] = []
    for group, names in groups.items():
        if not names:
            continue
        lines += ["", f"### {group[0].upper()}{group[1:]}", ""]
        lines += _row("Setting", "Type", *(f"Default, `{task}`" for task in tasks), "Meaning")
        lines += _row(*["---"] * (3 + len(tasks)))
        for name in names:
            owners = [task for task in tasks if name in by_name[task]]
            defaults = [_shown_default(by_name[task].get(name)) for task in tasks]
            meanings = {task: meaning(tasks[task], name) for task in owners}
            if len(set(meanings.values())) > 1:
                text = "<br>".join(f"`{task}`: {each}" for task, each in meanings.items())
            else:
                text = meanings[owners[0]]
            lines += _row(f"`--{name}`", shown_type(get_type_hints(tasks[owners[0]])[name]), *defaults, text)
    return "\n".join(lines)


def dataset_table() -> str:
    """The defaults of the datasets that differ from their task's."""
    lines = [*_row("Task", "Dataset", "Defaults that differ"), *_row("---", "---", "---")]
    for task, datasets in CONFIGS.items():
        base = {field.name: field for field in fields(_base(task))}
        for dataset, settings in datasets.items():
            other = [
                f"`{field.name}` {_shown_default(field)}"
                for field in fields(settings)
                if field.name != "dataset" and _default(field) != _default(base[field.name])
            ]
            if other:
                lines += _row(f"`{task}`", f"`{dataset}`", ", ".join(other))
    return "\n".join(lines)


def recipe_table() -> str:
    """The files that `--config NAME` finds in the package."""
    lines = [*_row("Recipe", "Task", "Dataset", "Backbone"), *_row("---", "---", "---", "---")]
    for name in recipe_names():
        config = parse_config(["--config", name])
        lines += _row(*(f"`{each}`" for each in (name, config.task, config.dataset, config.backbone)))
    return "\n".join(lines)


def _base(task: str) -> type:
    """The settings of a task whose defaults are the paper's: the class that its datasets' settings derive from."""
    return next(each for each in CONFIGS[task].values() if all(issubclass(x, each) for x in CONFIGS[task].values()))


def groups_of(settings: type) -> dict[str, str]:
    """Fields by name → the heading of their group, in the order of `--help`."""
    return {name: title for title, names in settings.GROUPS.items() for name in names.split()}


def meaning(settings: type, name: str) -> str:
    """The docstring of an attribute, from the most derived class that has one, as Markdown."""
    if name not in (found := attribute_docstrings(settings)):
        raise ValueError(f"{settings.__name__}.{name} has no docstring")
    return _escaped(found[name])


def _escaped(text: str) -> str:
    """Plain text as Markdown; what stands between backticks stays code."""
    parts = text.split("`")
    return "`".join(part if i % 2 else re.sub(r"([*_<>\[\]])", r"\\\1", part) for i, part in enumerate(parts))


def _default(field: Field[Any]) -> Any:
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else MISSING


def _shown_default(field: Field[Any] | None) -> str:
    if field is None or _default(field) is MISSING:
        return NO_DEFAULT
    default = _default(field)
    if default is None:
        return "null"
    if isinstance(default, list | tuple):
        return f"`{' '.join(map(str, default))}`"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def shown_type(hint: Any) -> str:
    """A type in words: `int | None` → "int"; None is shown as the default "null"."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(shown_type(part) for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(hint))
    if get_origin(hint) is tuple:
        return f"one or several of {shown_type(get_args(hint)[0])}"
    if get_origin(hint) is list:
        return f"list of {get_args(hint)[0].__name__}"
    if get_origin(hint) is dict:
        return "mapping"
    return hint.__name__


def _row(*cells: str) -> list[str]:
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"]
