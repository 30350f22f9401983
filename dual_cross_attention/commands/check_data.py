"""`dcal check-data`: reads every image of a dataset before a training does."""

from dataclasses import dataclass
from typing import Literal

from dual_cross_attention.commands.output import asks_for_help, check_writable, show_log, write_json
from dual_cross_attention.configs.flags import describe, read_flags, split_flags
from dual_cross_attention.errors import InputError
from dual_cross_attention.progress import make_console
from dual_cross_attention.text import escape

SUMMARY = "look at every image of a dataset before a training does"
SHOWN_BAD = 20  # of the images that cannot be read, on the screen


@dataclass(kw_only=True)
class CheckOptions:
    """Options"""

    task: Literal["fgvc", "reid"] = "fgvc"
    """fgvc is fine-grained visual categorization, reid is object re-identification."""
    dataset: str | None = None
    """Name of the dataset, as of dcal train; unset: the built-in toy set."""
    data_root: str | None = None
    """The dataset's own folder, or the folder that holds it; unset: looked for in $DCAL_DATA and ./data."""
    val_fraction: float | None = None
    """Of a folder of class folders without a split (dataset folder): the share to validate on, as of dcal train."""
    num_workers: int | None = None
    """Processes that read images; unset: one per core."""
    json: str | None = None
    """Write the whole report as JSON to this file; - is standard output, with nothing else on it."""


def describe_options() -> str:
    """The text of --help."""
    return describe(
        CheckOptions,
        "dcal check-data [--OPTION VALUE ...]",
        "Reads the labels of a dataset and decodes every image of all splits; reports what is broken, tiny, "
        "very large, animated, constant or of few levels, and files that are in more than one split. Exit "
        "status 0: all can be read, 1: some cannot, 2: the dataset cannot be used.",
    )


def run(arguments: list[str]) -> int:
    if asks_for_help(arguments):
        print(describe_options())
        return 0
    words, flags = split_flags(arguments)
    more_words, values = read_flags(CheckOptions, flags)
    if words + more_words:
        raise InputError(f"dcal check-data: unexpected word '{(words + more_words)[0]}': expected flags with a value")
    options = CheckOptions(**values)
    check_writable("json", None if options.json == "-" else options.json)
    console = make_console(stderr=options.json == "-")
    show_log(console)
    from dual_cross_attention.tasks import data_check

    report = data_check.check_data(
        options.task, options.dataset, options.data_root, options.num_workers, console, options.val_fraction
    )
    for line in data_check.as_lines(report, SHOWN_BAD):
        console.print(escape(line), soft_wrap=True)
    write_json(report.as_json(), options.json)
    return 1 if report.bad else 0
