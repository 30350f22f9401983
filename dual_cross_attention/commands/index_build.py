"""`dcal index build`: makes an index."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dual_cross_attention.commands.gallery_options import (
    IndexOptions,
    add_files_and_report,
    find_sources,
)
from dual_cross_attention.commands.inference_options import HARDWARE, HardwareOptions
from dual_cross_attention.commands.output import open_console
from dual_cross_attention.configs.arguments import positional, read_options


@dataclass(kw_only=True)
class IndexBuildOptions(HardwareOptions, IndexOptions):
    """Makes an index from the features of images. An interrupted command leaves an empty index; dcal index add then
    adds the same images, and computes only the features that are missing."""

    EXAMPLE: ClassVar = "dcal index build birds.index identities/ --model runs/RUN"
    GROUPS: ClassVar = {
        "features": "model branch",
        "gallery": "identity kind engine uri",
        "hardware and speed": HARDWARE,
    }

    sources: list[str] = positional("FOLDER|CSV")
    """Folder with a subfolder per identity; a CSV file with the columns identity (empty: unknown) and path, relative to
    the file; or images of unknown identity."""
    model: str
    """Run folder, whose best model is used, a .safetensors model file, a directory of save_pretrained,
    hf:ORG/NAME[@REVISION] of the Hugging Face Hub, or an .onnx file of dcal export; required."""
    branch: Literal["sa", "glca"] | None = None
    """Use one branch alone. null: both, if the model has both."""
    identity: str | None = None
    """Identity of all the images. null: by subfolder or by the CSV file."""
    kind: Literal["flat", "hnsw"] = "flat"
    """flat: exact search; hnsw: approximate search in a graph, for millions of images."""
    engine: Literal["faiss", "milvus"] = "faiss"
    """faiss: files in the folder of the index; milvus: vectors in Milvus, at --uri."""
    uri: str | None = None
    """Milvus: a file name that ends in .db, for Milvus Lite, or the address of a server, such as
    http://localhost:19530."""


def run(arguments: list[str]) -> int:
    options = read_options(IndexBuildOptions, "index build", arguments)
    console = open_console()
    from dual_cross_attention.gallery.index import GalleryIndex
    from dual_cross_attention.gallery.models import place_in_milvus, settings_of
    from dual_cross_attention.inference.loaded_model import load_model

    uri, collection = place_in_milvus(options.engine, options.uri)
    files = find_sources(options.sources, options.identity, console)
    model = load_model(options.model, options.device, options.precision)
    settings = settings_of(model, options.branch, options.kind, options.engine, uri, collection)
    index = GalleryIndex.create(options.index, settings)
    return add_files_and_report(index, model, files, options, console)
