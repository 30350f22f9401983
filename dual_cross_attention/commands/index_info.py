"""`dcal index info`: what an index holds."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from dual_cross_attention.commands.gallery_options import IndexOptions
from dual_cross_attention.commands.output import open_console, write_json
from dual_cross_attention.configs.arguments import read_options
from dual_cross_attention.text import escape


@dataclass(kw_only=True)
class IndexInfoOptions(IndexOptions):
    """Prints what an index holds: images, identities, the model of its features, and whether a rebuild helps."""

    EXAMPLE: ClassVar = "dcal index info birds.index"
    GROUPS: ClassVar = {"output": "identities json"}

    identities: bool = False
    """List the identities with their numbers of images, too."""
    json: str | None = None
    """Write the result as JSON to this file; - writes it to standard output, and nothing else."""


def run(arguments: list[str]) -> None:
    options = read_options(IndexInfoOptions, "index info", arguments)
    console = open_console(options.json)
    from dual_cross_attention.gallery.index import GalleryIndex

    index = GalleryIndex.open(options.index)
    info = index.info()
    result = asdict(info["settings"]) | {name: value for name, value in info.items() if name != "settings"}
    if options.identities:
        result["images_by_identity"] = dict(index.identities())
    for name, value in _lines(result).items():
        console.print(f"{name:12}{value}", soft_wrap=True)
    write_json(result, options.json)


def _lines(result: dict[str, Any]) -> dict[str, str]:
    normalized = ", features of length 1" if result["normalized"] else ""
    stored = "FAISS" if result["engine"] == "faiss" else f"Milvus, {escape(result['uri'])}"
    kind = "exact search" if result["kind"] == "flat" else "approximate search in an HNSW graph"
    waiting = f", {result['waiting']:,} images are not in it yet and searched exactly" if result["waiting"] else ""
    size = "" if result["bytes"] is None else f"{result['bytes'] / 1e6:,.1f} MB"
    lines = {
        "images": f"{result['images']:,}, {result['unknown']:,} of them of unknown identity",
        "identities": f"{result['identities']:,}",
        "model": f"{escape(result['model'])}, fingerprint {result['fingerprint']}",
        "features": f"{result['branch'] or 'all branches'}, {result['dimension']} dimensions{normalized}",
        "distance": result["distance"],
        "search": f"{kind}{waiting}",
        "stored in": f"{stored}{', ' if size else ''}{size}",
        "unused": f"{result['unused']:,} vectors of removed images",
        "rebuild": f"advised: {result['rebuild']}" if result["rebuild"] else "not needed",
    }
    if result["computed_by"]:
        lines["added by"] = f"{', '.join(map(escape, result['computed_by']))}, too: its features differ by rounding"
    if "images_by_identity" in result:
        lines |= {f"  {escape(name)}": f"{number:,}" for name, number in result["images_by_identity"].items()}
    return lines
