"""MSMT17 in its official layout, version 1 or version 2 (with masked faces)."""

import re
from pathlib import Path

from dual_cross_attention.data.folders import what_is_in
from dual_cross_attention.data.listed_paths import listed_path
from dual_cross_attention.data.reid.identities import ReIDData
from dual_cross_attention.data.reid.leftovers import leftovers
from dual_cross_attention.data.reid.records import Sighting, parsed
from dual_cross_attention.data.reid.release import Counts, Release, lines_of, on_disk, released_data, split_folder
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape

MSMT17 = Release(
    "msmt17",
    "MSMT17_V1/ with train/ and test/, or MSMT17_V2/ with mask_train_v2/ and mask_test_v2/, and in either "
    "list_train.txt, list_val.txt, list_query.txt and list_gallery.txt",
    "https://www.pkuvmc.com/dataset.html",
    ("MSMT17_V1", "MSMT17_V2"),
    "a camera in its third field, as 0000_000_01_0303morning_0015_0.jpg has",
    {"training": Counts(32_621, 1_041), "query": Counts(11_659, 3_060), "gallery": Counts(82_161, 3_060)},
    taken_from="the third field of a file name",
    numbered_anew=True,
)
FOLDERS = (("train", "test"), ("mask_train_v2", "mask_test_v2"))
LISTS = {
    "training": ("list_train.txt", "list_val.txt"),
    "query": ("list_query.txt",),
    "gallery": ("list_gallery.txt",),
}


def load_msmt17(data_root: Path, train: bool = True) -> ReIDData:
    """Lists have lines like "0000/0000_000_01_0303morning_0015_0.jpg 0": the path, with camera 1, and the identity.

    Training images are those of list_train.txt and then those of list_val.txt; paths are relative to train/ or test/.
    Training identity 0 and test identity 0 are different people. From https://www.pkuvmc.com/dataset.html.

    Args:
        data_root: the folder MSMT17_V1 or MSMT17_V2, or the one that holds one of them.
        train: read the training images too.

    Raises:
        InputError: the layout is another one, a line of a list is, or none of a list's images is there.
    """
    home = MSMT17.found_in(data_root, LISTS["query"][0])
    warnings = MSMT17.inner_folder_lines(home, data_root)
    splits: dict[str, list[Sighting]] = {}
    on_lists: dict[Path, dict[Path, str]] = {}  # by folder: query and gallery share one
    for split, names in LISTS.items():
        if split == "training" and not train:
            continue
        folder = split_folder(MSMT17, _images(home, split), warnings)
        lists = {home / name: _listed(home / name, folder) for name in names}
        splits[split] = [seen for path, identities in lists.items() for seen in _seen(path, identities, warnings)]
        for identities in lists.values():
            on_lists.setdefault(folder, {}).update(identities)
    for folder, files in on_lists.items():
        warnings += leftovers(f"msmt17: {folder}", folder, files, 1, "any of the lists")
    return released_data(MSMT17, splits, warnings)


def _images(home: Path, split: str) -> Path:
    names = [train if split == "training" else test for train, test in FOLDERS]
    for name in names:
        if (home / name).is_dir():
            return home / name
    raise MSMT17.error(f"expected the folder {' or '.join(names)} in {home}, but {what_is_in(home)}")


def _listed(path: Path, images: Path) -> dict[Path, str]:
    """Identities of the images in a list."""
    identities: dict[Path, str] = {}
    for number, line in lines_of(MSMT17, path):
        where = f"msmt17: {path}, line {number}"
        found = re.fullmatch(r"(.*\S)[ \t]+([0-9]+)", line)
        if not found:
            raise InputError(f'{where}: expected "path identity", got {line!r:.200}')
        name, identity = found.groups()
        image = listed_path(images, name, where)
        if image in identities:
            raise InputError(f"{where}: {escape(name)} is listed a second time")
        identities[image] = identity.zfill(4)  # as the folder of its images is named
    return identities


def _seen(path: Path, identities: dict[Path, str], warnings: list[str]) -> list[Sighting]:
    def sighting(file: Path) -> Sighting | None:
        camera = [*file.name.split("_"), "", "", ""][2]
        return Sighting(file, identities[file], camera) if camera.isdecimal() else None

    files = on_disk(MSMT17, path, list(identities), warnings)
    return parsed(files, sighting, f"msmt17: {path}", MSMT17.naming, warnings)
