"""`dcal index add`: adds images to an index."""

from dataclasses import dataclass
from typing import ClassVar

from dual_cross_attention.commands.gallery_options import (
    GalleryOptions,
    add_files_and_report,
    find_sources,
    open_gallery,
)
from dual_cross_attention.commands.inference_options import HARDWARE
from dual_cross_attention.commands.output import open_console
from dual_cross_attention.configs.arguments import positional, read_options


@dataclass(kw_only=True)
class IndexAddOptions(GalleryOptions):
    """Adds images to an index: all of them, or none if the command is interrupted; repeated, it computes only the
    features that are missing. Files are known by their content: adding one twice changes nothing, a renamed file has
    its new path afterwards, and a file with new content replaces what was at its path."""

    EXAMPLE: ClassVar = "dcal index add birds.index new_identities/"
    GROUPS: ClassVar = {"gallery": "identity model", "hardware and speed": HARDWARE}

    sources: list[str] = positional("FOLDER|CSV|IMAGE")
    """Folder with a subfolder per identity; a CSV file with the columns identity (empty: unknown) and path, relative to
    the file; or images."""
    identity: str | None = None
    """Identity of all the images. null: by subfolder or by the CSV file."""


def run(arguments: list[str]) -> int:
    options = read_options(IndexAddOptions, "index add", arguments)
    console = open_console()
    files = find_sources(options.sources, options.identity, console)
    index, model = open_gallery(options)
    return add_files_and_report(index, model, files, options, console)
