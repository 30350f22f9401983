"""Which settings a run has: the defaults of its dataset, under files, under flags."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from dual_cross_attention.configs import CONFIGS
from dual_cross_attention.configs.flags import Flags, describe, read_flags, read_settings, read_yaml, split_flags
from dual_cross_attention.configs.training_config import TrainingConfig
from dual_cross_attention.configs.versions import FORMAT_VERSION, check_version, earlier_defaults
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape, short_repr

logger = logging.getLogger(__name__)

HINTS = {
    "val_fraction": "re-identification is tested on query and gallery images of other identities than those it trains "
    "on: give train/, query/ and gallery/"
}
"""For settings that users look for in another task."""
RECIPES = Path(__file__).parent / "recipes"


def parse_config(arguments: Sequence[str]) -> TrainingConfig:
    """Flags, over --config files, over the dataset's defaults; of two files or flags, the later wins.

    Raises:
        InputError: an unknown task, dataset, file, setting or flag, or a value that cannot work.
    """
    words, flags = split_flags(arguments)
    files = _read_files(flags)
    settings = choose_settings(_chosen(files, flags))
    values: dict[str, Any] = {}
    version = FORMAT_VERSION
    unversioned = []
    for path, content in files.items():
        if "format_version" not in content:
            unversioned.append(path)
        version = min(version, check_version(content.pop("format_version", None), f"'{path}'"))
        _refuse_other_tasks(settings, content, f"'{path}': ")
        values |= read_settings(settings, content, f"'{path}'")
    _refuse_other_tasks(settings, [name for name, _ in flags if name != "config"], "--")
    more_words, in_flags = read_flags(settings, [(name, given) for name, given in flags if name != "config"])
    for word in words + more_words:
        raise InputError(
            f"unexpected word '{escape(word):.60}': expected flags with a value each, such as --dataset cub"
        )
    values |= in_flags
    earlier = earlier_defaults(settings, version, complete=False)
    config = settings(**earlier | values, format_version=version)
    config.given, config.flags = values, frozenset(in_flags)
    if unversioned:
        today = settings(**values)
        other = [
            f"{name} {short_repr(value)} (today {short_repr(getattr(today, name))})"
            for name, value in earlier.items()
            if name not in values and value != getattr(today, name)
        ]
        logger.info(
            "'%s' has no format_version, so what it does not set is as in format %d%s; with format_version: %d it is "
            "as today",
            escape(unversioned[0]),
            version,
            f": {', '.join(other)}" if other else "",
            FORMAT_VERSION,
        )
    return config


def as_of(config: TrainingConfig, version: int) -> TrainingConfig:
    """The settings that the same command line had when files had an earlier format version.

    Of settings that were not read from a command line (`given` is None), those count as given that are not today's
    defaults.
    """
    if version >= config.format_version:
        return config
    settings = type(config)
    given = config.given
    if given is None:
        today = asdict(settings())
        given = {name: value for name, value in asdict(config).items() if value != today[name]}
    given = {name: value for name, value in given.items() if name != "format_version"}
    earlier = settings(**earlier_defaults(settings, version, complete=False) | given, format_version=version)
    earlier.given, earlier.flags = given, config.flags
    return earlier


def describe_config(arguments: Sequence[str]) -> str:
    """The text of `dcal train --help`, with the defaults of the dataset that the other arguments choose."""
    flags = [(name, given) for name, given in split_flags(arguments)[1] if name != "help"]
    chosen = _chosen(_read_files(flags), flags)
    settings = choose_settings(chosen)
    return describe(
        settings,
        "dcal train [--SETTING VALUE ...]",
        f"Train a model. Defaults are those of --dataset {chosen.get('dataset', settings.dataset)}; others have their "
        f"own: {', '.join(CONFIGS[settings.task])}.",
        config=f"YAML file of settings, such as a run's config.yaml, or a recipe: {', '.join(recipe_names())}",
    )


def restore_config(values: Mapping[str, Any], source: str) -> TrainingConfig:
    """The settings that a run wrote down, typed again; those that did not exist yet have the value of that time.

    Args:
        source: where they are from, for errors.

    Raises:
        InputError: not settings of a run.
    """
    settings = choose_settings(values)
    version = check_version(values.get("format_version"), source)
    read = read_settings(settings, {name: values[name] for name in values if name != "format_version"}, source)
    return settings(**earlier_defaults(settings, version, complete=True) | read, format_version=version)


def choose_settings(values: Mapping[str, Any]) -> type[TrainingConfig]:
    """The class of settings of a task and dataset, {"task": …, "dataset": …}; unset: the built-in toy task.

    Raises:
        InputError: there is none.
    """
    task = values.get("task", "fgvc")
    if not isinstance(task, str) or task not in CONFIGS:
        raise InputError(f"unknown task '{_as_written(task)}': there is {', '.join(CONFIGS)}")
    dataset = values.get("dataset", next(iter(CONFIGS[task])))
    if not isinstance(dataset, str) or dataset not in CONFIGS[task]:
        raise InputError(f"unknown dataset '{_as_written(dataset)}': there are {', '.join(CONFIGS[task])}")
    return CONFIGS[task][dataset]


def check_val_fraction(task: str, dataset: str, value: float | None) -> None:
    """Refuses a `val_fraction` outside of a training's settings as they do.

    Raises:
        InputError: it is of another task, or out of range.
    """
    if value is not None:
        _refuse_other_tasks(choose_settings({"task": task, "dataset": dataset}), ["val_fraction"], "--")
        choose_settings({"task": task, "dataset": dataset})(val_fraction=value)


def _refuse_other_tasks(settings: type[TrainingConfig], names: Iterable[str], prefix: str) -> None:
    """Raises InputError if a name is no setting of this task, but one of another."""
    known = {each.name for each in fields(settings)}
    for name in names:
        for task, classes in CONFIGS.items():
            others = {each.name for each in fields(next(iter(classes.values())))}
            if name not in known and name in others:
                hint = f": {HINTS[name]}" if name in HINTS else ""
                raise InputError(f"{prefix}{name} is a setting of --task {task}, not of {settings.task}{hint}")


def _as_written(value: object) -> str:
    """As it was written: text without the quotes of `shown`."""
    return f"{escape(value):.60}" if isinstance(value, str) else short_repr(value)


def recipe_names() -> list[str]:
    """Recipes that come with the package, usable as `--config NAME`."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def _read_files(flags: Flags) -> dict[Path, dict[str, Any]]:
    """What the --config files say, in their order."""
    files = {}
    for name, given in flags:
        if name == "config" and len(given) != 1:
            raise InputError(f"--config: expected a YAML file or a recipe, got {' '.join(given) or 'nothing'}")
        if name == "config":
            path = _find_recipe(given[0])
            files[path] = read_yaml(path)
    return files


def _chosen(files: Mapping[Path, Mapping[str, Any]], flags: Flags) -> dict[str, Any]:
    """What files and flags say of task and dataset, as it stands there: it decides how all else is read."""
    said = [item for content in files.values() for item in content.items()]
    said += [(name, given[0]) for name, given in flags if given]
    return {name: value for name, value in said if name in ("task", "dataset")}


def _find_recipe(name: str) -> Path:
    for path in (Path(name), RECIPES / f"{name}.yaml"):
        if path.is_file():
            return path
    raise InputError(
        f"no config file '{name}': expected a YAML file, or one of the recipes {', '.join(recipe_names())}"
    )
