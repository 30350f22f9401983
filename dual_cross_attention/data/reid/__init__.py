"""The re-identification datasets by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dual_cross_attention.data.boxes import BoxMode
from dual_cross_attention.data.folders import own_folder
from dual_cross_attention.data.registry import DatasetEntry, load_by_name, names_where
from dual_cross_attention.data.reid import folder, market1501, msmt17, shards, veri776
from dual_cross_attention.data.reid.camera_names import CameraMode
from dual_cross_attention.data.reid.identities import IdentityList, ReIDData
from dual_cross_attention.data.reid.release import Release
from dual_cross_attention.data.synthetic.people import draw_toy_people
from dual_cross_attention.errors import InputError

__all__ = ["REID_DATASETS", "IdentityList", "ReIDData", "draw_toy_people", "load_reid"]

_BY_REQUEST = "its authors ask for a request"


def _finder(release: Release, marker: str) -> Callable[[Path], Path | None]:
    """`DatasetEntry.find` of a release: by its official folder names, so another release is not taken for it."""

    def find(folder: Path) -> Path | None:
        if not any(own_folder(folder, name, marker, wrapped=False) for name in release.folders):
            return None
        return release.found_in(folder, marker)

    return find


REID_DATASETS: dict[str, DatasetEntry[ReIDData]] = {
    "toy": DatasetEntry(
        "synthetic people, many of whom share most of what they wear",
        draw_toy_people,
        no_download="it is synthetic, not downloaded",
    ),
    "market1501": DatasetEntry(
        "Market-1501: 1,501 people by 6 cameras",
        market1501.load_market1501,
        market1501.MARKET1501.layout,
        market1501.MARKET1501.source,
        no_download="its source asks for a visit to the page",
        find=_finder(market1501.MARKET1501, market1501.FOLDERS["gallery"]),
    ),
    "dukemtmc": DatasetEntry(
        "DukeMTMC-reID: 1,404 people by 8 cameras",
        market1501.load_dukemtmc,
        market1501.DUKEMTMC.layout,
        market1501.DUKEMTMC.source,
        no_download="its authors have withdrawn it",
        find=_finder(market1501.DUKEMTMC, market1501.FOLDERS["gallery"]),
    ),
    "msmt17": DatasetEntry(
        "MSMT17: 4,101 people by 15 cameras",
        msmt17.load_msmt17,
        msmt17.MSMT17.layout,
        msmt17.MSMT17.source,
        no_download=_BY_REQUEST,
        find=_finder(msmt17.MSMT17, msmt17.LISTS["query"][0]),
    ),
    "veri776": DatasetEntry(
        "VeRi-776: 776 vehicles by 20 cameras",
        veri776.load_veri776,
        veri776.VERI776.layout,
        veri776.VERI776.source,
        no_download=_BY_REQUEST,
        find=_finder(veri776.VERI776, veri776.SPLITS["gallery"][0]),
    ),
    "folder": DatasetEntry(
        "your own images, one folder per identity, or listed in CSV files",
        folder.load_folder,
        folder.LAYOUT,
        folder.SOURCE,
        no_download="these are your own images",
        may_lack_cameras=True,
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


def load_reid(
    name: str,
    data_root: str | Path | None,
    train: bool = True,
    download: bool = False,
    cameras: CameraMode = "name",
    bbox: BoxMode = "crop",
) -> ReIDData:
    """A re-identification dataset by its name; `data_root` and errors as in `load_by_name`.

    Args:
        name: one of REID_DATASETS.
        data_root: the dataset's own folder, or the one that holds it; None for "toy".
        train: False: the training images are not read and need not exist.
        download: as in `load_by_name`, which refuses it: none of these datasets can be downloaded.
        cameras, bbox: as of `load_folder`, where the entry says `may_lack_cameras`; other datasets have cameras and no
            boxes.

    Raises:
        InputError: as `load_by_name`; `cameras` "none" of another dataset.
    """
    options: dict[str, Any] = {"train": train}
    if entry := REID_DATASETS.get(name):
        if entry.may_lack_cameras:
            options |= {"cameras": cameras, "bbox": bbox}
        elif cameras == "none":
            those = " or ".join(names_where(REID_DATASETS, "may_lack_cameras"))
            raise InputError(f"--cameras none is for --dataset {those}; {name} has cameras")
    return load_by_name(REID_DATASETS, name, data_root, download, **options)
