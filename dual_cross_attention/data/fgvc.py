"""The fine-grained data sets by name."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dual_cross_attention.data import cub, folder, torchvision_sets
from dual_cross_attention.data.fine_grained import FineGrainedData, what_is_in
from dual_cross_attention.data.toy import draw_toy
from dual_cross_attention.errors import InputError

__all__ = ["FGVC_DATASETS", "FgvcDataset", "FineGrainedData", "load_fgvc"]


@dataclass(frozen=True)
class FgvcDataset:
    """What is known of a data set before it is read.

    Args:
        description: for a list of what exists.
        load: reads it from its own folder or the one that holds it; without arguments if it has no `layout`.
        layout: the files and folders expected; None if it is not read from disk.
        source: where to get it.
        no_download: why it cannot be downloaded from here; None if it can, and `load` takes `download` then.
    """

    description: str
    load: Callable[..., FineGrainedData]
    layout: str | None = None
    source: str = ""
    no_download: str | None = None


FGVC_DATASETS: dict[str, FgvcDataset] = {
    "toy": FgvcDataset(
        "birds drawn by the project, whose species differ only in small parts",
        draw_toy,
        no_download="it is drawn, not downloaded",
    ),
    "cub": FgvcDataset(
        "CUB-200-2011: 200 species of birds",
        cub.load_cub,
        cub.LAYOUT,
        cub.SOURCE,
        no_download="its source asks for a visit to the page",
    ),
    "cars": FgvcDataset(
        "Stanford Cars: 196 models of cars",
        torchvision_sets.load_cars,
        torchvision_sets.CARS_LAYOUT,
        torchvision_sets.CARS_SOURCE,
        no_download="its official source is gone",
    ),
    "aircraft": FgvcDataset(
        "FGVC-Aircraft: 100 variants of aircraft",
        torchvision_sets.load_aircraft,
        torchvision_sets.AIRCRAFT_LAYOUT,
        torchvision_sets.AIRCRAFT_SOURCE,
    ),
    "folder": FgvcDataset(
        "your own pictures, one folder per class",
        folder.load_folder,
        folder.LAYOUT,
        folder.SOURCE,
        no_download="these are your own pictures",
    ),
}


def load_fgvc(name: str, data_root: str | Path | None, download: bool = False) -> FineGrainedData:
    """A fine-grained data set by its name; pictures stay on disk until they are used.

    Args:
        name: one of `FGVC_DATASETS`.
        data_root: the data set's own folder, or the folder that holds it; None for the toy set.
        download: fetch it into `data_root` first, if it is not there.

    Raises:
        InputError: an unknown name, a missing or wrong `data_root`, a download that is not on offer, or a data set that
            cannot be trained on (see `FineGrainedData`).
    """
    if name not in FGVC_DATASETS:
        raise InputError(f"unknown data set {name!r}{_closest(name)}; there are: {', '.join(FGVC_DATASETS)}")
    data_set = FGVC_DATASETS[name]
    if data_set.layout is None and data_root is not None:
        raise InputError(
            f"{name} is drawn by the project and takes no data_root, but {data_root} was given; "
            "did you mean the data set cub, or folder (your own pictures)?"
        )
    if download and data_set.no_download is not None:
        get = f"; get it from {data_set.source}" if name in ("cub", "cars") else ""
        raise InputError(f"{name} cannot be downloaded from here: {data_set.no_download}{get}")
    if data_set.layout is None:
        return data_set.load()
    wanted = f"{name} needs data_root, a folder with {data_set.layout}"
    if data_root is None:
        raise InputError(f"{wanted}; get it from {data_set.source}")
    root = Path(data_root).expanduser()
    if download:
        return data_set.load(root, download=True)
    if not root.is_dir():
        raise InputError(f"{wanted}; {root} was given, but {what_is_in(root)}; get it from {data_set.source}")
    return data_set.load(root)


def _closest(name: str) -> str:
    matches = difflib.get_close_matches(name.lower(), FGVC_DATASETS, n=1, cutoff=0.5)
    return f" (did you mean {matches[0]}?)" if matches else ""
