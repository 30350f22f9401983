"""The fine-grained datasets by name."""

from pathlib import Path

from dual_cross_attention.data.fgvc import cub, folder, shards, torchvision_sets
from dual_cross_attention.data.fgvc.fine_grained import FineGrainedData
from dual_cross_attention.data.registry import DatasetEntry, load_by_name
from dual_cross_attention.data.synthetic.birds import draw_toy

__all__ = ["FGVC_DATASETS", "FineGrainedData", "draw_toy", "load_fgvc"]


FGVC_DATASETS: dict[str, DatasetEntry[FineGrainedData]] = {
    "toy": DatasetEntry(
        "synthetic birds, whose species differ only in small parts",
        draw_toy,
        no_download="it is synthetic, not downloaded",
    ),
    "cub": DatasetEntry(
        "CUB-200-2011: 200 species of birds",
        cub.load_cub,
        cub.LAYOUT,
        cub.SOURCE,
        no_download="its source asks for a visit to the page",
        find=cub.find_cub,
    ),
    "cars": DatasetEntry(
        "Stanford Cars: 196 models of cars",
        torchvision_sets.load_cars,
        torchvision_sets.CARS_LAYOUT,
        torchvision_sets.CARS_SOURCE,
        no_download="its official source is gone",
        find=torchvision_sets.find_cars,
    ),
    "aircraft": DatasetEntry(
        "FGVC-Aircraft: 100 variants of aircraft",
        torchvision_sets.load_aircraft,
        torchvision_sets.AIRCRAFT_LAYOUT,
        torchvision_sets.AIRCRAFT_SOURCE,
        find=torchvision_sets.find_aircraft,
    ),
    "folder": DatasetEntry(
        "your own images, one folder per class",
        folder.load_folder,
        folder.LAYOUT,
        folder.SOURCE,
        no_download="these are your own images",
    ),
    "shards": DatasetEntry(
        "images in tar archives, from dcal shard or any other writer of WebDataset's convention",
        shards.load_shards,
        shards.LAYOUT,
        shards.SOURCE,
        no_download="archives are written, by dcal shard for instance",
        by_pattern=True,
    ),
}


def load_fgvc(name: str, data_root: str | Path | None, download: bool = False) -> FineGrainedData:
    """A fine-grained dataset by its name; arguments and errors as in `load_by_name`."""
    return load_by_name(FGVC_DATASETS, name, data_root, download)
