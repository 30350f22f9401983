"""`dcal check-data`: reads every image of a dataset before a training does."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dual_cross_attention.commands.dataset_options import DatasetOptions
from dual_cross_attention.commands.output import open_console, write_json
from dual_cross_attention.configs.arguments import read_options
from dual_cross_attention.text import escape

SHOWN_BAD = 20  # of the images that cannot be read, on the screen


@dataclass(kw_only=True)
class CheckOptions(DatasetOptions):
    """Reads the labels of a dataset and decodes every image of all splits. Reports images that are broken, tiny, very
    large, animated, constant or of few levels, and files that are in more than one split. Exit status 0: all images can
    be read, 1: some cannot, 2: the dataset cannot be used."""

    EXAMPLE: ClassVar = "dcal check-data --dataset cub --data_root DIR"

    cameras: Literal["auto", "none", "name"] = "auto"
    """Re-identification, dataset folder: as for dcal train."""
    json: str | None = None
    """Write the report as JSON to this file; - writes it to standard output, and nothing else."""


def run(arguments: list[str]) -> int:
    """Exit status 1 if there are images that cannot be read."""
    options = read_options(CheckOptions, "check-data", arguments)
    console = open_console(options.json)
    from dual_cross_attention.tasks import data_check

    report = data_check.check_data(
        options.task,
        options.dataset,
        options.data_root,
        options.num_workers,
        console,
        options.val_fraction,
        options.cameras,
        options.image_column,
        options.label_column,
    )
    for line in data_check.as_lines(report, SHOWN_BAD):
        console.print(escape(line), soft_wrap=True)
    write_json(report.as_json(), options.json)
    return 1 if report.bad else 0
