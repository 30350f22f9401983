"""`dcal index remove`: removes images from an index."""

from dataclasses import dataclass
from typing import ClassVar

from dual_cross_attention.commands.gallery_options import IndexOptions
from dual_cross_attention.commands.output import open_console
from dual_cross_attention.configs.arguments import positional, read_options
from dual_cross_attention.errors import InputError


@dataclass(kw_only=True)
class IndexRemoveOptions(IndexOptions):
    """Removes images from an index; the files stay. The features stay, too, until dcal index rebuild, so that an image
    can be added again without computing them."""

    EXAMPLE: ClassVar = "dcal index remove birds.index --identity jay-17"
    GROUPS: ClassVar = {"gallery": "identity"}

    paths: list[str] = positional("IMAGE|FOLDER", default_factory=list)
    """Files, which need not exist any more, or folders with all images below them."""
    identity: str | None = None
    """Remove all images of this identity. null: none but those of the paths."""


def run(arguments: list[str]) -> None:
    options = read_options(IndexRemoveOptions, "index remove", arguments)
    console = open_console()
    if not options.paths and options.identity is None:
        raise InputError("expected images, folders or --identity to remove, got nothing")
    from dual_cross_attention.gallery.index import GalleryIndex
    from dual_cross_attention.gallery.sources import absolute_paths

    index = GalleryIndex.open(options.index)
    removed = index.remove(absolute_paths(options.paths), options.identity)
    info = index.info()
    console.print(f"{removed:,} removed; {info['images']:,} images of {info['identities']:,} identities are left")
    if info["rebuild"]:
        console.print(f"{info['rebuild']}: dcal index rebuild drops them")
