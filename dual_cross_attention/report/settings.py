"""Differences between the settings of a run and its defaults, its recipe, or another run."""

from dataclasses import fields
from typing import Any, NamedTuple

from dual_cross_attention.configs import TrainingConfig
from dual_cross_attention.configs.resumed import FREE_TO_CHANGE
from dual_cross_attention.text import escape

OF_THE_MACHINE = frozenset(FREE_TO_CHANGE - {"distractor_root", "views"} | {"format_version", "eval_every"})
"""Settings that do not change what a model learns, but for rounding."""
RESOLVED = frozenset({"mean", "std", "precision"})
"""Settings that a run writes down as they were resolved, in place of "auto"."""


class Difference(NamedTuple):
    """A setting whose values differ, as text.

    Args:
        name: of the setting.
        values: of this run and the reference; of several runs, one for each.
    """

    name: str
    values: tuple[str, ...]


def from_defaults(config: TrainingConfig) -> list[Difference]:
    """Settings of a run that are not today's defaults of its dataset: (run, default)."""
    return different([config, type(config)()], OF_THE_MACHINE | RESOLVED | {"seed"})


def different(configs: list[TrainingConfig], without: frozenset[str] = OF_THE_MACHINE) -> list[Difference]:
    """Settings that are not the same in all configs; a setting that one does not have is "–" there."""
    names = dict.fromkeys(each.name for config in configs for each in fields(config))
    found = []
    for name in names:
        values = tuple(shown(getattr(config, name, "–")) for config in configs)
        if name not in without and len(set(values)) > 1:
            found.append(Difference(name, values))
    return found


def all_settings(config: TrainingConfig) -> list[tuple[str, str]]:
    """Name and value of each setting."""
    return [(each.name, shown(getattr(config, each.name))) for each in fields(config)]


def shown(value: Any) -> str:
    """A value of a setting as text."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return " ".join(shown(each) for each in value)
    return f"{value:g}" if isinstance(value, float) else escape(value)
