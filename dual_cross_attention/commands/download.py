"""`dcal download`: a dataset from its publisher."""

from dataclasses import dataclass
from typing import ClassVar

from dual_cross_attention.commands.output import open_console
from dual_cross_attention.configs.arguments import positional, read_options


@dataclass(kw_only=True)
class DownloadOptions:
    """Downloads a dataset from its publisher, verifies its checksum and unpacks it. A download that was interrupted
    continues with the same command. Without DATASET: lists all datasets, and where to get those that cannot be
    downloaded from here."""

    EXAMPLE: ClassVar = "dcal download cub --data_root DIR"

    dataset: str | None = positional("DATASET", default=None)
    """cub or aircraft."""
    data_root: str | None = None
    """Folder that will hold the dataset's folder. null: $DCAL_DATA, else ./data."""


def run(arguments: list[str]) -> None:
    """Prints where the dataset is, or the list of datasets."""
    options = read_options(DownloadOptions, "download", arguments)
    console = open_console()
    from dual_cross_attention.tasks.data_download import dataset_sources, download_dataset

    lines = (
        dataset_sources() if options.dataset is None else download_dataset(options.dataset, options.data_root, console)
    )
    for line in lines:
        console.print(line, soft_wrap=True)
