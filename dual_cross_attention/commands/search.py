"""`dcal search`: the nearest images of an index."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from dual_cross_attention.commands.gallery_options import (
    GalleryOptions,
    check_outputs,
    embedder,
    open_gallery,
    print_columns,
    write_output,
)
from dual_cross_attention.commands.inference_options import HARDWARE, ImagesOptions, find_inputs
from dual_cross_attention.commands.output import show_log
from dual_cross_attention.configs.arguments import read_options
from dual_cross_attention.progress import make_console, track
from dual_cross_attention.text import escape

if TYPE_CHECKING:
    from dual_cross_attention.gallery.index import GalleryIndex, Match
    from dual_cross_attention.inference.prediction import Embedding

AT_ONCE = 256
"""Images that are searched together."""


class Found(NamedTuple):
    """An image, its matches, and why it cannot be read (None: it can)."""

    path: str
    matches: "list[Match]"
    error: str | None


@dataclass(kw_only=True)
class SearchOptions(ImagesOptions, GalleryOptions):
    """Finds the nearest images of an index for each image. The result is a table, or a file with one row per image that
    was found: path, rank (1: the nearest), distance, identity (empty: unknown), match (path in the index), error (why
    an image could not be read; then only path is filled). The exit status is 1 if an image could not be read."""

    EXAMPLE: ClassVar = "dcal search birds.index photo.jpg --sheet found.png"
    GROUPS: ClassVar = {"search": "top_k model", "output": "output sheet", "hardware and speed": HARDWARE}

    top_k: int = 10
    """Number of images to find for each image."""
    output: str | None = None
    """File to write: .csv, .json, .jsonl or .parquet; - writes JSON Lines to standard output. null: a table."""
    sheet: str | None = None
    """Write a contact sheet, a PNG file with each image and what was found for it. null: none."""


def run(arguments: list[str]) -> int:
    options = read_options(SearchOptions, "search", arguments)
    console = make_console(stderr=True)
    show_log(console)
    check_outputs(options.output, options.sheet)
    from dual_cross_attention.gallery.rows import MATCH_COLUMNS, match_rows
    from dual_cross_attention.gallery.sheet import MOST_ROWS, write_sheet

    images = find_inputs(options.images, console)
    index, model = open_gallery(options)
    embeddings = embedder(model, index.settings.branch, options)(iter(images.paths))
    on_sheet: list[tuple[str, list[Match]]] = []
    counts = {"images": 0, "unreadable": 0}

    def counted() -> Iterator[Found]:
        for each in _search(index, track(embeddings, "search", images.total, console), options.top_k):
            counts["images"] += 1
            counts["unreadable"] += each.error is not None
            if options.sheet and len(on_sheet) < MOST_ROWS:
                on_sheet.append((each.path, each.matches))
            yield each

    if options.output:
        write_output(options.output, (row for each in counted() for row in match_rows(*each)), MATCH_COLUMNS)
    else:
        _print_table([*counted()])
    if options.sheet:
        write_sheet(Path(options.sheet), on_sheet)
        if counts["images"] > MOST_ROWS:
            console.print(f"note: {escape(options.sheet)} shows the first {MOST_ROWS} of {counts['images']:,} images")
    return 1 if counts["unreadable"] else 0


def _search(index: "GalleryIndex", embeddings: "Iterable[Embedding]", top_k: int) -> Iterator[Found]:
    """What is found for each image of a stream, `AT_ONCE` images at a time."""
    import numpy as np

    stream = iter(embeddings)
    while some := list(islice(stream, AT_ONCE)):
        features = [each.feature for each in some if each.error is None]
        matches = iter(index.search(np.stack(features), top_k) if features else [])
        yield from (Found(each.path, [] if each.error else next(matches), each.error) for each in some)


def _print_table(found: list[Found]) -> None:
    from dual_cross_attention.gallery.rows import match_rows

    rows = []
    for path, matches, error in found:
        for row in match_rows(path, matches, error):
            if error:
                rows.append([escape(path), f"cannot be read: {error}"])
            elif row["rank"] is None:
                rows.append([escape(path), "nothing: the index is empty"])
            else:
                name = "(unknown)" if row["identity"] is None else row["identity"]
                first = escape(path) if row["rank"] == 1 else ""
                rows.append([first, f"{row['rank']}", f"{row['distance']:.4f}", escape(name), escape(row["match"])])
    print_columns(["image", "rank", "distance", "identity", "found"], rows)
