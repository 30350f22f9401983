"""Options that `dcal index`, `dcal search` and `dcal identify` share, and what they do with them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dual_cross_attention.commands.inference_options import HardwareOptions, reading_arguments
from dual_cross_attention.commands.output import check_writable
from dual_cross_attention.configs.arguments import positional
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape

if TYPE_CHECKING:
    from dual_cross_attention.gallery.adding import Embed
    from dual_cross_attention.gallery.index import GalleryIndex
    from dual_cross_attention.gallery.sources import NamedImage
    from dual_cross_attention.inference.loaded_model import LoadedModel

WIDEST = 100
"""Characters of a column of a table, at most; what is longer sticks out."""


@dataclass(kw_only=True)
class IndexOptions:
    """Options of commands that open an index."""

    index: str = positional("INDEX")
    """Folder of the index."""


@dataclass(kw_only=True)
class GalleryOptions(HardwareOptions, IndexOptions):
    """Options of commands that compute features for an index that exists."""

    model: str | None = None
    """Where the model of the index is now; another model is refused. null: at the path that the index stores."""


def open_gallery(options: GalleryOptions) -> tuple["GalleryIndex", "LoadedModel"]:
    """The index and its model."""
    from dual_cross_attention.devices import keep_freed_memory
    from dual_cross_attention.gallery.index import GalleryIndex
    from dual_cross_attention.gallery.models import load_model_of

    keep_freed_memory()
    index = GalleryIndex.open(options.index)
    return index, load_model_of(index.settings, options.model, options.device, options.precision)


def embedder(model: "LoadedModel", branch: str | None, options: HardwareOptions) -> "Embed":
    """Embeds paths with the options for hardware and speed."""
    arguments = {"branch": branch, **reading_arguments(options, model)}
    return lambda paths: model.embeddings(paths, **arguments)


def add_files_and_report(
    index: "GalleryIndex",
    model: "LoadedModel",
    files: list["NamedImage"],
    options: HardwareOptions,
    console: Console,
) -> int:
    """Adds files, and says what was done; the exit status, 1 if images could not be read."""
    from dual_cross_attention.gallery.adding import add_files
    from dual_cross_attention.gallery.models import computed_by

    embed = embedder(model, index.settings.branch, options)
    done = add_files(index, embed, files, console, computed_by(model, index.settings))
    for path, reason in done.unreadable:
        console.print(f"warning: {escape(path)} cannot be read: {reason}", style="yellow", soft_wrap=True)
    for path, identity, other, kept in done.images.conflicts:
        console.print(
            f"warning: {escape(path)} ({escape(identity)}) has the same content as {escape(other)} ({escape(kept)}), "
            "which stays",
            style="yellow",
            soft_wrap=True,
        )
    counts = ("added", "unchanged", "renamed", "reassigned", "replaced", "copies")
    said = [f"{number:,} {name}" for name in counts if (number := getattr(done.images, name)) or name == "added"]
    said += [f"{len(done.unreadable):,} unreadable"] if done.unreadable else []
    info = index.info()
    console.print(
        f"{', '.join(said)}; '{escape(index.folder)}' has {info['images']:,} images of "
        f"{info['identities']:,} identities",
        soft_wrap=True,
    )
    return 1 if done.unreadable else 0


def find_sources(sources: list[str], identity: str | None, console: Console) -> list["NamedImage"]:
    """The images that the command line names to add; prints what is left out or unknown."""
    from dual_cross_attention.gallery.sources import find_named_images

    if not sources:
        raise InputError("expected a folder with a subfolder per identity, a CSV file, or images")
    notes: list[str] = []
    files = [image for source in sources for image in find_named_images(source, notes, identity)]
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True)
    return files


def check_outputs(output: str | None, sheet: str | None = None) -> None:
    """Before any work is done: raises InputError if --output or --sheet cannot be written."""
    from dual_cross_attention.inference.row_files import SUFFIXES, check_suffix

    if output not in (None, "-"):
        check_writable("output", output)
        check_suffix(Path(output), SUFFIXES)
    check_writable("sheet", sheet)
    if sheet is not None and Path(sheet).suffix.lower() != ".png":
        raise InputError(f"--sheet: expected a file that ends in .png, got '{escape(sheet)}'")


def write_output(output: str, rows: Iterable[dict[str, Any]], columns: Mapping[str, str]) -> None:
    """Writes rows atomically to the file of --output, or as JSON Lines to standard output if it is "-"."""
    from dual_cross_attention.inference.row_files import as_line, as_utf8, write_rows

    if output == "-":
        for row in rows:
            print(as_line(row), flush=True)
        return
    path = Path(output)
    if path.suffix.lower() == ".parquet":  # identities and matches are names of files, too
        rows = ({name: as_utf8(each) if isinstance(each, str) else each for name, each in row.items()} for row in rows)
    with write_rows(path, columns) as write:
        for row in rows:
            write(row)


def print_columns(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table with aligned columns. The last cell of a row may be as long as it is."""
    lines = [titles, *rows]
    widths = [
        min(WIDEST, max((len(line[column]) for line in lines if column < len(line) - 1), default=0))
        for column in range(len(titles))
    ]
    for line in lines:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=False)).rstrip())
