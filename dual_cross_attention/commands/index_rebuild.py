"""`dcal index rebuild`: drops what is not used from an index."""

from dataclasses import dataclass
from typing import ClassVar

from dual_cross_attention.commands.gallery_options import IndexOptions
from dual_cross_attention.commands.output import open_console
from dual_cross_attention.configs.arguments import read_options


@dataclass(kw_only=True)
class IndexRebuildOptions(IndexOptions):
    """Drops the vectors of removed images and, with --kind hnsw, makes the graph anew. No image is read."""

    EXAMPLE: ClassVar = "dcal index rebuild birds.index"


def run(arguments: list[str]) -> None:
    options = read_options(IndexRebuildOptions, "index rebuild", arguments)
    console = open_console()
    from dual_cross_attention.gallery.index import GalleryIndex

    index = GalleryIndex.open(options.index)
    dropped = index.rebuild()
    console.print(f"{dropped:,} unused vectors dropped; the index has {index.info()['images']:,} images")
