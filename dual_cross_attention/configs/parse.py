"""Resolves the settings of a run: flags override files, which override the dataset's defaults."""

import logging
from argparse import ArgumentParser
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from dual_cross_attention.configs import CONFIGS
from dual_cross_attention.configs.arguments import OptionParser
from dual_cross_attention.configs.hub_names import HUB, HUB_DATASET, split_hub_name
from dual_cross_attention.configs.recipes import IN_WORDS, read_config
from dual_cross_attention.configs.training_config import TrainingConfig
from dual_cross_attention.configs.values import read_settings
from dual_cross_attention.configs.versions import FORMAT_VERSION, check_version, earlier_defaults
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape, short_repr

logger = logging.getLogger(__name__)

HINTS = {
    "val_fraction": "re-identification is tested on query and gallery images of other identities than those it trains "
    "on: give train/, query/ and gallery/"
}
"""Hints for settings of another task."""


def parse_config(arguments: Sequence[str]) -> TrainingConfig:
    """Flags, over --config files, over the dataset's defaults; of two files or flags, the later wins.

    Raises:
        InputError: an unknown task, dataset, file, setting or flag, or a value that cannot work.
        SystemExit: --help was among the arguments and is printed, with the defaults of the dataset that is chosen.
    """
    first = ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("task", "dataset"):  # they determine the other settings
        first.add_argument(f"--{name}", nargs="?")
    first.add_argument("--config", nargs="?", action="append", default=[])
    found = vars(first.parse_known_args(arguments)[0])
    files = [read_config(name) for name in found["config"] if name is not None]
    for _, content in files:
        content |= _without_hub_name(content)
    chosen: dict[str, Any] = {}
    for content in (*(content for _, content in files), found):
        chosen |= {name: content[name] for name in ("task", "dataset") if content.get(name) is not None}
    settings = choose_settings(chosen)
    parser = OptionParser(
        settings,
        "train",
        f"Trains a model, or resumes a run. The defaults are those of --dataset {settings.dataset}; each dataset has "
        f"its own: {', '.join(CONFIGS[settings.task])}. Flags override --config files, which override defaults.",
    )
    parser.add_argument(
        "--config",
        metavar="NAME|FILE",
        action="append",
        help=f"A recipe, {IN_WORDS}; or a YAML file of settings, such as a run's config.yaml. Given several times, the "
        "later wins.",
    )
    flags = [word[2:].partition("=")[0] for word in arguments if word.startswith("--")]
    _refuse_other_tasks(settings, flags, "--")  # before they are unknown flags
    in_flags = parser.read(arguments)
    in_flags.pop("config", None)
    in_flags |= _without_hub_name(in_flags)
    unversioned = [path for path, content in files if "format_version" not in content]
    values: dict[str, Any] = {}
    version = FORMAT_VERSION
    for path, content in files:
        version = min(version, check_version(content.pop("format_version", None), f"'{path}'"))
        _refuse_other_tasks(settings, content, f"'{path}': ")
        values |= read_settings(settings, content, f"'{path}'")
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
            f"'{escape(unversioned[0])}' has no format_version, so what it does not set is as in format {version}"
            f"{': ' * bool(other)}{', '.join(other)}; with format_version: {FORMAT_VERSION} it is as today"
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
        given.pop("format_version", None)
    earlier = settings(**earlier_defaults(settings, version, complete=False) | given, format_version=version)
    earlier.given, earlier.flags = given, config.flags
    return earlier


def restore_config(values: Mapping[str, Any], source: str) -> TrainingConfig:
    """Restores the typed settings of a run; settings that did not exist yet have the value of that time.

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
        raise InputError(f"unknown task {short_repr(task)}: there is {', '.join(CONFIGS)}")
    dataset = values.get("dataset", next(iter(CONFIGS[task])))
    if isinstance(dataset, str) and dataset.startswith(HUB) and HUB_DATASET in CONFIGS[task]:
        dataset = HUB_DATASET
    if not isinstance(dataset, str) or dataset not in CONFIGS[task]:
        raise InputError(f"unknown dataset {short_repr(dataset)}: there are {', '.join(CONFIGS[task])}")
    return CONFIGS[task][dataset]


def _without_hub_name(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in place of the dataset hf:ORG/NAME, see `split_hub_name`."""
    dataset, data_root = split_hub_name(values.get("dataset"), values.get("data_root"))
    return {} if dataset == values.get("dataset") else {"dataset": dataset, "data_root": data_root}


def check_fgvc_options(task: str, dataset: str, **options: Any) -> None:
    """Refuses settings of classification outside of a training's settings as they do; None: not given.

    Raises:
        InputError: one is of another task, or out of range.
    """
    given = {name: value for name, value in options.items() if value is not None}
    settings = choose_settings({"task": task, "dataset": dataset})
    _refuse_other_tasks(settings, given, "--")
    settings(**given)


def _refuse_other_tasks(settings: type[TrainingConfig], names: Iterable[str], prefix: str) -> None:
    """Raises InputError if a name is no setting of this task, but one of another."""
    known = {each.name for each in fields(settings)}
    for name in names:
        for task, classes in CONFIGS.items():
            others = {each.name for each in fields(next(iter(classes.values())))}
            if name not in known and name in others:
                hint = f": {HINTS[name]}" if name in HINTS else ""
                raise InputError(f"{prefix}{name} is a setting of --task {task}, not of {settings.task}{hint}")
